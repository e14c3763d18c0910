"""Where every picture lies in a 2×2 grid: whole pixels only, enough to undo the grid exactly.

All quadrants have one size, a multiple of 16 px (one token of FLUX.1-Kontext), and one content box of b's aspect at
their top left; the < 16 px right of it and below are padding. Placing is centred, so each axis is planned alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from .errors import ShapeError

TOKEN_PX = 16
PIXELS_PER_MEGAPIXEL = 1024 * 1024
#: Aspects that differ by less are made equal by cropping (the paper's rule), others as `fit` says.
CROP_TOLERANCE = 0.15


class Box(NamedTuple):
    """A rectangle in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class Placement(NamedTuple):
    """The part of a picture that is used, and where in the content box it goes; the rest repeats its edges."""

    source: Box
    target: Box


_PLACEMENTS = ("image_a", "image_a_prime")


@dataclass(frozen=True)
class Layout:
    """Sizes of one 2×2 grid, all in pixels.

    Attributes:
        quadrant_height, quadrant_width: a quarter of the grid; multiples of 16.
        content_height, content_width: b's picture at the top left of its quadrant; the rest is padding.
        image_height, image_width: b as it came in.
        image_a, image_a_prime: which part of a and a′ is used, and where in the content box it lies.
    """

    quadrant_height: int
    quadrant_width: int
    content_height: int
    content_width: int
    image_height: int
    image_width: int
    image_a: Placement
    image_a_prime: Placement

    @property
    def grid_height(self) -> int:
        """Height of the whole grid."""
        return 2 * self.quadrant_height

    @property
    def grid_width(self) -> int:
        """Width of the whole grid."""
        return 2 * self.quadrant_width

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as numbers and lists, ready for JSON."""
        values = asdict(self)
        for name in _PLACEMENTS:
            values[name] = {part: list(box) for part, box in zip(Placement._fields, getattr(self, name), strict=True)}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        """Return the layout that `to_dict` wrote.

        Raises: ShapeError: when an entry is missing or no whole number.
        """
        names = [field.name for field in fields(cls)]
        try:
            entries: dict[str, Any] = {name: int(values[name]) for name in names if name not in _PLACEMENTS}
            for name in _PLACEMENTS:
                entries[name] = Placement(*(Box(*map(int, values[name][part])) for part in Placement._fields))
            return cls(**entries)
        except (KeyError, TypeError, ValueError) as error:
            raise ShapeError(
                expected=f"a grid layout with {', '.join(names)}",
                got=f"{values!r:.200}",
                remedy="Connect the layout of Build Analogy Grid.",
            ) from error


def plan_layout(
    size_a: tuple[int, int], size_a_prime: tuple[int, int], size_b: tuple[int, int], *, megapixels: float, fit: str
) -> Layout:
    """Return where three pictures go in one grid.

    Args:
        size_a, size_a_prime, size_b: (height, width).
        megapixels: of the whole grid, 1024² pixels each; met to the nearest 16 px of b's longer side.
        fit: for aspects that differ by 15 % or more: `pad`, `crop` or `stretch`.
    """
    content = _content_size(size_b, megapixels * PIXELS_PER_MEGAPIXEL / 4)
    onto_content = _fit_axes(size_a, content, fit)
    onto_a = _fit_axes(size_a_prime, size_a, fit)
    composed = tuple(_compose(first, second) for first, second in zip(onto_a, onto_content, strict=True))
    return Layout(
        quadrant_height=_round_up(content[0]),
        quadrant_width=_round_up(content[1]),
        content_height=content[0],
        content_width=content[1],
        image_height=size_b[0],
        image_width=size_b[1],
        image_a=_place(onto_content, size_a, content),
        image_a_prime=_place(composed, size_a_prime, content),
    )


def _content_size(size: tuple[int, int], area: float) -> tuple[int, int]:
    """b's size in the grid: one factor for both sides, no padding along the longer one, unscaled where that is near."""
    factor = math.sqrt(area / (size[0] * size[1]))
    if all(abs(side * factor - side) <= TOKEN_PX / 2 for side in size):
        return size  # as near to the wanted area as the rounding below comes, and no pixel changes
    longer = max(size)
    factor = max(1, round(longer * factor / TOKEN_PX)) * TOKEN_PX / longer
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def _fit_axes(size: tuple[int, int], frame: tuple[int, int], fit: str) -> tuple[tuple[float, float], ...]:
    """Per axis (length used of the picture, length it gets in the frame), both centred."""
    ratios = (frame[0] / size[0], frame[1] / size[1])
    if max(ratios) / min(ratios) < 1 + CROP_TOLERANCE:
        fit = "crop"
    if fit == "stretch":
        return tuple((float(side), float(length)) for side, length in zip(size, frame, strict=True))
    factor = min(ratios) if fit == "pad" else max(ratios)
    return tuple(
        (min(side, length / factor), min(length, side * factor)) for side, length in zip(size, frame, strict=True)
    )


def _compose(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """One axis of placing a picture into a frame, and that frame into another: done at once, to resample once."""
    seen = min(first[1], second[0])  # of the first frame, what is picture and is used by the second step
    return first[0] * seen / first[1], second[1] * seen / second[0]


def _place(axes: tuple[tuple[float, float], ...], size: tuple[int, int], frame: tuple[int, int]) -> Placement:
    """Lengths rounded to whole pixels and centred; at most half a pixel off at each edge."""
    used = [min(side, max(1, round(axis[0]))) for axis, side in zip(axes, size, strict=True)]
    given = [min(side, max(1, round(axis[1]))) for axis, side in zip(axes, frame, strict=True)]
    return Placement(_centred(used, size), _centred(given, frame))


def _centred(lengths: list[int], frame: tuple[int, int]) -> Box:
    height, width = lengths
    return Box((frame[0] - height) // 2, (frame[1] - width) // 2, height, width)


def _round_up(length: int) -> int:
    return -(-length // TOKEN_PX) * TOKEN_PX
