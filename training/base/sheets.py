"""Sheets of images with names, a row per example under column heads; for validation, sampling and evaluation."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lorweb_core.images import to_pil

_GAP_PX, _LABEL_PX, _FONT_PX, _NARROWEST_PX = 6, 22, 15, 144

SheetRow = tuple[str, Sequence["Image.Image | Tensor | None"]]


def quadrants(grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return top left, top right, bottom left, bottom right of images [..., 2h, 2w, C]."""
    height, width = grid.shape[-3] // 2, grid.shape[-2] // 2
    top, bottom = grid[..., :height, :, :], grid[..., height:, :, :]
    return top[..., :width, :], top[..., width:, :], bottom[..., :width, :], bottom[..., width:, :]


def contact_sheet(columns: Sequence[str], rows: Sequence[SheetRow], *, cell_px: int | None = None) -> Image.Image:
    """Return (name, images) rows under column heads, on white; a missing image (None) leaves its cell empty.

    Args:
        columns: one head per image of a row.
        rows: images are PIL, or [h, w, 3] float 0-1, of any size.
        cell_px: the longer side of every image; by default that of the largest, at least 144 so that heads fit.
    """
    shown = [(name, [to_pil(image) if isinstance(image, Tensor) else image for image in row]) for name, row in rows]
    sizes = [image.size for _, row in shown for image in row if image is not None]
    cell_px = cell_px or max(_NARROWEST_PX, *(max(size) for size in sizes))
    scaled = [[_scaled(image, cell_px) for image in row] for _, row in shown]
    heights = [max((image.height for image in row if image is not None), default=0) for row in scaled]
    step = cell_px + _GAP_PX
    width = _GAP_PX + len(columns) * step
    sheet = Image.new("RGB", (width, _LABEL_PX + sum(heights) + len(rows) * (_LABEL_PX + _GAP_PX)), "white")
    for column, head in enumerate(columns):
        write_label(sheet, head, (_GAP_PX + column * step, 2), cell_px)
    top = _LABEL_PX
    for (name, _), row, height in zip(shown, scaled, heights, strict=True):
        write_label(sheet, name, (_GAP_PX, top + 2), width - 2 * _GAP_PX, color="dimgray")
        for column, image in enumerate(row):
            if image is not None:
                sheet.paste(image, (_GAP_PX + column * step, top + _LABEL_PX))
        top += _LABEL_PX + height + _GAP_PX
    return sheet


def write_label(
    sheet: Image.Image, text: str, corner: tuple[int, int], width_px: int, *, color: str = "black",
    font_px: int = _FONT_PX,
) -> None:  # fmt: skip
    """Write text at a top left corner, shortened by "..." to a width; Pillow's own font has ASCII characters only."""
    font, draw = ImageFont.load_default(font_px), ImageDraw.Draw(sheet)
    text = unicodedata.normalize("NFKD", text.replace("′", "'").replace("×", "x"))
    text = "".join(mark for mark in text if not unicodedata.combining(mark)).encode("ascii", "replace").decode("ascii")
    if draw.textlength(text, font=font) > width_px:
        while text and draw.textlength(f"{text}...", font=font) > width_px:
            text = text[:-1]
        text += "..."
    draw.text(corner, text, fill=color, font=font)


def _scaled(image: Image.Image | None, side_px: int) -> Image.Image | None:
    """The image with its longer side as given; small ones keep their pixels visible."""
    if image is None or max(image.size) == side_px:
        return image
    scale = side_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
