"""Pairs of image files → cells and 2×2 grids: one resize (Lanczos) of the center crop into the cell, then tiling."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lorweb_core.grid import tile_2x2
from lorweb_core.images import read_image

from .buckets import Cell
from .index import PairRecord

#: Images much larger than this are shrunk by a whole factor on reading (see `read_image`).
DECODE_AT_LEAST_PX = 1024


def load_pair(record: PairRecord, *, at_least_px: int = DECODE_AT_LEAST_PX) -> tuple[Image.Image, Image.Image]:
    """The before and after image of a pair, upright and RGB; ImageFileError when either cannot be used."""
    if not record.strip:
        before = read_image(record.before, at_least_px=at_least_px)
        return before, read_image(record.after, at_least_px=at_least_px)
    return cut_strip(read_image(record.before, at_least_px=2 * at_least_px))


def cut_strip(strip: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Left and right half, equal in width; of an odd width the middle column is left out."""
    half = max(1, strip.width // 2)
    right = max(0, strip.width - half)
    return strip.crop((0, 0, half, strip.height)), strip.crop((right, 0, right + half, strip.height))


def fit_cell(image: Image.Image, cell: Cell) -> np.ndarray:
    """The center crop of an image in the cell's aspect, resized once (Lanczos): uint8 [height, width, 3], RGB."""
    return np.asarray(ImageOps.fit(image, (cell.width, cell.height), method=Image.Resampling.LANCZOS))


def tile_grid(top_left: np.ndarray, top_right: np.ndarray, bottom_left: np.ndarray, bottom_right: np.ndarray) -> Tensor:
    """Four cells [h, w, 3] as one grid, uint8 [3, 2h, 2w]."""
    cells = (top_left, top_right, bottom_left, bottom_right)
    return tile_2x2(*(torch.from_numpy(cell.transpose(2, 0, 1).copy()) for cell in cells))


def to_model_range(grid: Tensor) -> Tensor:
    """uint8 0…255 of any shape → float32 −1…1, as the VAE takes it."""
    return grid.to(torch.float32) / 127.5 - 1.0
