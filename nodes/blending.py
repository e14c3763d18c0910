"""Node Blend Analogies: several coefficients → one."""

from __future__ import annotations

from typing import Any, ClassVar

from ..lorweb_core.blending import blend_coefficients, sweep_analogies
from ..lorweb_core.coefficients import Coefficients
from ..lorweb_core.errors import SettingsError
from .sockets import COEFFICIENTS

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
