"""Sampling against the reference's run, and the command that generates images from folders."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lorweb_core.checkpoint import load_basis
from lorweb_core.router import route_query
from lorweb_core.settings_sources import trained_text_tokens
from tests.training.conftest import GOLDEN, tiny_words
from training.base.flow import (
    CONTEXT,
    TARGET,
    SigmaSchedule,
    pack_latents,
    read_schedule,
    sample_latents,
    token_ids,
    unpack_latents,
)
from training.base.sampler import SamplingOptions, attach_basis, load_sampler, set_coefficients
from training.base.transformer import Conditioning, predict_velocity
from training.config.reading import read_config
from training.config.schema import BaseModelConfig
from training.sample import find_triplets, main
from training.train import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def golden_run():
    return json.loads((GOLDEN / "pipeline.json").read_text()), load_file(GOLDEN / "pipeline.safetensors")


def test_sigmas_and_token_ids_of_the_reference_are_reproduced_and_packing_is_undone(golden_run):
    facts, tensors = golden_run
    sigmas = SigmaSchedule().sigmas(facts["steps"], facts["image_seq_len"])
    torch.testing.assert_close(sigmas, torch.tensor(facts["sigmas"]), atol=1e-7, rtol=0)
    assert torch.equal(token_ids(12, 12, TARGET), tensors["latent_ids"])
    assert torch.equal(token_ids(12, 12, CONTEXT), tensors["image_ids"])
    latents = torch.randn(2, 16, 8, 12)
    assert torch.equal(unpack_latents(pack_latents(latents), 8, 12), latents)


def test_latents_of_the_reference_are_reproduced_in_every_step(golden_run, golden_transformer, machine_error):
    facts, tensors = golden_run
    basis = load_basis(GOLDEN / facts["basis"])
    linears = attach_basis(golden_transformer, basis)
    set_coefficients(linears, route_query(basis, tensors["external_query"]))
    conditioning = Conditioning(
        unpack_latents(tensors["image_latents"], 12, 12),
        tensors["prompt_embeds"],
        tensors["pooled_prompt_embeds"],
        None,
        facts["guidance_scale"],
    )
    steps = []
    sample_latents(
        lambda x, sigma: predict_velocity(golden_transformer, x, sigma, conditioning),
        unpack_latents(tensors["latents_initial"], 12, 12),
        SigmaSchedule().sigmas(facts["steps"], facts["image_seq_len"]),
        on_step=lambda latents: steps.append(pack_latents(latents)),
    )
    torch.testing.assert_close(torch.stack(steps), tensors["latents_per_step"], atol=5e-6 + machine_error, rtol=0)


def test_schedule_is_read_from_the_folder_and_equals_diffusers(tiny_parts):
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule = read_schedule(tiny_parts / "model")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tiny_parts / "model" / "scheduler")
    for tokens in (36, 1024, 4096):
        mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 8, 8).numpy(), mu=mu)
        torch.testing.assert_close(schedule.sigmas(8, tokens), scheduler.sigmas, atol=1e-6, rtol=0)
    assert read_schedule(tiny_parts) == SigmaSchedule()
    constant = SigmaSchedule(use_dynamic_shifting=False, shift=3.0).sigmas(2, 100)
    torch.testing.assert_close(constant, torch.tensor([1.0, 0.75, 0.0]))


@pytest.fixture(scope="module")
def trained_file(tiny_parts, tmp_path_factory):
    words = tiny_words(tiny_parts, tmp_path_factory.mktemp("runs"), "run.steps=5")
    return train(read_config("tiny.yaml", words)).basis_file


@pytest.fixture
def triplets(tiny_parts, tmp_path):
    for name in ("first", "second"):
        (tmp_path / "triplets" / name).mkdir(parents=True)
        for part, source in (("a", "gray/0001_before"), ("a_prime", "gray/0001_after"), ("b", "gray/0002_before")):
            image = Image.open(tiny_parts / "images" / f"{source}.png").resize((48, 32 if name == "second" else 48))
            image.save(tmp_path / "triplets" / name / f"{part}.png")
    return tmp_path / "triplets"


def run_sample(tiny_parts, basis, out, *more, model="model"):
    return main(
        ["--base", str(tiny_parts / model), "--basis", str(basis), "--encoder", str(tiny_parts / "encoder"),
         "--out", str(out), "--megapixels", "0.05", "--steps", "2", "--dtype", "float32", "--device", "cpu", *more]
    )  # fmt: skip


def test_folder_of_triplets_becomes_images_of_b_size_and_grids(tiny_parts, trained_file, triplets, tmp_path):
    assert run_sample(tiny_parts, trained_file, tmp_path / "out", "--triplets", str(triplets)) == 0
    assert Image.open(tmp_path / "out" / "first.png").size == (48, 48)
    assert Image.open(tmp_path / "out" / "second.png").size == (48, 32)
    assert (tmp_path / "out" / "second-grid.png").exists()


def test_prompts_folder_is_used(tiny_parts, trained_file, triplets, tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "first.txt").write_text("gray the image\n")
    (prompts / "prompt.txt").write_text("anything else")
    assert [triplet.prompt for triplet in find_triplets(triplets, prompts)] == ["gray the image", "anything else"]
    options = ("--triplets", str(triplets), "--prompts", str(prompts), "--max-tokens", "16")
    assert run_sample(tiny_parts, trained_file, tmp_path / "out", *options, model="model-with-text") == 0


def test_single_triplet_needs_all_three_images(tiny_parts, trained_file, triplets, tmp_path, capsys):
    folder = triplets / "first"
    assert run_sample(tiny_parts, trained_file, tmp_path / "out", "--a", str(folder / "a.png")) == 2
    assert "--a-prime" in capsys.readouterr().err
    parts = ("--a", "a", "--a-prime", "a_prime", "--b", "b")
    images = [str(folder / f"{part}.png") if not part.startswith("--") else part for part in parts]
    assert run_sample(tiny_parts, trained_file, tmp_path / "out", *images) == 0
    assert (tmp_path / "out" / "b-edited.png").exists()
    assert f"Wrote {tmp_path / 'out' / 'b-edited.png'}" in capsys.readouterr().out


def test_damaged_and_missing_images_are_reported_before_anything_is_loaded(
    tiny_parts, trained_file, triplets, tmp_path, capsys
):
    (triplets / "second" / "b.png").write_bytes(b"no image")
    assert run_sample(tiny_parts, trained_file, tmp_path / "out", "--triplets", str(triplets), model="no-model") == 2
    assert "b.png" in capsys.readouterr().err
    (triplets / "first" / "a_prime.png").unlink()
    (triplets / "second" / "b.png").unlink()
    with pytest.raises(ValueError, match="2 incomplete triplets: first, second"):
        find_triplets(triplets)


def test_an_encoder_that_only_the_training_machine_had_is_asked_for(trained_file, triplets, tmp_path, capsys):
    words = ("--base", "no-model", "--basis", str(trained_file), "--out", str(tmp_path), "--triplets", str(triplets))
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "was trained with the image encoder encoder" in error and "no folder at encoder" in error
    assert "with --encoder" in error


def test_strength_zero_is_the_base_and_the_same_seed_gives_the_same_image(tiny_parts, trained_file):
    base = BaseModelConfig(model=str(tiny_parts / "model"), dtype="float32")
    sampler = load_sampler(base, trained_file, [""], encoder=str(tiny_parts / "encoder"), device=CPU)
    images = [torch.rand(1, 48, 48, 3, generator=torch.Generator().manual_seed(n)) for n in range(3)]

    def generate(**options):
        return sampler.generate(*images, options=SamplingOptions(steps=2, megapixels=0.05, **options))[0]

    first, again, base_only = generate(), generate(), generate(strength=0.0)
    for linear in sampler.linears.values():
        linear.layer.lora_up.zero_()
    assert torch.equal(first, again)
    assert not torch.equal(first, base_only)
    torch.testing.assert_close(base_only, generate(), atol=1e-5, rtol=0)


def test_basis_of_another_base_is_refused(golden_transformer):
    basis = load_basis(GOLDEN / "basis_A.safetensors")
    layer = basis.layers["transformer_blocks.0.attn.to_q"]
    other = replace(basis, layers={"transformer_blocks.9.attn.to_q": layer, "transformer_blocks.0.norm1.linear": layer})
    with pytest.raises(ValueError, match="2 are missing or of another shape"):
        attach_basis(golden_transformer, other)


def test_prompts_have_as_many_tokens_as_in_training_unless_given(tiny_config, tiny_parts, trained_file):
    """T5's pads are attended to, so another number of them is another prompt."""
    assert trained_text_tokens(load_basis(trained_file).metadata) == 1, "trained without text encoders"
    model, encoder = (str(tiny_parts / name) for name in ("model-with-text", "encoder"))
    options = (f"base.model={model}", "text.caption_source=a", "text.max_tokens=16")
    basis = train(tiny_config("run.steps=1", *options)).basis_file
    base = BaseModelConfig(model=model, dtype="float32")
    for output, expected in ((None, 16), (8, 8)):
        sampler = load_sampler(base, basis, ["hello"], encoder=encoder, max_tokens=output, device=CPU)
        assert sampler.captions.look_up("hello")[0].shape[0] == expected


def test_images_are_as_large_as_in_training_unless_given(tiny_config, tiny_parts):
    basis = train(tiny_config("run.steps=1", "data.resolution_px=64")).basis_file
    base = BaseModelConfig(model=str(tiny_parts / "model"), dtype="float32")
    sampler = load_sampler(base, basis, [""], encoder=str(tiny_parts / "encoder"), device=CPU)
    images = [torch.rand(1, 48, 48, 3)] * 3
    for output, side_px in ((None, 128), (0.0625, 256)):
        _, grid = sampler.generate(*images, options=SamplingOptions(steps=1, megapixels=output))
        assert grid.shape[1:3] == (side_px, side_px)


def test_a_base_that_does_not_fit_is_logged_with_the_way_out(
    tiny_parts, trained_file, triplets, tmp_path, monkeypatch, capsys
):
    def run_out(*_args, **_options):
        raise torch.OutOfMemoryError("tried to allocate more than there is")

    monkeypatch.setattr("training.base.sampler.load_transformer", run_out)
    assert run_sample(tiny_parts, trained_file, tmp_path / "out", "--triplets", str(triplets)) == 2
    assert "Add --quantize nf4" in capsys.readouterr().err
