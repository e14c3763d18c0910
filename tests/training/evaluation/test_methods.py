"""The methods of an evaluation: how other projects name their images, and what is missing, broken or changed."""

import os

import pytest
from PIL import Image

from tests.training.evaluation.example_sets import add_method, write_evaluation, write_results
from training.base.sampler import SamplingOptions
from training.config.schema import BaseModelConfig
from training.console import open_device
from training.evaluate import main
from training.evaluation.folder import EvaluationError, EvaluationFolder, model_key
from training.evaluation.methods import (
    basis_method,
    common_samples,
    generate,
    images_method,
    methods_of,
    missing_images,
    require_distinct,
)


@pytest.fixture
def evaluation(tmp_path):
    return write_evaluation(tmp_path)


def write_quadrants(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = Image.new("RGB", (20, 20))
    for color, corner in zip(("red", "green", "blue", "yellow"), ((0, 0), (10, 0), (0, 10), (10, 10)), strict=True):
        grid.paste(color, (*corner, corner[0] + 10, corner[1] + 10))
    grid.save(path)


@pytest.mark.parametrize(
    ("layout", "name", "is_grid"),
    [
        ("plain", "{}.webp", False),
        ("grid", "{}.png", True),
        ("relation-adapter", "{}/generated.jpg", False),
        ("relation-adapter", "{}.png", False),
        ("visualcloze", "{}/visualcloze.png", False),
        ("edit-transfer", "{}/result_4711.png", True),
        ("kontext-lora", "{}/output.png", False),
    ],
)
def test_every_project_is_read_as_it_names_its_images(evaluation, tmp_path, layout, name, is_grid):
    _, samples = evaluation
    write_quadrants(tmp_path / "out" / name.format(samples[0].id))
    method = images_method(f"theirs={layout}:{tmp_path / 'out'}")
    image = method.make(samples[0])
    assert image.size == ((10, 10) if is_grid else (20, 20))
    assert method.source(samples[1]) is None
    if is_grid:
        assert image.getpixel((5, 5)) == (255, 255, 0), "b′ is at the bottom right"


def test_of_several_seeds_the_lowest_is_taken(evaluation, tmp_path):
    _, samples = evaluation
    for seed in (100, 20, 3000):
        write_quadrants(tmp_path / "out" / samples[0].id / f"result_{seed}.png")
    method = images_method(f"theirs=edit-transfer:{tmp_path / 'out'}")
    before = method.source(samples[0])
    (tmp_path / "out" / samples[0].id / "result_100.png").unlink()
    assert method.source(samples[0]) == before
    write_results(tmp_path / "other", evaluation[0], samples[:1], gray=0)
    (tmp_path / "other" / f"{samples[0].id}.png").replace(tmp_path / "out" / samples[0].id / "result_20.png")
    assert method.source(samples[0]) != before


def test_a_folder_may_have_a_colon_but_not_be_missing(tmp_path):
    (tmp_path / "a:b").mkdir()
    assert images_method(f"x={tmp_path / 'a:b'}").name == "x"
    for text in ("x", "=folder", f"x={tmp_path / 'nothing'}", "x=", "x=plain:"):
        with pytest.raises(EvaluationError, match="NAME=LAYOUT:FOLDER"):
            images_method(text)


def test_methods_whose_images_would_share_a_folder_are_refused(evaluation, tmp_path, capsys):
    folder, samples = evaluation
    for names in (["copy-b", "Copy-B"], ["x+1", "x*1"], ["x", "x"], ["a" * 120, "a" * 121]):
        with pytest.raises(EvaluationError, match=r"would both keep their images in .*Rename one"):
            require_distinct(folder, names)
    command = ["generate", "--out", str(folder.root), "--method"]
    assert main([*command, f"LoRA+r4={write_results(tmp_path / 'plus', folder, samples, gray=0)}"]) == 0
    before = folder.image("LoRA+r4", samples[0].id).read_bytes()
    assert main([*command, f"LoRA*r4={write_results(tmp_path / 'star', folder, samples, gray=255)}"]) == 2
    assert "'LoRA+r4' and 'LoRA*r4'" in capsys.readouterr().err
    assert folder.image("LoRA+r4", samples[0].id).read_bytes() == before
    assert main([*command, f"LoRA+r4={tmp_path / 'plus'}"]) == 0, "a known method may come again"


def test_missing_and_broken_images_are_listed_and_the_rest_is_compared(evaluation, tmp_path, caplog):
    folder, samples = evaluation
    place = write_results(tmp_path / "out", folder, samples, gray=100)
    (place / f"{samples[0].id}.png").unlink()
    (place / f"{samples[1].id}.png").write_bytes(b"\x89PNG broken")
    for _ in range(2):
        generate(folder, images_method(f"theirs={place}"), samples)
    assert caplog.text.count("theirs: 2 of 6 images are missing or unreadable") == 2
    assert (folder.root / "generated.jsonl").read_text(encoding="utf-8").count(samples[0].id) == 3, "one per method"
    methods = methods_of(folder)
    assert missing_images(folder, methods, samples) == {"theirs": [samples[0].id, samples[1].id]}
    assert common_samples(folder, methods, samples) == samples[2:]
    with pytest.raises(EvaluationError, match="no method thiers"):
        methods_of(folder, ["thiers"])
    (tmp_path / "empty").mkdir()
    generate(folder, images_method(f"none={tmp_path / 'empty'}"), samples)
    with pytest.raises(EvaluationError, match="none lacks 6 of 6"):
        common_samples(folder, methods_of(folder), samples)


def test_a_second_run_brings_in_only_what_is_new_changed_or_damaged(evaluation, tmp_path):
    folder, samples = evaluation
    method = add_method(tmp_path, folder, samples[:4], "theirs", gray=100)
    generate(folder, method, samples)
    whole = folder.image("theirs", samples[1].id).read_bytes()
    folder.image("theirs", samples[1].id).write_bytes(whole[:100])
    assert missing_images(folder, ["theirs"], samples)["theirs"] == [sample.id for sample in (samples[1], *samples[4:])]
    kept = folder.image("theirs", samples[0].id).stat().st_mtime_ns
    place = tmp_path / "results" / "theirs"
    write_results(place, folder, samples[3:], gray=200)
    folder = EvaluationFolder(folder.root)
    before = {sample.id: folder.generated.get("theirs", sample.id) for sample in samples}
    generate(folder, images_method(f"theirs={place}"), samples)
    assert folder.image("theirs", samples[0].id).stat().st_mtime_ns == kept
    assert folder.image("theirs", samples[1].id).read_bytes() == whole
    changed = [s for s in samples if folder.generated.get("theirs", s.id) != before[s.id]]
    assert changed == samples[3:]
    assert common_samples(folder, methods_of(folder), samples) == samples


def test_a_model_is_known_by_its_content(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "model" / "part").mkdir(parents=True)
        (tmp_path / place / "model" / "part" / "weights.safetensors").write_bytes(b"same")
    first, second = (tmp_path / place / "model" for place in ("one", "two"))
    (second / ".cache").write_bytes(b"not the model's")
    assert model_key(first) == model_key(second)
    (second / "part" / "weights.safetensors").write_bytes(b"else")
    assert model_key(first) != model_key(second)
    assert (model_key("owner/model"), model_key(None)) == ("owner/model", None)
    large = tmp_path / "large.safetensors"
    large.touch()
    keys = [(os.truncate(large, size * 2**20), model_key(large))[1] for size in (65, 66)]
    assert keys[0] != keys[1], "large files are known by size and time"


def test_our_generator_works_again_when_basis_base_or_encoder_changes(evaluation, tmp_path):
    folder, samples = evaluation
    files = [tmp_path / name for name in ("basis.safetensors", "base.safetensors", "encoder/model.safetensors")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"first")

    def source(seed=0):
        method = basis_method(
            f"mine={files[0]}", folder, samples, base=BaseModelConfig(model=str(files[1])), max_tokens=None,
            options=SamplingOptions(seed=seed), encoder=str(files[2].parent), device=open_device("cpu"),
        )  # fmt: skip
        return method.source(samples[0])

    sources = [source(), source(seed=1)]
    assert source() == sources[0]
    for file in files:
        file.write_bytes(b"other")
        sources.append(source())
    assert len(set(sources)) == len(sources)
