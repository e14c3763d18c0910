"""Nodes Build Analogy Grid and Crop Analogy Result: pictures → the 2×2 context picture, and back."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..lorweb_core.grid import FITS, MEGAPIXELS_RANGE, Layout, build_grid, undo_grid
from .sockets import LAYOUT


class BuildGrid:
    """Lay the three pictures out as the model expects them: a | a' above b | b."""

    DESCRIPTION = (
        "Builds the 2×2 context picture a | a' over b | b. Every quadrant is a multiple of 16 px and has b's aspect, "
        "so no token straddles two pictures. Leave FluxKontextImageScale out: it would crop the quadrants."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "build"
    RETURN_TYPES = ("IMAGE", LAYOUT, "INT", "INT")
    RETURN_NAMES = ("grid", "layout", "width", "height")
    OUTPUT_TOOLTIPS = (
        "The context picture, for VAE Encode.",
        "How to undo it, for Crop Analogy Result.",
        "Width of the grid in px, for ModelSamplingFlux and the empty latent.",
        "Height of the grid in px.",
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["2x2", "grid", "analogy", "image stitch", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        return {
            "required": {
                "image_a": ("IMAGE", {"tooltip": "Before. One picture, or one for each b."}),
                "image_a_prime": ("IMAGE", {"tooltip": "After: the same picture with the edit."}),
                "image_b": ("IMAGE", {"tooltip": "The picture to edit. A batch gives a batch of grids."}),
                "megapixels": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": MEGAPIXELS_RANGE[0],
                        "max": MEGAPIXELS_RANGE[1],
                        "step": 0.05,
                        "tooltip": "Size of the whole grid; the answer is a quarter of it. 1.0 is what Kontext knows "
                        "best; more is slower and sharper.",
                    },
                ),
                "fit": (
                    list(FITS),
                    {
                        "default": "pad",
                        "tooltip": "What to do with a and a' when their aspect differs from b's by 15 % or more "
                        "(below that they are cropped). pad repeats their edges, crop trims, stretch distorts.",
                    },
                ),
            }
        }

    def build(
        self, image_a: Tensor, image_a_prime: Tensor, image_b: Tensor, megapixels: float, fit: str
    ) -> tuple[Tensor, Layout, int, int]:
        """Return the grid [B, 2h, 2w, 3], its layout, and its width and height in px."""
        grid, layout = build_grid(image_a, image_a_prime, image_b, megapixels=megapixels, fit=fit)
        return grid, layout, grid.shape[2], grid.shape[1]


class CropResult:
    """Take b' out of the sampled grid."""

    DESCRIPTION = "Crops the bottom right quadrant, removes the padding and brings b' to b's exact size."
    CATEGORY = "LoRWeB"
    FUNCTION = "crop"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image_b_prime",)
    OUTPUT_TOOLTIPS = ("b with the edit.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["crop", "quadrant", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The decoded grid."}),
                "layout": (LAYOUT, {"tooltip": "From Build Analogy Grid."}),
                "restore_size": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "Resize b' to b's size. Off: keep the pixels as they were sampled."},
                ),
            }
        }

    def crop(self, image: Tensor, layout: Layout, restore_size: bool) -> tuple[Tensor]:
        """Return b' as [B, height, width, 3]."""
        return (undo_grid(image, layout, restore_size=restore_size),)
