"""Node Preview Coefficients: a heat map and a summary on the node."""

from __future__ import annotations

import base64
import logging
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..lorweb_core.adjustment import PART_NAMES, adjust_coefficients
from ..lorweb_core.blending import blend_coefficients, sweep_analogies
from ..lorweb_core.coefficient_summary import (
    CoefficientTable,
    compare,
    describe,
    describe_comparison,
    summarize,
    tabulate,
)
from ..lorweb_core.coefficients import (
    Coefficients,
    count_mixes,
    describe_origin,
    require_coefficients_of,
    require_whole_coefficients,
)
from ..lorweb_core.coefficients_file import THUMBNAIL_SIDE_PX, load_coefficients, save_coefficients
from ..lorweb_core.errors import CheckpointError, SettingsError
from ..lorweb_core.heat_map import draw_coefficients, draw_comparison
from ..lorweb_core.images import from_pil
from ..lorweb_core.layer_names import parse_layer_name
from . import host
from .loaders import fingerprint_file
from .sockets import BASIS, COEFFICIENTS, LoadedBasis

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
        summary = summarize(table)
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


# Nodes Save Coefficients and Load Coefficients: an analogy as a small file.


_logger = logging.getLogger(__name__)


class SaveCoefficients:
    """Write an analogy as a file of some 0.1 MB."""

    DESCRIPTION = (
        "Writes the coefficients as a small file that others with the same basis can use without your pictures. It "
        "appears in Load Coefficients after pressing R."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file written.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["save analogy", "export", "share", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        return {
            "required": {
                "coefficients": (COEFFICIENTS, {"tooltip": "One or several mixes; all go into one file."}),
                "filename_prefix": (
                    "STRING",
                    {
                        "default": f"{host.COEFFICIENTS_FOLDER}/analogy",
                        "tooltip": "Folder and name below the output folder. Load Coefficients looks into "
                        f"{host.COEFFICIENTS_FOLDER}.",
                    },
                ),
                "note": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "dynamicPrompts": False,  # braces in a note are the user's own
                        "tooltip": "What the edit does and how strong to use it; kept in the file.",
                    },
                ),
            },
            "optional": {
                "thumbnail": (
                    "IMAGE",
                    {"tooltip": f"A result to recognize the edit by; kept in the file at {THUMBNAIL_SIDE_PX} px."},
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
    """Read an analogy from a file."""

    DESCRIPTION = (
        "Reads coefficients from models/lorweb_coefficients or output/lorweb_coefficients. They work with the basis "
        "they were made with and no other; connect it to have that checked here instead of in Apply."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "load"
    RETURN_TYPES = (COEFFICIENTS, "STRING", "IMAGE")
    RETURN_NAMES = ("coefficients", "note", "thumbnail")
    OUTPUT_TOOLTIPS = ("As they were saved.", "The sender's note.", "The file's picture; black when it has none.")
    SEARCH_ALIASES: ClassVar[list[str]] = ["load analogy", "import", "share", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        tooltip = (
            "A .safetensors file written by Save Coefficients. Where both folders have a file of one name, the plain "
            "name is the output folder's and models/… the other."
        )
        return {
            "required": {"file_name": (host.list_coefficients(), {"tooltip": tooltip})},
            "optional": {"basis": (BASIS, {"tooltip": "Check here that the file belongs to this basis."})},
        }

    @classmethod
    def IS_CHANGED(cls, file_name: str | None, basis: None = None) -> tuple[str, int, int]:
        """Reload when the file is another one.

        A name that comes over a link is not known yet: then only another name counts. Saved files get new names.
        """
        if file_name is None:
            return ("a name over a link", 0, 0)
        return fingerprint_file(host.find_coefficients(file_name))

    def load(self, file_name: str, basis: LoadedBasis | None = None) -> dict[str, Any]:
        """Return the coefficients, the note and the picture [1, H, W, 3]."""
        path = host.find_coefficients(file_name)
        if path is None:
            raise CheckpointError(
                expected=f"a coefficients file in models/{host.COEFFICIENTS_FOLDER} or the output folder's one",
                got=f"{file_name!r}, which is not there (any more)",
                remedy="Put the file there, press R to refresh the lists, and choose it again.",
            )
        file = load_coefficients(path)
        coefficients = file.coefficients
        if basis is not None:
            coefficients = require_coefficients_of(basis.basis, coefficients)
        blank = torch.zeros(THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX, 3)
        thumbnail = blank if file.thumbnail is None else from_pil(file.thumbnail)
        lines = [describe_origin(coefficients), f"From {host.describe_place(path)}"]
        namesakes = host.list_namesakes(file_name)
        if namesakes:
            lines.append(f"Another file of this name is listed as {', '.join(namesakes)}.")
        shown: dict[str, Any] = {"text": ["\n".join([*lines, file.note]).strip()]}
        if file.thumbnail is not None:
            shown["images"] = host.save_previews([file.thumbnail], "lorweb_thumbnail")
        return {"ui": shown, "result": (coefficients, file.note, thumbnail[None])}


# Node Blend Analogies: several coefficients → one.


METHODS = ("interpolate", "mean", "sum")


class BlendCoefficients:
    """Make one analogy of two to four: half of one and half of another, or several examples of one edit."""

    DESCRIPTION = (
        "Blends two to four analogies of the same basis. interpolate goes from one to the next with a slider; mean "
        "and sum take a weight for each. Weights outside of 0…1 exaggerate or take away."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "blend"
    RETURN_TYPES = (COEFFICIENTS,)
    RETURN_NAMES = ("coefficients",)
    OUTPUT_TOOLTIPS = ("The blend, for Apply Mixed LoRA, Adjust, Preview or Save.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["blend", "mix", "interpolate", "average", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        weight = {"default": 1.0, "min": -4.0, "max": 4.0, "step": 0.05}
        return {
            "required": {
                "coefficients_1": (COEFFICIENTS, {"tooltip": "First analogy. One mix goes with each mix of others."}),
                "coefficients_2": (COEFFICIENTS, {"tooltip": "Second analogy, of the same basis."}),
                "method": (
                    list(METHODS),
                    {
                        "default": "interpolate",
                        "tooltip": "interpolate: use the position. mean: weights, divided by their sum. sum: weights "
                        "as they are, so two edits at full strength are possible.",
                    },
                ),
                "position": (
                    "FLOAT",
                    {
                        "default": 0.5,
                        "min": -2.0,
                        "max": 5.0,
                        "step": 0.05,
                        "tooltip": "For interpolate: 0 is the first analogy, 1 the second, 2 the third, 3 the fourth; "
                        "between and beyond goes straight on. A fourth needs a third.",
                    },
                ),
                "weight_1": ("FLOAT", {**weight, "tooltip": "For mean and sum: weight of the first."}),
                "weight_2": ("FLOAT", {**weight, "tooltip": "For mean and sum: weight of the second."}),
            },
            "optional": {
                "coefficients_3": (COEFFICIENTS, {"tooltip": "Third analogy, if any."}),
                "weight_3": ("FLOAT", {**weight, "tooltip": "For mean and sum: weight of the third, if connected."}),
                "coefficients_4": (COEFFICIENTS, {"tooltip": "Fourth analogy, if any."}),
                "weight_4": ("FLOAT", {**weight, "tooltip": "For mean and sum: weight of the fourth, if connected."}),
                "position_end": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -2.0,
                        "max": 5.0,
                        "step": 0.05,
                        "tooltip": "For interpolate with several steps: the last position.",
                    },
                ),
                "steps": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 64,
                        "tooltip": "For interpolate: more than 1 gives one mix for each of so many positions from "
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
        offered = (
            (coefficients_1, weight_1),
            (coefficients_2, weight_2),
            (coefficients_3, weight_3),
            (coefficients_4, weight_4),
        )
        connected = [(analogy, weight) for analogy, weight in offered if analogy is not None]
        analogies = [analogy for analogy, _ in connected]
        if method == "interpolate":
            _require_no_gap([analogy is not None for analogy, _ in offered])
            return (sweep_analogies(analogies, position, position_end, steps=steps),)
        return (blend_coefficients(analogies, [weight for _, weight in connected], method=method),)


def _require_no_gap(are_connected: list[bool]) -> None:
    """Raise when an analogy comes after an empty socket: position 2 would be the fourth."""
    numbers = [number for number, is_connected in enumerate(are_connected, start=1) if is_connected]
    if numbers == list(range(1, len(numbers) + 1)):
        return
    empty = next(number for number in range(1, 5) if number not in numbers)
    raise SettingsError(
        expected="analogies in sockets without a gap, since a position counts them",
        got=f"coefficients_{', coefficients_'.join(map(str, numbers))} without coefficients_{empty}",
        remedy=f"Connect coefficients_{numbers[-1]} to coefficients_{empty} instead, or use mean or sum with weights.",
    )


# Node Adjust Coefficients: temperature, the strongest adapters only, strength by part of the model.


_PART_TOOLTIPS = {
    "modulation": "Layers that scale and shift everything (norm…linear): overall look, color, contrast.",
    "attention": "Layers that decide what looks at what: layout and reference to the example pair.",
    "mlp": "Feed-forward layers and a single block's output: texture and content.",
    "context": "Layers of the double blocks that act on the text stream.",
    "early": "First third of the double blocks and of the single blocks.",
    "middle": "Middle thirds.",
    "late": "Last thirds.",
    "double": "All double blocks (19 in FLUX.1).",
    "single": "All single blocks (38 in FLUX.1).",
}


class AdjustCoefficients:
    """Shape one analogy."""

    DESCRIPTION = (
        "Changes an analogy in this order: temperature, keep the strongest adapters, strength by part of the model. "
        "Defaults change nothing. A layer takes the product of the strengths of all parts it belongs to."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "adjust"
    RETURN_TYPES = (COEFFICIENTS,)
    RETURN_NAMES = ("coefficients",)
    OUTPUT_TOOLTIPS = ("The shaped analogy, for Apply Mixed LoRA, Blend, Preview or Save.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["temperature", "top-k", "block weight", "strength", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        strength = {"default": 1.0, "min": -4.0, "max": 4.0, "step": 0.05}
        parts = {
            name: ("FLOAT", {**strength, "tooltip": f"{_PART_TOOLTIPS[name]} 1 as encoded, 0 off."})
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
                        "tooltip": "Below 1: the strongest adapters gain. Above 1: all become more alike. 1 as "
                        "trained. Not for bases with tanh.",
                    },
                ),
                "top_k": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 4096,
                        "tooltip": "Keep this many adapters per layer, the strongest ones. 0 keeps all.",
                    },
                ),
                "renormalize": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "After top_k: scale what is kept so that each layer is as strong as before.",
                    },
                ),
                **parts,
            }
        }

    def adjust(
        self,
        coefficients: Coefficients,
        temperature: float,
        top_k: int,
        renormalize: bool,
        modulation: float,
        attention: float,
        mlp: float,
        context: float,
        early: float,
        middle: float,
        late: float,
        double: float,
        single: float,
    ) -> tuple[Coefficients]:
        """Return the adjusted coefficients."""
        strengths = (modulation, attention, mlp, context, early, middle, late, double, single)
        adjusted = adjust_coefficients(
            coefficients,
            temperature=temperature,
            top_k=top_k,
            renormalize=renormalize,
            part_strengths=dict(zip(PART_NAMES, strengths, strict=True)),
        )
        return (adjusted,)
