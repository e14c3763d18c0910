"""Node Encode Analogy (CLIP): three pictures → the coefficients of every layer."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..lorweb_core.coefficients import Coefficients, encode_coefficients
from ..lorweb_core.query import embed_analogy
from .sockets import BASIS, COEFFICIENTS, LoadedBasis
from .vision import embed_images, preprocessing_of


class EncodeAnalogy:
    """Find the point in the space of LoRAs that a : a' :: b stands for."""

    DESCRIPTION = (
        "Embeds a, a' and b with the image encoder and computes how strongly each adapter of the basis is used in "
        "each layer. Several b with one pair, or one pair for each b, give one mix for each."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "encode"
    RETURN_TYPES = (COEFFICIENTS,)
    RETURN_NAMES = ("coefficients",)
    OUTPUT_TOOLTIPS = ("For every layer N numbers, one for each adapter.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["analogy", "clip vision encode", "lorweb", "edit by example"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        return {
            "required": {
                "basis": (BASIS, {"tooltip": "From Load LoRWeB Basis."}),
                "clip_vision": (
                    "CLIP_VISION",
                    {"tooltip": "CLIP ViT-L/14 (clip_vision_l) for the published basis; the basis knows its encoder."},
                ),
                "image_a": ("IMAGE", {"tooltip": "Before. One picture, or one for each b."}),
                "image_a_prime": ("IMAGE", {"tooltip": "After: the same picture with the edit."}),
                "image_b": ("IMAGE", {"tooltip": "The picture to edit."}),
            },
            "optional": {
                "reference_crops": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Cut the pictures for CLIP as the reference implementation does, wrongly for "
                        "pictures that are not square. For comparisons only.",
                    },
                )
            },
        }

    def encode(
        self,
        basis: LoadedBasis,
        clip_vision: Any,  # noqa: ANN401 - the host's class or ours
        image_a: Tensor,
        image_a_prime: Tensor,
        image_b: Tensor,
        reference_crops: bool = False,
    ) -> tuple[Coefficients]:
        """Return the coefficients of every layer, one mix for each b."""
        query_embedding = embed_analogy(
            basis.basis.settings,
            lambda images: embed_images(clip_vision, images, basis.basis),
            image_a,
            image_a_prime,
            image_b,
            reference_crops=reference_crops,
            preprocessing=preprocessing_of(clip_vision),
        )
        return (encode_coefficients(basis.basis, query_embedding),)
