"""Cells: the few image sizes that training uses, and which of them an image gets.

All four images of a quadruplet fill cells of one size; a batch has one cell size. Cell sides are multiples of
16 px (VAE 8 × patch 2), so no transformer token straddles two cells. Bucket of an aspect: the nearest on a log scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .index import DataError

SIDE_MULTIPLE_PX = 16
#: Photographic formats, long side ÷ short side; each also upright.
_FORMATS = (1.0, 4 / 3, 3 / 2, 16 / 9)
#: Largest ratio between two aspects that is cropped away without a warning (the paper's evaluation rule).
ASPECT_TOLERANCE = 1.15


@dataclass(frozen=True, order=True)
class Cell:
    """Size of one image within the 2×2 grid, in pixels."""

    width: int
    height: int

    @property
    def aspect(self) -> float:
        """Width ÷ height."""
        return self.width / self.height


def cell_buckets(resolution_px: int) -> tuple[Cell, ...]:
    """The cell sizes of about resolution², from the most upright to the widest.

    Short side: resolution ÷ √format, rounded to 16; long side: the largest multiple of 16 that keeps the area
    within resolution². For 256: 256×256, 288×224, 304×208, 336×192 and the last three upright.

    Raises DataError unless the resolution, the side of the square cell, is a positive multiple of 16.
    """
    if resolution_px < SIDE_MULTIPLE_PX or resolution_px % SIDE_MULTIPLE_PX:
        raise DataError(
            f"The cell resolution is {resolution_px} px, not a positive multiple of {SIDE_MULTIPLE_PX}. Use 256 (the "
            "paper's 512 px grid), 384 or 512, for example."
        )
    sizes: set[tuple[int, int]] = set()
    for ratio in _FORMATS:
        short = max(1, round(resolution_px / math.sqrt(ratio) / SIDE_MULTIPLE_PX)) * SIDE_MULTIPLE_PX
        long = resolution_px**2 // short // SIDE_MULTIPLE_PX * SIDE_MULTIPLE_PX
        sizes |= {(long, short), (short, long)}
    return tuple(sorted((Cell(*size) for size in sizes), key=lambda cell: cell.aspect))


def nearest_bucket(buckets: Sequence[Cell], aspect: float) -> int:
    """Position of the cell whose aspect is nearest on a log scale; the squarer one of two equals."""

    def distance(position: int) -> tuple[float, float]:
        log_aspect = math.log(buckets[position].aspect)
        return abs(math.log(aspect) - log_aspect), abs(log_aspect)

    return min(range(len(buckets)), key=distance)


def aspects_match(first: float, second: float) -> bool:
    """Whether two aspects (width ÷ height) differ by less than 15 %, so that a center crop is acceptable."""
    return max(first, second) / min(first, second) < ASPECT_TOLERANCE


def is_odd_aspect(aspect: float) -> bool:
    """Whether an image is longer than 16:9 by 15 % or more, so that no bucket keeps its ends."""
    return not aspects_match(max(aspect, 1 / aspect), min(max(aspect, 1 / aspect), _FORMATS[-1]))
