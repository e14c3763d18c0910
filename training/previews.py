"""Pictures a person judges: per analogy one row a | a′ | b | b̂′ | b′, drawn from fixed noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_GAP_PX = 4


def quadrants(grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return top left, top right, bottom left, bottom right of pictures [..., 2h, 2w, C]."""
    height, width = grid.shape[-3] // 2, grid.shape[-2] // 2
    top, bottom = grid[..., :height, :, :], grid[..., height:, :, :]
    return top[..., :width, :], top[..., width:, :], bottom[..., :width, :], bottom[..., width:, :]


def contact_sheet(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Return rows of pictures [h, w, 3] float 0–1 as one picture on white; rows may differ in cell size."""
    strips = [_strip(row) for row in rows]
    width = max(strip.shape[1] for strip in strips)
    padded = [
        np.pad(strip, ((0, _GAP_PX), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips
    ]
    return Image.fromarray(np.concatenate(padded))


def to_picture(pixels: Tensor) -> Image.Image:
    """Return [h, w, 3] float 0–1 as an 8-bit picture, rounded."""
    return Image.fromarray(torch.round(pixels.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy())


def _strip(pictures: Sequence[Tensor]) -> np.ndarray:
    gap = np.full((pictures[0].shape[0], _GAP_PX, 3), 255, dtype=np.uint8)
    parts = [part for picture in pictures for part in (np.asarray(to_picture(picture)), gap)]
    return np.concatenate(parts[:-1], axis=1)
