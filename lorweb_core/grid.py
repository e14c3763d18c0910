"""Three images → one 2×2 grid `a | a′` over `b | b`, and back from the generated grid to b′.

`build_grid` is ours: quadrants of b's aspect on the token raster, b whole, one resample per image (antialiased
bicubic as PIL's, a = -0.5, in float; none when a size already fits), exactly undone by `undo_grid`. `reference_grid`
repeats the reference's (8 bit, everything stretched to a's size), for single-grid query modes and comparisons.

A `Layout` holds whole pixels only, enough to undo the grid exactly: all quadrants have one size, a multiple of 16 px
(one token of FLUX.1-Kontext), and one content box of b's aspect at their top left; the < 16 px right of it and below
are padding. Placing is centered, so each axis is planned alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .errors import SettingsError, ShapeError
from .images import require_analogy, require_images

TOKEN_PX = 16
PIXELS_PER_MEGAPIXEL = 1024 * 1024
#: Aspects that differ by less are made equal by cropping (the paper's rule), others as `fit` says.
CROP_TOLERANCE = 0.15
FITS = ("pad", "crop", "stretch")
MEGAPIXELS_RANGE = (0.01, 4.0)
#: A host may round the sides of a grid that it rescales; more than this is another image.
ASPECT_TOLERANCE = 0.01


class Box(NamedTuple):
    """A rectangle in whole pixels."""

    top: int
    left: int
    height: int
    width: int


class Placement(NamedTuple):
    """The part of an image that is used, and where in the content box it goes; the rest repeats its edges."""

    source: Box
    target: Box


@dataclass(frozen=True)
class Layout:
    """Sizes of one 2×2 grid, all in pixels.

    Attributes:
        quadrant_height, quadrant_width: a quarter of the grid; multiples of 16.
        content_height, content_width: b at the top left of its quadrant; the rest is padding.
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
        """Height of the whole grid in pixels."""
        return 2 * self.quadrant_height

    @property
    def grid_width(self) -> int:
        """Width of the whole grid in pixels."""
        return 2 * self.quadrant_width


def plan_layout(
    size_a: tuple[int, int], size_a_prime: tuple[int, int], size_b: tuple[int, int], *, megapixels: float, fit: str
) -> Layout:
    """Return where three images of sizes (height, width) go in one grid.

    `megapixels` (1024² pixels each) of the whole grid are met to the nearest 16 px of b's longer side.
    """
    content = _content_size(size_b, megapixels * PIXELS_PER_MEGAPIXEL / 4)
    onto_content = _fit_axes(size_a, content, fit)
    onto_a = _fit_axes(size_a_prime, size_a, fit)
    composed = []  # a′ goes into a, and that into the content: at once, to resample once
    for (used, given), (used_of_a, given_content) in zip(onto_a, onto_content, strict=True):
        seen = min(given, used_of_a)  # of a's length, what shows a′ and is used
        composed.append((used * seen / given, given_content * seen / used_of_a))
    return Layout(
        quadrant_height=-(-content[0] // TOKEN_PX) * TOKEN_PX,
        quadrant_width=-(-content[1] // TOKEN_PX) * TOKEN_PX,
        content_height=content[0],
        content_width=content[1],
        image_height=size_b[0],
        image_width=size_b[1],
        image_a=_place(onto_content, size_a, content),
        image_a_prime=_place(composed, size_a_prime, content),
    )


def _content_size(size: tuple[int, int], area: float) -> tuple[int, int]:
    """Return b's size in the grid: one factor for both sides, no padding on the longer one, unscaled if near."""
    factor = math.sqrt(area / (size[0] * size[1]))
    if all(abs(side * factor - side) <= TOKEN_PX / 2 for side in size):
        return size  # as near to the wanted area as the rounding below comes, and no pixel changes
    longer = max(size)
    factor = max(1, round(longer * factor / TOKEN_PX)) * TOKEN_PX / longer
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def _fit_axes(size: tuple[int, int], frame: tuple[int, int], fit: str) -> list[tuple[float, float]]:
    """Per axis (length used of the image, length it gets in the frame), both centered."""
    ratios = (frame[0] / size[0], frame[1] / size[1])
    if max(ratios) / min(ratios) < 1 + CROP_TOLERANCE:
        fit = "crop"
    if fit == "stretch":
        return [(float(side), float(length)) for side, length in zip(size, frame, strict=True)]
    factor = min(ratios) if fit == "pad" else max(ratios)
    return [(min(side, length / factor), min(length, side * factor)) for side, length in zip(size, frame, strict=True)]


def _place(axes: list[tuple[float, float]], size: tuple[int, int], frame: tuple[int, int]) -> Placement:
    """Lengths rounded to whole pixels and centered; at most half a pixel off at each edge."""
    boxes = []
    for lengths, outer in (([used for used, _ in axes], size), ([given for _, given in axes], frame)):
        height, width = (min(side, max(1, round(length))) for length, side in zip(lengths, outer, strict=True))
        boxes.append(Box((outer[0] - height) // 2, (outer[1] - width) // 2, height, width))
    return Placement(*boxes)


def build_grid(
    image_a: Tensor, image_a_prime: Tensor, image_b: Tensor, *, megapixels: float = 1.0, fit: str = "pad"
) -> tuple[Tensor, Layout]:
    """Return the context image for FLUX.1-Kontext and the layout that undoes it.

    b is scaled by one factor and never cropped. a and a′ share one box of b's size: cropped to b's aspect when the
    aspects differ by less than 15 %, else as `fit` says; an a′ of another size than a is first fitted to a.

    Args:
        image_a, image_a_prime: [1 or B, H, W, C], float 0–1; image_b: [B, H, W, C].
        megapixels: of the whole grid (1.0 = 1024×1024), 0.01…4.
        fit: `pad` (whole image, edges repeated), `crop` (center) or `stretch`.
    Returns: grid [B, 2h, 2w, 3] with device and dtype of image_b, h and w multiples of 16; its layout.
    Raises: ImageError, ShapeError: see `images.require_analogy`. SettingsError: for `megapixels` or `fit`.
    """
    lowest, highest = MEGAPIXELS_RANGE
    if not lowest <= megapixels <= highest:  # also refuses NaN
        raise SettingsError(
            f"megapixels is {megapixels}, but must be between {lowest} and {highest}. 1.0 is what FLUX.1-Kontext was "
            "trained on; 0.25 is four times as fast."
        )
    if fit not in FITS:
        raise SettingsError(f"fit is {fit!r}. Known are {', '.join(FITS)}; the default is pad.")
    image_a, image_a_prime, image_b = require_analogy(image_a, image_a_prime, image_b)
    sizes = [(images.shape[1], images.shape[2]) for images in (image_a, image_a_prime, image_b)]
    layout = plan_layout(*sizes, megapixels=megapixels, fit=fit)
    height, width = layout.quadrant_height, layout.quadrant_width
    grid = image_b.new_empty(len(image_b), 2 * height, 2 * width, 3)
    _fill(grid[:, :height, :width], image_a, layout, layout.image_a)
    _fill(grid[:, :height, width:], image_a_prime, layout, layout.image_a_prime)
    _fill(grid[:, height:, :width], image_b, layout, None)
    grid[:, height:, width:] = grid[:, height:, :width]
    return grid, layout


def undo_grid(image: Tensor, layout: Layout, *, restore_size: bool = True) -> Tensor:
    """Return b′ [B, H, W, 3], the bottom right quadrant of a generated grid without its padding.

    `image` [B, 2h', 2w', C], float 0–1, is the layout's grid at its own or another resolution of the same aspect. b′
    is resampled to b's size once, or left in the size in which it was sampled (`restore_size=False`).
    Raises ImageError for unusable images, ShapeError when the aspect is not that of the layout's grid.
    """
    image = require_images("image", image)
    scales = (image.shape[1] / layout.grid_height, image.shape[2] / layout.grid_width)
    if max(scales) > min(scales) * (1 + ASPECT_TOLERANCE):
        raise ShapeError(
            f"The image is {image.shape[2]}×{image.shape[1]} px, but the grid of this layout is {layout.grid_width}×"
            f"{layout.grid_height} px or a multiple. Connect the whole decoded grid, and the layout it was made from."
        )
    top, bottom = _span(image.shape[1], layout.quadrant_height, layout.content_height)
    left, right = _span(image.shape[2], layout.quadrant_width, layout.content_width)
    content = image[:, top:bottom, left:right]
    return _resample(content, (layout.image_height, layout.image_width)) if restore_size else content.contiguous()


def tile_2x2(
    top_left: Tensor, top_right: Tensor, bottom_left: Tensor, bottom_right: Tensor, *, dims: tuple[int, int] = (-2, -1)
) -> Tensor:
    """Return four cells of one shape as one grid; `dims` are the height and the width, the last two unless stated."""
    height, width = dims
    rows = torch.cat([top_left, top_right], width), torch.cat([bottom_left, bottom_right], width)
    return torch.cat(rows, height)


def reference_grid(image_a: Image.Image, image_a_prime: Image.Image, image_b: Image.Image) -> Image.Image:
    """Return the grid as the reference builds it: quadrants of a's size, a′ and b stretched to it, 8 bit, bicubic.

    Source: the reference run, tests/golden/grid.json.
    """
    width, height = image_a.size
    grid = Image.new("RGB", (2 * width, 2 * height))
    corners = ((0, 0), (width, 0), (0, height), (width, height))
    for image, corner in zip((image_a, image_a_prime, image_b, image_b), corners, strict=True):
        grid.paste(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), corner)
    return grid


def _fill(quadrants: Tensor, images: Tensor, layout: Layout, placement: Placement | None) -> None:
    """Write images [1 or B, H, W, 3] into quadrants [B, h, w, 3]: placed in the content box, edges repeated."""
    images = images.to(quadrants)
    source, target = placement or (None, None)
    if source is not None:
        images = images[:, source.top : source.top + source.height, source.left : source.left + source.width]
    top, left, height, width = target or (0, 0, layout.content_height, layout.content_width)
    rows = _repeated_edges(top, height, quadrants.shape[1], images.device)
    columns = _repeated_edges(left, width, quadrants.shape[2], images.device)
    for index, image in enumerate(images.split(1)):  # one at a time: no resized copy of the whole batch
        placed = _resample(image, (height, width))[0]
        quadrant = placed.index_select(0, rows).index_select(1, columns)
        quadrants[index if len(images) > 1 else slice(None)] = quadrant


def _repeated_edges(start: int, length: int, total: int, device: torch.device) -> Tensor:
    """For each of `total` positions, which of the `length` pixels that begin at `start` is shown there."""
    return (torch.arange(total, device=device) - start).clamp_(0, length - 1)


def _resample(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images [B, H, W, 3] at (height, width): antialiased bicubic in float, or untouched at that size."""
    if tuple(images.shape[1:3]) == size:
        return images.contiguous()
    wide = images.movedim(-1, 1).to(torch.promote_types(images.dtype, torch.float32))
    resized = functional.interpolate(wide, size, mode="bicubic", antialias=True).clamp_(0, 1)
    return resized.movedim(1, -1).to(images.dtype).contiguous()


def _span(side: int, quadrant: int, content: int) -> tuple[int, int]:
    """First and last+1 pixel of the content in the second quadrant, along a grid's side of any resolution."""
    start = (side + 1) // 2  # the middle pixel of an odd side shows both quadrants
    return start, max(start + 1, round(side * (quadrant + content) / (2 * quadrant)))
