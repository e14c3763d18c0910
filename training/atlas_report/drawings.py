"""Pictures of the atlas as pieces of HTML: inline SVG, and PNG or JPEG in base64, so that no other file is needed."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image
from torch import Tensor

from lorweb_core.heat_map import colour_values

from .adapter_use import AdapterUse

_THUMBNAIL_PX = 72
_MAP_WIDTH_PX, _MAP_HEIGHT_PX, _MARGIN_PX = 960, 600, 24
_CELL_PX, _NAME_PX = 14, 190
_GOLDEN_ANGLE_DEGREES = 137.508
_NARROWEST_PX, _TALLEST_ROW_PX = 640, 24


def task_colour(number: int) -> str:
    """Return a CSS colour; neighbouring numbers look different."""
    hue = number * _GOLDEN_ANGLE_DEGREES % 360
    return f"hsl({hue:.0f} 65% {(42, 58, 32)[number % 3]}%)"


def thumbnail_strip(pictures: Sequence[Image.Image], caption: str) -> str:
    """Return pictures side by side as one image element."""
    side = _THUMBNAIL_PX
    strip = Image.new("RGB", (len(pictures) * (side + 2) - 2, side), "white")
    for place, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        strip.paste(small, (place * (side + 2) + (side - small.width) // 2, (side - small.height) // 2))
    file = io.BytesIO()
    strip.save(file, format="JPEG", quality=85)
    return _image(file, "jpeg", caption)


def draw_map(
    points: np.ndarray, colours: Sequence[str], titles: Sequence[str], new: Sequence[tuple[np.ndarray, str]]
) -> str:
    """Return the map as SVG; names appear when the pointer rests on a point.

    Args:
        points: [A, 2]. colours, titles: A of each.
        new: place and title of new analogies, drawn as stars.
    """
    everything = np.concatenate([points, *(place[None] for place, _ in new)])
    low, span = everything.min(0), np.maximum(np.ptp(everything, axis=0), 1e-12)
    size = np.array([_MAP_WIDTH_PX, _MAP_HEIGHT_PX]) - 2 * _MARGIN_PX

    def place_px(point: np.ndarray) -> tuple[float, float]:
        x, y = (point - low) / span * size + _MARGIN_PX
        return float(x), _MAP_HEIGHT_PX - float(y)

    lines = [f'<svg class="map" viewBox="0 0 {_MAP_WIDTH_PX} {_MAP_HEIGHT_PX}" role="img">']
    for point, colour, title in zip(points, colours, titles, strict=True):
        x, y = place_px(point)
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}">{_title(title)}</circle>')
    for point, title in new:
        x, y = place_px(point)
        lines.append(f'<text class="star" x="{x:.1f}" y="{y + 10:.1f}">★{_title(title)}</text>')
    return "\n".join([*lines, "</svg>"])


def draw_servers(use: AdapterUse, chosen: Sequence[tuple[int, int]]) -> str:
    """Return the table task × adapter as SVG: mean share of the chosen (layer, adapter) in every task."""
    values = use.of_task[:, [layer for layer, _ in chosen], [adapter for _, adapter in chosen]]
    colours = colour_values(values)
    width, height = _NAME_PX + len(chosen) * _CELL_PX, len(use.tasks) * _CELL_PX
    lines = [f'<svg class="servers" viewBox="0 0 {width} {height}" width="{width}" role="img">']
    for row, task in enumerate(use.tasks):
        top = row * _CELL_PX
        lines.append(f'<text x="{_NAME_PX - 6}" y="{top + 11}">{escape(_shorten(task))}{_title(task)}</text>')
        for column, (layer, adapter) in enumerate(chosen):
            red, green, blue = colours[row, column].tolist()
            title = f"{task}\n{use.layer_names[layer]} · adapter {adapter}: {float(values[row, column]):.1%}"
            lines.append(
                f'<rect x="{_NAME_PX + column * _CELL_PX}" y="{top}" width="{_CELL_PX - 1}" height="{_CELL_PX - 1}" '
                f'fill="rgb({red},{green},{blue})">{_title(title)}</rect>'
            )
    return "\n".join([*lines, "</svg>"])


def draw_layers(shares: Tensor, caption: str) -> str:
    """Return shares [L, N] as an image, one row per layer; NaN is background."""
    layers, width = shares.shape
    size = (max(width, _NARROWEST_PX // width * width), layers * max(1, min(_TALLEST_ROW_PX, 720 // layers)))
    picture = Image.fromarray(colour_values(shares)).resize(size, Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return _image(file, "png", caption)


def _image(file: io.BytesIO, kind: str, caption: str) -> str:
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="{escape(caption)}" title="{escape(caption)}" src="data:image/{kind};base64,{data}">'


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _shorten(text: str, length: int = 28) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
