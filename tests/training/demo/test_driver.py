"""The demo's driver: the encoder on blocks, a short basis run by the ordinary trainer, and what is installed."""

import shutil

import pytest
import torch

from lorweb_core.checkpoint import load_basis
from lorweb_core.encoder import load_image_encoder
from training.demo.__main__ import basis_config, install
from training.demo.analogies import draw_analogies, load_demo
from training.demo.encoder import (
    EMBEDDING_DIM,
    EncoderSettings,
    _build,
    save_encoder,
    spread_over_blocks,
    train_encoder,
)
from training.demo.scenes import MODEL_FOLDER, TEST_PHOTOS, Edit, write_dataset
from training.demo.tiny_flux import write_diffusers_folder
from training.train import train


def test_the_encoder_of_blocks_equals_the_encoder_of_art_pixels():
    torch.manual_seed(0)
    small = _build(12, 2).eval()
    art = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        wanted = small(pixel_values=art).image_embeds
        blocks = art.repeat_interleave(8, 2).repeat_interleave(8, 3)
        got = spread_over_blocks(small)(pixel_values=blocks).image_embeds
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_the_encoder_folder_loads_as_any_clip_folder(tmp_path):
    save_encoder(tmp_path, train_encoder(EncoderSettings(steps=2, pairs=2)))
    encoder = load_image_encoder(tmp_path)
    assert encoder.embed(torch.rand(1, 50, 70, 3)).shape == (1, EMBEDDING_DIM)


@pytest.mark.slow
def test_a_short_basis_run_learns_and_its_file_answers(tmp_path):
    shutil.copytree(MODEL_FOLDER, tmp_path, dirs_exist_ok=True)
    write_diffusers_folder(tmp_path / "base.safetensors", tmp_path / "kontext")
    write_dataset(tmp_path / "pairs", pairs_per_edit=3, seed=0)
    result = train(basis_config(tmp_path, "run.steps=24", "run.batch_size=8", "run.micro_batch_size=8"))
    assert sum(result.losses[-6:]) < sum(result.losses[:6])
    shutil.copyfile(result.basis_file, tmp_path / "basis.safetensors")
    install(tmp_path, tmp_path / "installed")
    assert len(load_basis(tmp_path / "installed" / "basis.safetensors").layers) == 7
    (analogy,) = draw_analogies([Edit("tint", hue=3)], per_edit=1, seed=0, photos=TEST_PHOTOS)
    pictures = [torch.from_numpy(part)[None] for part in analogy.pictures[:3]]
    assert load_demo(tmp_path / "installed").answer(*pictures).shape == (1, 12, 12, 3)
