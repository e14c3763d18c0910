"""Three pictures → one 2×2 grid `a | a′` over `b | b`, and back from the generated grid to b′.

`build_grid` is ours: quadrants of b's aspect on the token raster, b whole, one resample per picture (antialiased
bicubic as PIL's, a = -0.5, in float; none when a size already fits), exactly undone by `undo_grid`. `reference_grid`
repeats the reference's (8 bit, everything stretched to a's size), for single-grid query modes and comparisons.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .errors import ImageError, SettingsError, ShapeError
from .images import require_analogy, require_images
from .layout import Layout, Placement, plan_layout

__all__ = ["FITS", "MEGAPIXELS_RANGE", "Layout", "build_grid", "reference_grid", "undo_grid"]

FITS = ("pad", "crop", "stretch")
MEGAPIXELS_RANGE = (0.01, 4.0)
#: A host may round the sides of a grid that it rescales; more than this is another picture.
ASPECT_TOLERANCE = 0.01


def build_grid(
    image_a: Tensor, image_a_prime: Tensor, image_b: Tensor, *, megapixels: float = 1.0, fit: str = "pad"
) -> tuple[Tensor, Layout]:
    """Return the context image for FLUX.1-Kontext and the layout that undoes it.

    b is scaled by one factor and never cropped. a and a′ share one box of b's size: cropped to b's aspect when the
    aspects differ by less than 15 %, else as `fit` says; an a′ of another size than a is first fitted to a.

    Args:
        image_a, image_a_prime: [1 or B, H, W, C], float 0–1.
        image_b: [B, H, W, C], float 0–1.
        megapixels: of the whole grid (1.0 = 1024×1024), 0.01…4.
        fit: `pad` (whole picture, edges repeated), `crop` (centre) or `stretch`.
    Returns: grid [B, 2h, 2w, 3] with device and dtype of image_b, h and w multiples of 16; its layout.
    Raises: ImageError, ShapeError: see `images.require_analogy`. SettingsError: for `megapixels` or `fit`.
    """
    _require_options(megapixels, fit)
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
    """Return b′, the bottom right quadrant of a generated grid without its padding.

    Args:
        image: [B, 2h', 2w', C], float 0–1; the layout's grid, at its own or another resolution of the same aspect.
        layout: from `build_grid`.
        restore_size: resample to b's size (one resample; none when the content has that size already).
    Returns: [B, H, W, 3]: b's size, or the size in which the content was sampled.
    Raises: ImageError: for unusable pictures. ShapeError: when the aspect is not that of the layout's grid.
    """
    image = require_images("image", image)
    scales = (image.shape[1] / layout.grid_height, image.shape[2] / layout.grid_width)
    if max(scales) > min(scales) * (1 + ASPECT_TOLERANCE):
        raise ShapeError(
            expected=f"the grid of this layout, {layout.grid_width}×{layout.grid_height} px or a multiple",
            got=f"{image.shape[2]}×{image.shape[1]} px",
            remedy="Connect the whole decoded grid, and the layout of the grid it was made from.",
        )
    top, bottom = _span(image.shape[1], layout.quadrant_height, layout.content_height)
    left, right = _span(image.shape[2], layout.quadrant_width, layout.content_width)
    content = image[:, top:bottom, left:right]
    return _resample(content, (layout.image_height, layout.image_width)) if restore_size else content.contiguous()


def reference_grid(
    image_a: Image.Image, image_a_prime: Image.Image, image_b: Image.Image, *, max_size: int | None = None
) -> Image.Image:
    """Return the grid as the reference builds it: quadrants of a's size, a′ and b stretched to it, 8 bit, bicubic.

    Args:
        max_size: when a side of the grid is longer, the grid is resized so that its longer side is this.
    Source: the reference run, tests/golden/grid.json.
    """
    quadrant = image_a.size
    width, height = 2 * quadrant[0], 2 * quadrant[1]
    grid = Image.new("RGB", (width, height))
    corners = ((0, 0), (quadrant[0], 0), (0, quadrant[1]), quadrant)
    for picture, corner in zip((image_a, image_a_prime, image_b, image_b), corners, strict=True):
        grid.paste(picture.convert("RGB").resize(quadrant, Image.Resampling.BICUBIC), corner)
    if max_size is None or max(width, height) <= max_size:
        return grid
    size = (max_size, int(height * max_size / width)) if width > height else (int(width * max_size / height), max_size)
    if min(size) < 1:
        raise ImageError(
            expected=f"a grid that keeps at least one pixel when resized to {max_size} px",
            got=f"{width}×{height} px",
            remedy="Use a larger max_size, or crop the pictures.",
        )
    return grid.resize(size, Image.Resampling.BICUBIC)


def _require_options(megapixels: float, fit: str) -> None:
    lowest, highest = MEGAPIXELS_RANGE
    if not lowest <= megapixels <= highest:  # also refuses NaN
        raise SettingsError(
            expected=f"megapixels between {lowest} and {highest}",
            got=str(megapixels),
            remedy="1.0 is what FLUX.1-Kontext was trained on; 0.25 is four times as fast.",
        )
    if fit not in FITS:
        raise SettingsError(expected=f"fit to be one of {', '.join(FITS)}", got=repr(fit), remedy="The default is pad.")


def _fill(quadrants: Tensor, images: Tensor, layout: Layout, placement: Placement | None) -> None:
    """Write pictures [1 or B, H, W, 3] into quadrants [B, h, w, 3]: placed in the content box, edges repeated."""
    images = images.to(quadrants)
    source, target = placement or (None, None)
    if source is not None:
        images = images[:, source.top : source.top + source.height, source.left : source.left + source.width]
    top, left, height, width = target or (0, 0, layout.content_height, layout.content_width)
    rows = _repeated_edges(top, height, quadrants.shape[1], images.device)
    columns = _repeated_edges(left, width, quadrants.shape[2], images.device)
    for index, picture in enumerate(images.split(1)):  # one at a time: no resized copy of the whole batch
        placed = _resample(picture, (height, width))[0]
        quadrant = placed.index_select(0, rows).index_select(1, columns)
        quadrants[index if len(images) > 1 else slice(None)] = quadrant


def _repeated_edges(start: int, length: int, total: int, device: torch.device) -> Tensor:
    """For each of `total` positions, which of the `length` pixels that begin at `start` is shown there."""
    return (torch.arange(total, device=device) - start).clamp_(0, length - 1)


def _resample(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures [B, H, W, 3] at (height, width), by antialiased bicubic in float; untouched when they have that size."""
    if tuple(images.shape[1:3]) == size:
        return images.contiguous()
    wide = images.movedim(-1, 1).to(torch.promote_types(images.dtype, torch.float32))
    resized = functional.interpolate(wide, size, mode="bicubic", antialias=True).clamp_(0, 1)
    return resized.movedim(1, -1).to(images.dtype).contiguous()


def _span(side: int, quadrant: int, content: int) -> tuple[int, int]:
    """First and last+1 pixel of the content in the second quadrant, along a grid's side of any resolution."""
    start = (side + 1) // 2  # the middle pixel of an odd side shows both quadrants
    return start, max(start + 1, round(side * (quadrant + content) / (2 * quadrant)))
