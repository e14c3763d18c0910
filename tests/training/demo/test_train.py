"""Training the demo's parts: the encoder on blocks, and a short basis run by the ordinary trainer."""

import shutil

import pytest
import torch

from lorweb_core.checkpoint import load_basis
from lorweb_core.encoder import load_image_encoder
from training.demo.analogies import draw_analogies, load_demo, stack_images
from training.demo.encoder import EMBEDDING_DIM, build_encoder, save_encoder, spread_over_blocks, train_encoder
from training.demo.scenes import MODEL_FOLDER, TEST_PHOTOS, Edit, write_dataset
from training.demo.tiny_kontext import write_diffusers_folder
from training.demo.train import basis_config
from training.train import train


def test_the_encoder_of_blocks_equals_the_encoder_of_art_pixels():
    torch.manual_seed(0)
    small = build_encoder(12, 2).eval()
    art = torch.randn(2, 3, 12, 12)
    blocks = art.repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad():
        expected = small(pixel_values=art).image_embeds
        embeddings = spread_over_blocks(small)(pixel_values=blocks).image_embeds
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4)


def test_the_encoder_folder_loads_as_any_clip_folder(tmp_path):
    save_encoder(tmp_path, train_encoder(steps=2, pairs=2))
    assert load_image_encoder(tmp_path).embed(torch.rand(1, 50, 70, 3)).shape == (1, EMBEDDING_DIM)


@pytest.mark.slow
def test_a_short_basis_run_learns_and_its_file_answers(tmp_path):
    shutil.copytree(MODEL_FOLDER, tmp_path, dirs_exist_ok=True)
    write_diffusers_folder(tmp_path / "base.safetensors", tmp_path / "kontext")
    write_dataset(tmp_path / "pairs", pairs_per_edit=3, seed=0)
    result = train(basis_config(tmp_path, "run.steps=24", "run.batch_size=8", "run.micro_batch_size=8"))
    assert sum(result.losses[-6:]) < sum(result.losses[:6])
    assert len(load_basis(result.basis_file).layers) == 7
    analogies = draw_analogies([Edit("tint", hue=3)], per_edit=1, seed=0, photos=TEST_PHOTOS)
    assert load_demo(basis_file=result.basis_file).answer(*stack_images(analogies)[:3]).shape == (1, 12, 12, 3)
