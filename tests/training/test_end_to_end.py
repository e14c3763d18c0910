"""Images on disk → prepare → check → train → file → the core → a generated image, by the commands that users type."""

import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lorweb_core.checkpoint import load_basis
from training.demo.tiny_kontext import write_image_pairs
from training.prepare import main as prepare
from training.sample import main as sample
from training.train import main as train

REFERENCE_NAME = re.compile(
    r"transformer\.(single_)?transformer_blocks\.\d+\..+\.(lora_A|lora_B|lora_keys|att_lora_to_q\.weight)"
)


@pytest.fixture
def base_with_tiny_autoencoder(tiny_parts, tmp_path):
    """The tiny base with an `AutoencoderTiny` in place of its `AutoencoderKL`."""
    import shutil

    from diffusers import AutoencoderTiny

    folder = tmp_path / "base"
    shutil.copytree(tiny_parts / "model", folder)
    shutil.rmtree(folder / "vae")
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(
        latent_channels=16, num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
        scaling_factor=1.0, shift_factor=0.0, **blocks,
    ).save_pretrained(folder / "vae")  # fmt: skip
    return folder


def test_from_images_to_a_generated_answer(tiny_parts, tmp_path, base_with_tiny_autoencoder, capsys):
    images, index, runs = write_image_pairs(tmp_path / "images", pairs=3), tmp_path / "pairs.jsonl", tmp_path / "runs"
    assert prepare(["folders", str(images), "--out", str(index)]) == 0
    overrides = [
        f"base.model={base_with_tiny_autoencoder}", f"encoder.model={tiny_parts / 'encoder'}", f"data.index={index}",
        f"run.folder={runs}", "text.caption_source=none", "run.steps=6", "validation.every=6", "data.workers=1",
    ]  # fmt: skip
    command = ["--config", "tiny.yaml", *overrides]
    assert train([*command, "--check"]) == 0
    assert train(command) == 0
    file = runs / "tiny" / "tiny.safetensors"
    assert all(REFERENCE_NAME.fullmatch(name) for name in load_file(file))
    assert len(load_basis(file).layers) == 20
    triplet = tmp_path / "triplets" / "one"
    triplet.mkdir(parents=True)
    for part, source in (("a", "0001_before"), ("a_prime", "0001_after"), ("b", "0002_before")):
        Image.open(images / "invert" / f"{source}.png").save(triplet / f"{part}.png")
    code = sample(
        ["--base", str(base_with_tiny_autoencoder), "--basis", str(file), "--encoder", str(tiny_parts / "encoder"),
         "--out", str(tmp_path / "results"), "--triplets", str(triplet.parent), "--megapixels", "0.05", "--steps", "2",
         "--dtype", "float32", "--device", "cpu"]
    )  # fmt: skip
    assert code == 0
    assert Image.open(tmp_path / "results" / "one.png").size == (48, 48)
    assert "error" not in capsys.readouterr().err


def test_help_shows_examples(capsys):
    assert train(["--help"]) == 0
    output = capsys.readouterr().out
    assert "python -m training.train --config paper.yaml data.index=mydata/pairs.jsonl run.name=mine\n" in output
    for part in ("--resume latest    continue", "0    success", "3    stopped by a signal", "130  interrupted"):
        assert part in output


def test_errors_end_with_one_message_and_exit_code_two(capsys):
    assert train(["--config", "tiny.yaml", "basis.basis_sise=4", "data.index=/nowhere/pairs.jsonl"]) == 2
    assert "did you mean basis_size" in capsys.readouterr().err
    assert train(["--config", "tiny.yaml", "data.index=/nowhere/pairs.jsonl", "base.model=/nowhere"]) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert "Traceback" not in output
