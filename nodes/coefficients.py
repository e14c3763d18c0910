"""Nodes on coefficients: Preview, Save, Load, Blend, Adjust."""

from __future__ import annotations

import base64
import logging
import re
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..lorweb_core.adjustment import PART_NAMES, adjust_coefficients
from ..lorweb_core.blending import blend_coefficients, sweep_analogies
from ..lorweb_core.coefficient_summary import compare, describe, describe_comparison, summarize, tabulate
from ..lorweb_core.coefficients import (
    Coefficients,
    count_mixes,
    describe_origin,
    require_coefficients_of,
    require_whole_coefficients,
)
from ..lorweb_core.coefficients_file import THUMBNAIL_SIDE_PX, load_coefficients, save_coefficients
from ..lorweb_core.errors import CheckpointError, SettingsError
from ..lorweb_core.heat_map import KIND_COLORS, PART_COLORS, color_values, draw_coefficients, draw_comparison
from ..lorweb_core.images import from_pil
from ..lorweb_core.layer_names import parse_layer_name
from . import host
from .sockets import BASIS, COEFFICIENTS, STRENGTH, LoadedBasis

#: Each mix is an image and some 200 kB of numbers and colors in the browser; the outputs have all of them.
MAX_MIXES_SHOWN = 8
_SEPARATOR = "\n\n"
_logger = logging.getLogger(__name__)


class PreviewCoefficients:
    DESCRIPTION = (
        "Shows the coefficients as a heat map, layer × adapter, with the entropy per layer and the use per adapter. "
        "Hover over it for names and numbers. With a second input it shows the difference and the cosine per layer."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "preview"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("summary", "image")
    OUTPUT_TOOLTIPS = ("Strongest adapters, entropy, and the difference.", "The heat map, one image per mix.")
    SEARCH_ALIASES: ClassVar[list[str]] = ["heat map", "plot", "compare", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"coefficients": (COEFFICIENTS, {"tooltip": "The analogy to show."})},
            "optional": {
                "compare_with": (
                    COEFFICIENTS,
                    {"tooltip": "Another analogy of the same basis; the map then shows coefficients - compare_with."},
                )
            },
        }

    def preview(self, coefficients: Coefficients, compare_with: Coefficients | None = None) -> dict[str, Any]:
        """Return images, the data of the browser's map, and the summary."""
        whole = require_whole_coefficients(coefficients)
        other = None if compare_with is None else require_whole_coefficients(compare_with)
        count = max(count_mixes(side) for side in (whole, other) if side is not None)
        views = [_view(whole, other, index, is_shown=index < MAX_MIXES_SHOWN) for index in range(count)]
        texts, images, data = zip(*views, strict=True)
        text = _SEPARATOR.join(texts[:MAX_MIXES_SHOWN])
        if count > MAX_MIXES_SHOWN:
            text = f"The first {MAX_MIXES_SHOWN} of {count} mixes; the outputs have all.{_SEPARATOR}{text}"
        return {
            "ui": {
                "images": host.save_previews(list(images[:MAX_MIXES_SHOWN]), "lorweb_coefficients"),
                "text": [text],
                "lorweb_heat_map": [{**view, "mixes": count} for view in data[:MAX_MIXES_SHOWN]],
            },
            "result": (_SEPARATOR.join(texts), torch.stack([from_pil(image) for image in images])),
        }


def _view(
    coefficients: Coefficients, other: Coefficients | None, mix: int, *, is_shown: bool
) -> tuple[str, Image.Image, dict[str, Any]]:
    """Return text, image and the browser's data of one mix: numbers for the texts, and colors as the image has them.

    The data is empty for a mix that the browser does not show.
    """
    text = describe(coefficients, mix=min(mix, count_mixes(coefficients) - 1))
    if other is None:
        table = tabulate(coefficients, mix=mix)
        summary = summarize(table)
        strip, use = summary.entropy, summary.adapter_use
        image = draw_coefficients(table, f"mix {mix + 1}: layer × adapter", summary=summary)
    else:
        comparison = compare(coefficients, other, mix=mix)
        table, strip, use = comparison.difference, comparison.cosine, comparison.adapter_use
        text = f"{text}\n{describe_comparison(comparison)}"
        image = draw_comparison(comparison, f"mix {mix + 1}: coefficients - compare_with")
    if not is_shown:
        return text, image, {}
    names = [parse_layer_name(name) for name in table.layer_names]
    edge = np.array([[KIND_COLORS[name.block_kind], PART_COLORS[name.part]] for name in names], dtype=np.uint8)
    data = {
        "layers": list(table.layer_names),
        "basis_size": table.basis_size,
        "values": _encode(table.values.numpy().astype("<f4")),  # NaN where there is no adapter
        "strip": _encode(strip.numpy().astype("<f4")),
        "use": _encode(use.numpy().astype("<f4")),
        "cell_colors": _encode(color_values(table.values, is_difference=other is not None)),  # RGB [L, N, 3]
        "edge_colors": _encode(edge),  # RGB [L, 2, 3]: block list and part
        "is_difference": other is not None,
    }
    return text, image, data


def _encode(numbers: np.ndarray) -> str:
    """Return an array as base64 of its bytes, row by row."""
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode("ascii")


class SaveCoefficients:
    DESCRIPTION = (
        "Writes the coefficients to a small file that others with the same basis can use without your images. Press R "
        "to see it in Load Coefficients."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The written file.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["save analogy", "export", "share", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        folder = host.COEFFICIENTS_FOLDER
        where = f"Folder and file name below the output folder. Load Coefficients looks in {folder}."
        return {
            "required": {
                "coefficients": (COEFFICIENTS, {"tooltip": "One or several mixes; all go into one file."}),
                "filename_prefix": ("STRING", {"default": f"{folder}/analogy", "tooltip": where}),
                "note": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "dynamicPrompts": False,  # braces in a note are the user's own
                        "tooltip": "What the edit does and which strength works; stored in the file.",
                    },
                ),
            },
            "optional": {
                "thumbnail": (
                    "IMAGE",
                    {"tooltip": f"A result, to recognize the edit; stored in the file at {THUMBNAIL_SIDE_PX} px."},
                )
            },
        }

    def save(
        self, coefficients: Coefficients, filename_prefix: str, note: str, thumbnail: Tensor | None = None
    ) -> dict[str, Any]:
        """Write one file and return its path."""
        folder, stem, counter = host.next_output_path(filename_prefix)
        path = folder / f"{stem}_{counter:05}_.safetensors"
        save_coefficients(path, coefficients, note=note, thumbnail=thumbnail)
        line = f"{path.name}: {describe_origin(coefficients)}, {path.stat().st_size / 1e3:.0f} kB"
        _logger.info("Saved coefficients %s", line)
        return {"ui": {"text": [line]}, "result": (str(path),)}


class LoadCoefficients:
    DESCRIPTION = (
        "Loads coefficients from models/lorweb_coefficients or output/lorweb_coefficients. They only work with the "
        "basis that they were made with; connect it to check that here rather than in Apply."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "load"
    RETURN_TYPES = (COEFFICIENTS, "STRING", "IMAGE")
    RETURN_NAMES = ("coefficients", "note", "thumbnail")
    OUTPUT_TOOLTIPS = ("As saved.", "The note in the file.", "The thumbnail in the file; black if it has none.")
    SEARCH_ALIASES: ClassVar[list[str]] = ["load analogy", "import", "share", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = (
            "A .safetensors file written by Save Coefficients. If both folders have a file of the same name, the plain "
            "name is the one in the output folder, and models/… is the other."
        )
        return {
            "required": {"file_name": (sorted(host.map_coefficients()), {"tooltip": tooltip})},
            "optional": {"basis": (BASIS, {"tooltip": "Check here that the file belongs to this basis."})},
        }

    @classmethod
    def IS_CHANGED(cls, file_name: str | None, basis: None = None) -> tuple[str, int, int]:
        """Reload when the file changes.

        While a linked name is unknown, only another name counts: saved files get new names.
        """
        if file_name is None:
            return ("a linked name", 0, 0)
        return host.fingerprint_file(host.map_coefficients().get(file_name))

    def load(self, file_name: str, basis: LoadedBasis | None = None) -> dict[str, Any]:
        """Return the coefficients, the note and the thumbnail [1, H, W, 3]."""
        known, kept_in = host.map_coefficients(), host.COEFFICIENTS_FOLDER
        path = known.get(file_name)
        if path is None:
            raise CheckpointError(
                f"The coefficients file {file_name!r} is not in models/{kept_in} or output/{kept_in} (any more). Put "
                "the file there, press R to refresh the lists, and choose it again."
            )
        file = load_coefficients(path)
        coefficients = file.coefficients
        if basis is not None:
            coefficients = require_coefficients_of(basis.basis, coefficients)
        start = path.parts.index(kept_in) if kept_in in path.parts else len(path.parts) - 2
        lines = [describe_origin(coefficients), f"From {'/'.join(path.parts[max(start - 1, 0) :])}"]
        namesakes = [name for name in sorted(known) if re.fullmatch(rf"models(_\d+)?/{re.escape(file_name)}", name)]
        if namesakes:
            lines.append(f"Another file of this name is listed as {', '.join(namesakes)}.")
        shown: dict[str, Any] = {"text": ["\n".join([*lines, file.note]).strip()]}
        thumbnail = torch.zeros(THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX, 3)
        if file.thumbnail is not None:
            thumbnail = from_pil(file.thumbnail)
            shown["images"] = host.save_previews([file.thumbnail], "lorweb_thumbnail")
        return {"ui": shown, "result": (coefficients, file.note, thumbnail[None])}


METHODS = ("interpolate", "mean", "sum")


class BlendCoefficients:
    DESCRIPTION = (
        "Blends two to four analogies of the same basis. interpolate goes from one to the next with a slider; mean and "
        "sum take a weight for each. Weights outside 0…1 exaggerate or subtract."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "blend"
    RETURN_TYPES = (COEFFICIENTS,)
    RETURN_NAMES = ("coefficients",)
    OUTPUT_TOOLTIPS = ("The blend, for Apply Mixed LoRA, Adjust, Preview or Save.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["blend", "mix", "interpolate", "average", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def weight(which: str) -> tuple[str, dict[str, Any]]:
            return ("FLOAT", {**STRENGTH, "tooltip": f"For mean and sum: weight of the {which}."})

        position = {"min": -2.0, "max": 5.0, "step": 0.05}
        first = "First analogy. A single mix is combined with every mix of the others."
        return {
            "required": {
                "coefficients_1": (COEFFICIENTS, {"tooltip": first}),
                "coefficients_2": (COEFFICIENTS, {"tooltip": "Second analogy, of the same basis."}),
                "method": (
                    list(METHODS),
                    {
                        "default": "interpolate",
                        "tooltip": "interpolate: use position. mean: weights, divided by their sum. sum: weights as "
                        "they are, so that two edits at full strength are possible.",
                    },
                ),
                "position": (
                    "FLOAT",
                    {
                        **position,
                        "default": 0.5,
                        "tooltip": "For interpolate: 0 is the first analogy, 1 the second, 2 the third, 3 the fourth; "
                        "other values interpolate or extrapolate. A fourth analogy needs a third.",
                    },
                ),
                "weight_1": weight("first analogy"),
                "weight_2": weight("second analogy"),
            },
            "optional": {
                "coefficients_3": (COEFFICIENTS, {"tooltip": "Third analogy, if any."}),
                "weight_3": weight("third analogy, if connected"),
                "coefficients_4": (COEFFICIENTS, {"tooltip": "Fourth analogy, if any."}),
                "weight_4": weight("fourth analogy, if connected"),
                "position_end": (
                    "FLOAT",
                    {**position, "default": 1.0, "tooltip": "For interpolate with several steps: the last position."},
                ),
                "steps": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 64,
                        "tooltip": "For interpolate: more than 1 gives one mix for each of this many positions from "
                        "position to position_end, for a latent batch of that size.",
                    },
                ),
            },
        }

    def blend(
        self,
        coefficients_1: Coefficients,
        coefficients_2: Coefficients,
        method: str,
        position: float,
        weight_1: float,
        weight_2: float,
        coefficients_3: Coefficients | None = None,
        weight_3: float = 1.0,
        coefficients_4: Coefficients | None = None,
        weight_4: float = 1.0,
        position_end: float = 1.0,
        steps: int = 1,
    ) -> tuple[Coefficients]:
        """Return the blend of all connected analogies."""
        analogies, weights = [coefficients_1, coefficients_2], [weight_1, weight_2]
        for analogy, weight in ((coefficients_3, weight_3), (coefficients_4, weight_4)):
            if analogy is not None:
                analogies.append(analogy)
                weights.append(weight)
        if method != "interpolate":
            return (blend_coefficients(analogies, weights, method=method),)
        if coefficients_3 is None and coefficients_4 is not None:
            raise SettingsError(
                "coefficients_4 is connected without coefficients_3, but a position counts the analogies without a "
                "gap. Connect coefficients_4 to coefficients_3 instead, or use mean or sum with weights."
            )
        return (sweep_analogies(analogies, position, position_end, steps=steps),)


_PART_TOOLTIPS = {
    "modulation": "Layers that scale and shift all features (norm…linear): overall look, color, contrast.",
    "attention": "Attention layers: layout, and reference to the example pair.",
    "mlp": "Feed-forward layers and the output layer of single blocks: texture and content.",
    "context": "Layers of the double blocks that process the text stream.",
    "early": "First third of the double blocks and of the single blocks.",
    "middle": "Middle thirds.",
    "late": "Last thirds.",
    "double": "All double blocks (19 in FLUX.1).",
    "single": "All single blocks (38 in FLUX.1).",
}


class AdjustCoefficients:
    DESCRIPTION = (
        "Adjusts an analogy in this order: temperature, top-k, strength per part of the model. The defaults change "
        "nothing. The strength of a layer is the product over all parts that it belongs to."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "adjust"
    RETURN_TYPES = (COEFFICIENTS,)
    RETURN_NAMES = ("coefficients",)
    OUTPUT_TOOLTIPS = ("The adjusted analogy, for Apply Mixed LoRA, Blend, Preview or Save.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["temperature", "top-k", "block weight", "strength", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        parts = {
            name: ("FLOAT", {**STRENGTH, "tooltip": f"{_PART_TOOLTIPS[name]} 1 as encoded, 0 off."})
            for name in PART_NAMES
        }
        return {
            "required": {
                "coefficients": (COEFFICIENTS, {"tooltip": "From Encode Analogy, Blend or Load."}),
                "temperature": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.05,
                        "max": 10.0,
                        "step": 0.05,
                        "tooltip": "Below 1: the strongest adapters gain. Above 1: all become more equal. 1 as "
                        "trained. Not for bases with tanh.",
                    },
                ),
                "top_k": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 4096,
                        "tooltip": "How many adapters to keep per layer, strongest first. 0 keeps all.",
                    },
                ),
                "renormalize": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "After top_k: rescale what is kept so that each layer is as strong as before.",
                    },
                ),
                **parts,
            }
        }

    def adjust(
        self, coefficients: Coefficients, temperature: float, top_k: int, renormalize: bool, **part_strengths: float
    ) -> tuple[Coefficients]:
        """Return the adjusted coefficients."""
        adjusted = adjust_coefficients(
            coefficients,
            temperature=temperature,
            top_k=top_k,
            renormalize=renormalize,
            part_strengths=part_strengths,
        )
        return (adjusted,)
