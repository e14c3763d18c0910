"""Node Preview Coefficients: a heat map and a summary on the node."""

from __future__ import annotations

import base64
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..lorweb_core.coefficient_summary import (
    CoefficientTable,
    compare,
    describe,
    describe_comparison,
    summarise,
    tabulate,
)
from ..lorweb_core.coefficients import Coefficients, count_mixes, require_whole_coefficients
from ..lorweb_core.heat_map import draw_coefficients, draw_comparison
from ..lorweb_core.images import from_pil
from ..lorweb_core.layer_names import parse_layer_name
from . import host
from .sockets import COEFFICIENTS

#: Each mix is a picture and 63 kB of numbers in the browser; the outputs have all of them.
MAX_MIXES_SHOWN = 8
_SEPARATOR = "\n\n"


class PreviewCoefficients:
    """Look at an analogy, or at what two analogies differ in."""

    DESCRIPTION = (
        "Draws the coefficients as a heat map, layer × adapter, with entropy per layer and use per adapter. Move the "
        "mouse over it for names and numbers. With a second input it shows the difference and the cosine per layer."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "preview"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("summary", "picture")
    OUTPUT_TOOLTIPS = ("Strongest adapters, evenness, and the difference.", "The heat map; one for each mix.")
    SEARCH_ALIASES: ClassVar[list[str]] = ["heat map", "plot", "compare", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets to the host."""
        return {
            "required": {"coefficients": (COEFFICIENTS, {"tooltip": "The analogy to look at."})},
            "optional": {
                "compare_with": (
                    COEFFICIENTS,
                    {"tooltip": "Another analogy of the same basis; the map then shows coefficients - compare_with."},
                )
            },
        }

    def preview(self, coefficients: Coefficients, compare_with: Coefficients | None = None) -> dict[str, Any]:
        """Return pictures, numbers for the browser, and the summary."""
        whole = require_whole_coefficients(coefficients)
        other = None if compare_with is None else require_whole_coefficients(compare_with)
        count = max(count_mixes(side) for side in (whole, other) if side is not None)
        views = [_view(whole, other, index) for index in range(count)]
        shown = views[:MAX_MIXES_SHOWN]
        texts = [view["text"] for view in views]
        text = _SEPARATOR.join(texts[: len(shown)])
        if count > len(shown):
            text = f"The first {len(shown)} of {count} mixes; the outputs have all.{_SEPARATOR}{text}"
        return {
            "ui": {
                "images": host.save_previews([view["picture"] for view in shown], "lorweb_coefficients"),
                "text": [text],
                "lorweb_heat_map": [{**view["data"], "mixes": count} for view in shown],
            },
            "result": (_SEPARATOR.join(texts), torch.stack([from_pil(view["picture"]) for view in views])),
        }


def _view(coefficients: Coefficients, other: Coefficients | None, mix: int) -> dict[str, Any]:
    """Return text, picture and the browser's data of one mix."""
    text = describe(coefficients, mix=min(mix, count_mixes(coefficients) - 1))
    if other is None:
        table = tabulate(coefficients, mix=mix)
        summary = summarise(table)
        picture = draw_coefficients(table, f"mix {mix + 1}: layer × adapter", summary=summary)
        return _pack(text, picture, table, strip=summary.entropy, strip_name="entropy")
    comparison = compare(coefficients, other, mix=mix)
    text = f"{text}\n{describe_comparison(comparison)}"
    picture = draw_comparison(comparison, f"mix {mix + 1}: coefficients - compare_with")
    return _pack(text, picture, comparison.difference, strip=comparison.cosine, strip_name="cosine")


def _pack(
    text: str, picture: Image.Image, table: CoefficientTable, *, strip: Tensor, strip_name: str
) -> dict[str, Any]:
    data = {
        "layers": list(table.layer_names),
        "parts": [parse_layer_name(name).part for name in table.layer_names],
        "basis_size": table.basis_size,
        "values": _encode_floats(table.values),
        "strip": _encode_floats(strip),
        "strip_name": strip_name,
        "is_difference": strip_name == "cosine",
    }
    return {"text": text, "picture": picture, "data": data}


def _encode_floats(values: Tensor) -> str:
    """Return numbers as base64 of little-endian float32, row by row; NaN where there is no adapter."""
    return base64.b64encode(np.ascontiguousarray(values.numpy(), dtype="<f4").tobytes()).decode("ascii")
