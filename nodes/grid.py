"""Nodes Build Analogy Grid and Crop Analogy Result: images → the 2×2 context image, and back."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..lorweb_core.grid import FITS, MEGAPIXELS_RANGE, Layout, build_grid, undo_grid
from .sockets import LAYOUT


class BuildGrid:
    DESCRIPTION = (
        "Builds the 2×2 context image: a | a' over b | b. Each quadrant has b's aspect ratio and is a multiple of "
        "16 px, so that no token covers two images. Do not add FluxKontextImageScale: it would crop the quadrants."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "build"
    RETURN_TYPES = ("IMAGE", LAYOUT, "INT", "INT")
    RETURN_NAMES = ("grid", "layout", "width", "height")
    OUTPUT_TOOLTIPS = (
        "The context image, for VAE Encode.",
        "How to undo the grid, for Crop Analogy Result.",
        "Width of the grid in px, for ModelSamplingFlux and the empty latent.",
        "Height of the grid in px.",
    )
    SEARCH_ALIASES: ClassVar[list[str]] = ["2x2", "grid", "analogy", "image stitch", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image_a": ("IMAGE", {"tooltip": "The example before the edit. One image, or one per b."}),
                "image_a_prime": ("IMAGE", {"tooltip": "The example after the edit."}),
                "image_b": ("IMAGE", {"tooltip": "The image to edit. A batch gives a batch of grids."}),
                "megapixels": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": MEGAPIXELS_RANGE[0],
                        "max": MEGAPIXELS_RANGE[1],
                        "step": 0.05,
                        "tooltip": "Size of the whole grid; b' is a quarter of it. 1.0 suits Kontext best; larger is "
                        "slower and sharper.",
                    },
                ),
                "fit": (
                    list(FITS),
                    {
                        "default": "pad",
                        "tooltip": "What to do with a and a' if their aspect ratio differs from b's by 15 % or more "
                        "(below that they are cropped). pad repeats the edges, crop trims, stretch distorts.",
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
    DESCRIPTION = "Crops the bottom right quadrant, removes the padding and resizes b' to the exact size of b."
    CATEGORY = "LoRWeB"
    FUNCTION = "crop"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image_b_prime",)
    OUTPUT_TOOLTIPS = ("b with the edit.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["crop", "quadrant", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The decoded grid."}),
                "layout": (LAYOUT, {"tooltip": "From Build Analogy Grid."}),
                "restore_size": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "Resize b' to the size of b. Off: keep the pixels as sampled."},
                ),
            }
        }

    def crop(self, image: Tensor, layout: Layout, restore_size: bool) -> tuple[Tensor]:
        """Return b' as [B, height, width, 3]."""
        return (undo_grid(image, layout, restore_size=restore_size),)
