"""Validation (losses at fixed noise, images, router health), trackers, and `--check`."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorweb_core.encoder import read_encoder_size
from training.adapter.health import draw_use, router_health
from training.base.sheets import contact_sheet, quadrants
from training.base.source import FULL_SIZE_CONFIG, find_source, read_transformer_config
from training.config.reading import read_config
from training.data.index import DataError
from training.run.checkpoints import list_checkpoints, load_checkpoint
from training.run.memory import checkpoint_bytes, estimate_memory, size_text
from training.run.optimizers import EMA
from training.run.preflight import preflight_report
from training.run.validation import image_scores
from training.train import main, train


@pytest.fixture
def validated(tiny_config):
    options = ("run.steps=2", "validation.every=1", "validation.image_steps=2")
    config = tiny_config(*options)
    train(config)
    return config


def test_images_numbers_and_router_files_are_written(validated):
    folder = validated.run_folder / "validation" / "step-000000002"
    assert {path.name for path in folder.iterdir()} == {
        "grids-seen.png", "grids-held_out.png", "numbers.json", "router.png", "router.json",
    }  # fmt: skip
    numbers = json.loads((folder / "numbers.json").read_text())
    scores = {f"{of}{name}" for of in ("", "copy_b_") for name in ("psnr", "ssim", "changed_psnr")}
    wanted = {f"validation/{of}/{name}" for of in ("seen", "held_out") for name in (*scores, "loss_0.25", "loss_0.98")}
    assert wanted | {"validation/seen", "validation/held_out", "router/entropy"} <= numbers.keys()
    assert len(json.loads((folder / "router.json").read_text())["use_per_adapter"]) == 20
    assert list((validated.run_folder / "tensorboard").iterdir())


def validated_steps(config):
    lines = [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "validation/seen" in line and line["validation/seconds"] > 0]


def test_a_run_is_validated_before_its_first_step_and_after_its_last_and_resuming_repeats_neither(tiny_config, caplog):
    caplog.set_level("INFO")
    options = ("validation.images=1", "validation.image_steps=1", "checkpoint.every=1", "validation.every=2")
    train(tiny_config(*options, "run.steps=3"))
    config = tiny_config(*options, "run.steps=5")
    train(config, resume="latest")
    assert validated_steps(config) == [0, 2, 3, 4, 5]
    train(config, resume="latest")
    assert validated_steps(config) == [0, 2, 3, 4, 5]
    (line,) = [text for text in caplog.messages if text.startswith("validation at step 4: ")]
    numbers = json.loads((config.run_folder / "validation" / "step-000000004" / "numbers.json").read_text())
    for name in ("seen", "held_out"):
        own = {key.split("/")[2]: value for key, value in numbers.items() if key.startswith(f"validation/{name}/")}
        assert f"{name}: b' {own['psnr']:.1f} dB" in line
        assert f"copying b: {own['copy_b_psnr']:.1f} dB" in line
        assert f"{own['loss_0.98']:.3f} at sigma 0.98" in line


def test_the_scores_of_an_image_are_those_of_copying_b_beside_the_truth():
    b, b_prime = torch.zeros(16, 16, 3), torch.zeros(16, 16, 3)
    b_prime[:8] = 0.5
    half_right = b_prime.clone()
    half_right[:4] = 0
    scores = image_scores([("task", [b, b, b, half_right, b_prime]), ("unknown", [b, b, b, b, None])])
    assert scores["copy_b_psnr"] == pytest.approx(-10 * math.log10(0.125))
    assert scores["psnr"] == pytest.approx(-10 * math.log10(0.0625))
    assert scores["copy_b_changed_psnr"] == pytest.approx(-10 * math.log10(0.25))
    assert scores["changed_psnr"] == pytest.approx(-10 * math.log10(0.125))
    assert scores["copy_b_ssim"] < scores["ssim"] < 1
    assert image_scores([("task", [b, b, b, b_prime, b_prime])])["ssim"] == pytest.approx(1)


def test_validation_loss_is_that_of_the_answer_alone(tiny_config, assembled, monkeypatch):
    """The model's prediction is made useless in one place; only that of b′'s quadrant may be seen."""
    loop, state = assembled(tiny_config("validation.every=1"))
    validator, predict = loop.validate, type(state.model).predict
    losses = {"": validator.losses(state.model)}
    for place, spoiled in {"copied": (slice(0, 4), slice(0, 4)), "answer": (slice(4, 8), slice(4, 8))}.items():

        def spoil(model, noisy, sigmas, conditioning, spoiled=spoiled):
            prediction = predict(model, noisy, sigmas, conditioning).clone()
            prediction[..., spoiled[0], spoiled[1]] += 9
            return prediction

        monkeypatch.setattr(type(state.model), "predict", spoil)
        losses[place] = validator.losses(state.model)
    assert losses["copied"] == losses[""]
    assert losses["answer"]["validation/seen"] > losses[""]["validation/seen"] + 50


@pytest.fixture
def examples(tiny_parts, tmp_path):
    """Two folders of own triplets, `dog` without its answer and `cat` with it."""
    images = sorted((tiny_parts / "images").glob("*/*.png"))
    for name, parts in {"dog": ("a", "a_prime", "b"), "cat": ("a", "a_prime", "b", "b_prime")}.items():
        (tmp_path / name).mkdir()
        for part, image in zip(parts, images, strict=False):
            (tmp_path / name / f"{part}.png").write_bytes(image.read_bytes())
    return tmp_path / "dog", tmp_path / "cat"


@pytest.mark.parametrize("is_cached", [False, True])
def test_own_examples_are_shown_by_name_and_measured_where_their_answer_is_known(
    tiny_config, assembled, examples, tmp_path, is_cached
):
    options = (f"data.cache={tmp_path}",) if is_cached else ()
    chosen = f"validation.examples=[{examples[0]},{examples[1]}]"
    loop, state = assembled(tiny_config("validation.every=1", "validation.images=1", chosen, *options))
    result = loop.validate.compute(state.model)
    assert [(name, row[4] is None) for name, row in result.rows["examples"]] == [("dog", True), ("cat", False)]
    assert {len(result.rows[name]) for name in ("seen", "held_out")} == {1}
    cat_alone = tiny_config("validation.every=1", "run.name=cat", f"validation.examples=[{examples[1]}]", *options)
    loop, state = assembled(cat_alone)
    alone = loop.validate.compute(state.model)
    own = {key for key in result.numbers if key.startswith("validation/examples/")}
    assert {"validation/examples/psnr", "validation/examples/loss_0.98"} <= own
    assert own == {key for key in alone.numbers if key.startswith("validation/examples/")}
    loop, state = assembled(tiny_config("validation.every=1", "run.name=dog", f"validation.examples=[{examples[0]}]"))
    unknown = loop.validate.compute(state.model)
    assert not [key for key in unknown.numbers if "examples" in key]
    assert "examples: 1 image(s)" in unknown.line()


def test_everything_wrong_with_own_examples_is_reported_before_the_run(tiny_config, examples, tmp_path):
    dog, cat = examples
    (dog / "b.png").unlink()
    (cat / "a_prime.png").write_bytes(b"no image")
    config = tiny_config("validation.every=1", f"validation.examples=[{dog},{cat},{tmp_path}/none]")
    with pytest.raises(DataError) as error:
        train(config)
    for text in (f"{dog} has no image named b", "a_prime.png", "none has no image named a or a_prime or b"):
        assert text in str(error.value)
    assert str(error.value) in preflight_report(config).errors


def test_validation_loss_depends_on_the_weights_alone(tiny_config, assembled):
    loop, state = assembled(tiny_config("run.steps=3", "validation.every=100"))
    validator = loop.validate
    before = validator.losses(state.model)
    assert validator.losses(state.model) == before
    loop.run(state)
    after = validator.losses(state.model)
    assert after != before
    of_sigmas = {
        f"validation/{name}/loss_{sigma}" for name in ("seen", "held_out") for sigma in (0.25, 0.5, 0.75, 0.98)
    }
    assert after.keys() == {"validation/seen", "validation/held_out"} | of_sigmas


def test_validating_changes_nothing_in_the_run(tiny_config):
    options = ("run.steps=3", "optimizer.ema_decay=0.5")
    changes = {"with": ("validation.every=1", "validation.images=0"), "without": ()}
    configs = [tiny_config(*options, f"run.name={name}", *more) for name, more in changes.items()]
    assert train(configs[0]).losses == train(configs[1]).losses
    for part in ("trained", "ema"):
        first, second = (load_checkpoint(list_checkpoints(c.run_folder / "checkpoints")[-1])[part] for c in configs)
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_health_of_an_even_router():
    health = router_health(torch.full((3, 5, 4), 0.25))
    assert health.entropy == pytest.approx(1.0)
    assert (health.dead_adapters, health.spread) == (0.0, pytest.approx(0.0))
    assert math.isnan(health.drift)
    assert "router/drift" not in health.numbers()


def test_health_of_a_collapsed_router(tmp_path):
    coefficients = torch.zeros(2, 6, 4)
    coefficients[..., 1] = 1
    health = router_health(coefficients, before=torch.full((2, 6, 4), 0.25))
    assert health.entropy == pytest.approx(0.0, abs=1e-6)
    assert health.dead_adapters == 0.75
    assert health.drift == pytest.approx(4 * (0.75 + 3 * 0.25) / 4)
    draw_use(health, ("single_transformer_blocks.0.proj_mlp", "x_embedder"), tmp_path / "use.png")
    image = Image.open(tmp_path / "use.png").convert("L")
    left, top = image.width - 320, image.height - 2 * 13
    assert [image.getpixel((left + 13 * column + 6, top + 20)) for column in range(4)] == [255, 0, 255, 255]
    assert image.crop((0, top, left, top + 13)).getextrema()[0] < 100  # the layer's name


def test_router_that_reports_analogies_apart_has_spread():
    coefficients = torch.eye(4)[None]
    assert router_health(coefficients).spread > 1


def test_single_adapter_has_entropy_one():
    assert router_health(torch.ones(2, 3, 1)).entropy == 1.0


def test_ema_follows_and_is_restored():
    state = {"x": torch.zeros(2)}
    average = EMA(state, 0.9)
    state["x"] += 1
    for _ in range(200):
        average.update(state)
    torch.testing.assert_close(average.tensors["x"], torch.ones(2), atol=1e-3, rtol=0)
    other = EMA({"x": torch.zeros(2)}, 0.9)
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.tensors["x"], average.tensors["x"])
    assert other.updates == 200


def test_quadrants_and_sheet():
    grid = torch.arange(4).view(2, 2, 1).repeat_interleave(3, 0).repeat_interleave(3, 1).expand(6, 6, 3) / 3
    assert [float(part[0, 0, 0]) for part in quadrants(grid)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    large, row = torch.zeros(150, 200, 3), [part.repeat_interleave(50, 0) for part in quadrants(grid)]
    sheet = contact_sheet(["a", "a'", "b′", "d"], [("éclair", [large, None, *row[:2]]), ("x" * 500, row)])
    assert sheet.size == (6 + 4 * 206, 22 + (22 + 200 + 6) * 2)
    assert sheet.getpixel((10, 22 + 22 + 2)) == (0, 0, 0)
    assert sheet.crop((206, 22 + 22, 412, 250)).getextrema() == ((255, 255),) * 3  # what is missing stays empty
    for column in range(4):
        assert sheet.crop((column * 206, 0, column * 206 + 206, 22)).convert("L").getextrema()[0] < 50
    assert sheet.crop((0, 22, 206, 44)).convert("L").getextrema()[0] < 150


def _estimate(config, tiny_parts):
    """Memory of a run on the tiny parts, whose encoder is narrower than CLIP ViT-L/14."""
    width, weights = read_encoder_size(tiny_parts / "encoder")
    assert width != 768
    transformer = read_transformer_config(find_source(str(tiny_parts / "model"), None))
    return estimate_memory(config, transformer, 3 * width, weights)


def test_check_reports_data_memory_and_disk_and_loads_no_weights(tiny_config, tiny_overrides, tiny_parts, capsys):
    for file in (tiny_parts / "model").glob("**/*.safetensors"):
        assert file.stat().st_size > 0
    assert main(["--config", "tiny.yaml", "--check", *tiny_overrides()]) == 0
    output = capsys.readouterr().out
    for part in (
        "16 of 16 pairs usable",
        "4 tasks of which 1 held out",
        f"trained {size_text(_estimate(tiny_config(), tiny_parts).trained)}, ",
        "disk:",
        "ready to train",
    ):
        assert part in output


def test_check_reports_everything_that_is_wrong_at_once(tiny_config, tmp_path):
    config = tiny_config("data.index=/nowhere/pairs.jsonl", "base.model=/nowhere/model")
    report = preflight_report(config)
    assert report.errors
    assert len(report.errors) == 2
    assert "2 error(s):" in report.text()


def test_check_reports_files_that_are_opened_late_and_of_an_earlier_run(tiny_config):
    train(tiny_config("run.steps=1"))
    report = preflight_report(tiny_config("basis.start_from=/nowhere.safetensors", "encoder.model=/nowhere/encoder"))
    assert len(report.errors) == 2
    assert "basis.start_from" in report.errors[0]
    assert "encoder.model" in report.errors[1]
    assert "step-000000001: add --resume latest" in report.text()


def test_check_reports_what_the_prompts_cost_and_whether_anything_can_encode_them(tiny_config, tiny_parts, tmp_path):
    lacking = preflight_report(tiny_config("text.caption_source=a"))
    assert "5 prompts, but no text encoders" in lacking.errors[0]
    assert len(lacking.errors) == 1
    options = ("text.caption_source=a", f"base.model={tiny_parts / 'model-with-text'}")
    in_memory = preflight_report(tiny_config(*options)).text()
    assert "prompts: 5 different ones, 15.4 kB in system memory of every process\n" in in_memory
    assert f"15.4 kB on disk in {tmp_path}" in preflight_report(tiny_config(*options, f"data.cache={tmp_path}")).text()


def test_check_of_a_base_to_be_downloaded_estimates_the_published_one(tiny_parts, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    overrides = [f"data.index={tiny_parts / 'pairs.jsonl'}", f"run.folder={tmp_path}", "base.quantize=none"]
    config = read_config("24gb.yaml", overrides)
    report = preflight_report(config)
    assert not report.errors
    output = report.text()
    for part in (
        "Kontext-dev is not on this machine yet; the first run downloads it (about 24 GB for a transformer of",
        "`hf auth login`",
        f"(base {size_text(estimate_memory(config, FULL_SIZE_CONFIG, 2304).base)}, ",
        "prompts: 5 different ones",
        "disk: 20.",
    ):
        assert part in output
    unreal = preflight_report(read_config("24gb.yaml", [*overrides, "base.model=owner/no--such--name"]))
    assert "HFValidationError" in unreal.errors[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
def test_check_without_a_gpu_refuses_a_run_that_demands_one(tiny_config):
    (mistake,) = preflight_report(tiny_config("run.device=cuda")).errors
    assert mistake.startswith("no GPU")
    assert "no GPU found on this machine" in preflight_report(tiny_config("run.device=auto")).text()


def test_check_reports_trackers_and_optimizers_that_are_not_installed(tiny_config, tiny_parts, monkeypatch):
    for package in ("wandb", "bitsandbytes", "torchao"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    report = preflight_report(tiny_config("tracking.wandb_project=mine", "optimizer.name=adamw8bit"))
    (mistake,) = report.errors
    assert "pip install wandb" in mistake
    assert "plain AdamW is used, 8 bytes per parameter instead of 2" in report.text()
    plain = _estimate(tiny_config("optimizer.name=adamw"), tiny_parts).optimizer
    assert f"optimizer {size_text(plain)}, " in report.text()
    with pytest.raises(ValueError, match="wandb cannot be imported"):
        train(tiny_config("tracking.wandb_project=mine", "base.model=/nowhere"))


def test_check_reads_the_settings_of_a_basis_to_start_from(tiny_config):
    first = train(tiny_config("run.steps=1", "basis.activation=tanh")).basis_file
    (mistake,) = preflight_report(tiny_config("run.name=second", f"basis.start_from={first}")).errors
    assert "trained with activation tanh" in mistake


@pytest.mark.parametrize(("quantize", "package"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_check_refuses_a_quantizer_that_is_not_installed(tiny_config, monkeypatch, quantize, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    (mistake,) = preflight_report(tiny_config(f"base.quantize={quantize}")).errors
    assert f"pip install --no-deps {package}" in mistake


@pytest.mark.parametrize(
    ("count", "text"), [(5.1e9, "5.10 GB"), (1e8, "0.10 GB"), (99e6, "99.0 MB"), (2e5, "0.2 MB"), (512, "0.5 kB")]
)
def test_small_sizes_are_reported_in_small_units(count, text):
    assert size_text(count) == text


@pytest.mark.parametrize("option", ["optimizer.name=adamw", "optimizer.ema_decay=0.9"])
def test_disk_for_a_checkpoint_is_what_one_takes(tiny_config, option):
    config = tiny_config(option, "run.steps=1", "basis.rank=32", "basis.key_dim=64")
    train(config)
    source = find_source(config.base.model, None)
    expected = checkpoint_bytes(config, estimate_memory(config, read_transformer_config(source), 36))
    (folder,) = (config.run_folder / "checkpoints").glob("step-*")
    found = sum(file.stat().st_size for file in folder.iterdir())
    assert found == pytest.approx(expected, rel=0.06)  # names and headers weigh something on a tiny model


def test_sharded_base_is_counted_by_its_share(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    whole = estimate_memory(read_config("paper.yaml", ["data.index=x"]), FULL_SIZE_CONFIG, 2304)
    shared = estimate_memory(read_config("paper.yaml", ["data.index=x", "run.strategy=fsdp"]), FULL_SIZE_CONFIG, 2304)
    assert shared.base == pytest.approx(whole.base / 4)


def test_check_counts_the_image_encoder_as_its_config_describes_it(tiny_config, tmp_path):
    """SigLIP2 so400m: 1,152 wide, 428 M weights."""
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    vision |= {"image_size": 384, "patch_size": 14}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": vision}))
    width, weights = read_encoder_size(tmp_path)
    assert (width, weights // 10**6) == (1152, 428)
    config = tiny_config(f"encoder.model={tmp_path}")
    source = find_source(config.base.model, None)
    expected = estimate_memory(config, read_transformer_config(source), 3 * width, weights)
    assert f"computed: {size_text(expected.total)} (" in preflight_report(config).text()


def test_check_of_a_single_file_reads_its_header(tiny_config, tiny_parts, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    report = preflight_report(
        tiny_config(f"base.model={tmp_path / 'model.gguf'}", f"base.components={tiny_parts / 'model'}")
    )
    assert "GGUF" in report.errors[0]


def test_memory_of_the_paper_run_is_near_the_sums_on_paper():
    paper = estimate_memory(read_config("paper.yaml", ["data.index=x"]), FULL_SIZE_CONFIG, 2304)
    assert paper.base == pytest.approx(23.8e9, rel=0.01)
    assert paper.trained + paper.gradients + paper.optimizer == pytest.approx(8.4e9, rel=0.01)
    assert paper.total == sum(vars(paper).values())
    small = estimate_memory(read_config("24gb.yaml", ["data.index=x"]), FULL_SIZE_CONFIG, 2304)
    assert small.base == pytest.approx(6.7e9, rel=0.03)
    assert small.encoders < 0.2e9  # embeddings come from the cache


@pytest.mark.parametrize("name", ["paper", "24gb", "16gb"])
def test_readme_and_configs_give_the_memory_that_check_computes(name):
    computed = estimate_memory(read_config(f"{name}.yaml", ["data.index=x"]), FULL_SIZE_CONFIG, 2304).total
    output = f"{computed / 1e9:.0f} GB"
    readme = Path("docs/memory-and-speed.md").read_text(encoding="utf-8")
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{name}.yaml`")]
    assert f"{output} (computed)" in row
    assert output in "".join(Path(f"training/config/{name}.yaml").read_text(encoding="utf-8").splitlines()[:4])


def test_int8_unpacks_the_weights_of_one_block():
    def activations(*options):
        return estimate_memory(
            read_config("paper.yaml", ["data.index=x", *options]), FULL_SIZE_CONFIG, 2304
        ).activations

    assert activations("base.quantize=int8") - activations() == pytest.approx(0.4e9, rel=0.1)
    assert activations("base.quantize=nf4") == activations()
