"""Node Adjust Coefficients: temperature, the strongest adapters only, strength by part of the model."""

from __future__ import annotations

from typing import Any, ClassVar

from ..lorweb_core.adjustment import DEFAULT_PRESET, PART_NAMES, PRESETS, adjust_coefficients
from ..lorweb_core.coefficients import Coefficients
from .sockets import COEFFICIENTS

_PART_TOOLTIPS = {
    "modulation": "Layers that scale and shift everything (norm…linear): overall look, colour, contrast.",
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
                "renormalise": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "After top_k: scale what is kept so that each layer is as strong as before.",
                    },
                ),
                "preset": (
                    list(PRESETS),
                    {
                        "default": DEFAULT_PRESET,
                        "tooltip": "A named set of part strengths; multiplied with those below.",
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
        renormalise: bool,
        preset: str,
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
            renormalise=renormalise,
            part_strengths=dict(zip(PART_NAMES, strengths, strict=True)),
            preset=preset,
        )
        return (adjusted,)
