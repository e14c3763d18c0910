"""Images and tiny image encoders for tests: golden files, seeded noise, folders as users have them."""

import shutil
from pathlib import Path

import torch
from PIL import Image

from lorweb_core.images import from_pil

GOLDEN = Path(__file__).parent / "golden"


def golden_image(name):
    """Return a golden image as an 8-bit RGB image."""
    return Image.open(GOLDEN / name).convert("RGB")


def golden_tensor(name):
    """Return a golden image as [1, H, W, 3], float 0–1."""
    return from_pil(golden_image(name))[None]


def noise(height, width, *, batch=1, channels=3, seed=0):
    """Return seeded images on the 8-bit grid, [batch, height, width, channels], float 0–1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, height, width, channels), generator=generator).float() / 255


def smooth(height, width, *, batch=1):
    """Return slow color gradients, [batch, height, width, 3]: resampling them twice loses next to nothing."""
    rows = torch.linspace(0.1, 0.9, height)[:, None].expand(height, width)
    columns = torch.linspace(0.2, 0.8, width).expand(height, width)
    image = torch.stack([rows, columns, (rows + columns) / 2], dim=-1)
    return torch.stack([image * (1 - 0.1 * index) for index in range(batch)])


def write_tiny_clip(folder):
    """Write the golden CLIP vision tower (32 px, 12-d embeddings) as a model folder; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / "clip_tiny.safetensors", folder / "model.safetensors")
    shutil.copy(GOLDEN / "clip_tiny_config.json", folder / "config.json")
    shutil.copy(GOLDEN / "clip_tiny_preprocessor.json", folder / "preprocessor_config.json")
    return folder
