"""Coefficients as an image, drawn with PIL: heat map layer × adapter, one strip per layer, use per adapter.

    +--+---------------------+------+
    |  | layer × adapter     | strip|   left edge: block list and part of the layer; strip: entropy, or cosine of two
    +--+---------------------+------+
       | use per adapter     |
       +---------------------+

Colors: black → violet → orange → pale yellow for numbers ≥ 0; blue ← white → red for differences, whatever their
signs, and for coefficients when there are negative ones. They follow the square root of the number, so that one strong
adapter does not leave all others black.
`web/js/coefficients_heat_map.js` draws the same in the browser, with the cell and edge colors from here. It repeats
only the two colors of the bars: change them in both files.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .coefficient_summary import CoefficientTable, Comparison, Summary, summarize
from .layer_names import parse_layer_name

SEQUENTIAL = ((12, 10, 30), (87, 22, 110), (187, 55, 84), (249, 142, 9), (252, 255, 200))
DIVERGING = ((20, 60, 160), (120, 165, 220), (245, 245, 245), (235, 145, 110), (165, 20, 35))
BACKGROUND, TEXT, FAINT = (30, 31, 36), (222, 222, 226), (110, 112, 122)
KIND_COLORS = {"double": (72, 118, 190), "single": (96, 160, 96), "other": (120, 120, 120)}
PART_COLORS = {
    "modulation": (214, 160, 60),
    "attention": (190, 90, 160),
    "mlp": (90, 180, 190),
    "other": (120, 120, 120),
}

_WIDTH_PX, _MAP_HEIGHT_PX = 560, 640
_EDGE_PX, _STRIP_PX, _USE_PX, _GAP_PX, _TITLE_PX = 16, 70, 80, 6, 22


def draw_coefficients(table: CoefficientTable, title: str, *, summary: Summary | None = None) -> Image.Image:
    """Return a heat map of one mix under a title line; `summary` is computed if left out."""
    summary = summary or summarize(table)
    return _draw(table, title, strip=summary.entropy, strip_title="entropy", use=summary.adapter_use)


def draw_comparison(comparison: Comparison, title: str) -> Image.Image:
    """Return a heat map of a difference, with the cosine per layer beside it."""
    cosine, use = comparison.cosine.clamp(min=0.0), comparison.adapter_use
    return _draw(comparison.difference, title, strip=cosine, strip_title="cosine", use=use, is_difference=True)


def color_values(values: Tensor, *, is_difference: bool = False) -> np.ndarray:
    """Return colors [L, N, 3] uint8 for values [L, N]; NaN (no such adapter) has the background color.

    A difference always has two-sided colors: 0 is white, even if all numbers have one sign.
    """
    known = values.nan_to_num(0.0)
    highest = max(float(known.abs().max()), 1e-12)
    is_signed = is_difference or float(known.min()) < 0
    stops = torch.tensor(DIVERGING if is_signed else SEQUENTIAL, dtype=torch.float32)
    relative = known.sign() * (known.abs() / highest).sqrt()
    position = ((relative + 1) / 2 if is_signed else relative).clamp(0, 1) * (len(stops) - 1)
    lower = position.floor().long().clamp(max=len(stops) - 2)
    weight = (position - lower)[..., None]
    colors = stops[lower] * (1 - weight) + stops[lower + 1] * weight
    colors[values.isnan()] = torch.tensor(BACKGROUND, dtype=torch.float32)
    return colors.round().to(torch.uint8).numpy()


def _draw(
    table: CoefficientTable, title: str, *, strip: Tensor, strip_title: str, use: Tensor, is_difference: bool = False
) -> Image.Image:
    layers = len(table.layer_names)
    # A whole number of pixels per layer and per adapter, so that all cells are equally large.
    height = layers * max(1, round(_MAP_HEIGHT_PX / layers))
    width = table.basis_size * max(1, (_WIDTH_PX - _EDGE_PX - _STRIP_PX - 4 * _GAP_PX) // table.basis_size)
    left, top = 2 * _GAP_PX + _EDGE_PX, _TITLE_PX + _GAP_PX
    right = left + width + _GAP_PX
    canvas_size = (right + _STRIP_PX + _GAP_PX, top + height + 2 * _GAP_PX + _USE_PX + _TITLE_PX)
    image = Image.new("RGB", canvas_size, BACKGROUND)
    draw = ImageDraw.Draw(image)
    cells = Image.fromarray(color_values(table.values, is_difference=is_difference)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    image.paste(cells, (left, top))
    image.paste(_draw_edge(table).resize((_EDGE_PX, height), Image.Resampling.NEAREST), (_GAP_PX, top))
    image.paste(_draw_bars(strip, (_STRIP_PX, height), is_horizontal=True), (right, top))
    bars_top = top + height + _GAP_PX
    image.paste(_draw_bars(use / use.max().clamp(min=1e-12), (width, _USE_PX), is_horizontal=False), (left, bars_top))
    draw.text((_GAP_PX, 4), title, fill=TEXT)
    draw.text((right, 4), strip_title, fill=FAINT)
    low, high = (float(limit) for limit in torch.aminmax(table.values.nan_to_num(0.0)))
    footer = (
        f"adapter 0 … {table.basis_size - 1}, mean use, highest {float(use.max()):.3f}; values {low:.3g} … {high:.3g}"
    )
    draw.text((left, bars_top + _USE_PX + 4), footer, fill=FAINT)
    return image


def _draw_edge(table: CoefficientTable) -> Image.Image:
    """Two pixels per layer: its block list and its part."""
    parsed = [parse_layer_name(name) for name in table.layer_names]
    pixels = [[KIND_COLORS[name.block_kind], PART_COLORS[name.part]] for name in parsed]
    return Image.fromarray(np.array(pixels, dtype=np.uint8))


def _draw_bars(shares: Tensor, size: tuple[int, int], *, is_horizontal: bool) -> Image.Image:
    """One bar per share 0–1, from the left or from the top."""
    width, height = size
    length, count = (width, height) if is_horizontal else (height, width)
    of_pixel = torch.arange(count) * len(shares) // count
    ends = (shares[of_pixel].clamp(0, 1) * length).round()
    is_bar = torch.arange(length)[None, :] < ends[:, None]  # [count, length]
    is_bar = is_bar if is_horizontal else is_bar.t()
    ground, bar = torch.tensor((42, 43, 50), dtype=torch.uint8), torch.tensor((130, 150, 180), dtype=torch.uint8)
    return Image.fromarray(torch.where(is_bar[..., None], bar, ground).numpy())
