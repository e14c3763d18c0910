"""Nodes Encode Analogy (CLIP) and Encode Many Analogies: images → the coefficients of every layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..lorweb_core.averaging import AVERAGES, average_analogies
from ..lorweb_core.coefficients import Coefficients, encode_coefficients
from ..lorweb_core.errors import ShapeError
from ..lorweb_core.images import from_pil, read_image
from ..lorweb_core.pair_folder import find_pairs
from ..lorweb_core.query import embed_analogy, embed_once
from . import host
from .sockets import BASIS, COEFFICIENTS, LoadedBasis
from .vision import ClipVision, embed_images, preprocessing_of


class EncodeAnalogy:
    DESCRIPTION = (
        "Embeds a, a' and b with the image encoder and computes how strongly each adapter of the basis is used in each "
        "layer. Several b with one pair, or with one pair per b, give one mix per b."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "encode"
    RETURN_TYPES = (COEFFICIENTS,)
    RETURN_NAMES = ("coefficients",)
    OUTPUT_TOOLTIPS = ("N numbers per layer, one for each adapter.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["analogy", "clip vision encode", "lorweb", "edit by example"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "basis": (BASIS, {"tooltip": "From Load LoRWeB Basis."}),
                "clip_vision": (
                    "CLIP_VISION",
                    {
                        "tooltip": "The image encoder that the basis was trained with: CLIP ViT-L/14 "
                        "(clip-vit-large-patch14.safetensors) for the published basis."
                    },
                ),
                "image_a": ("IMAGE", {"tooltip": "The example before the edit. One image, or one per b."}),
                "image_a_prime": ("IMAGE", {"tooltip": "The example after the edit."}),
                "image_b": ("IMAGE", {"tooltip": "The image to edit."}),
            },
            "optional": {
                "reference_crops": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Crop images for CLIP like the reference implementation, which is wrong for images "
                        "that are not square. Only for comparisons.",
                    },
                )
            },
        }

    def encode(
        self,
        basis: LoadedBasis,
        clip_vision: ClipVision,
        image_a: Tensor,
        image_a_prime: Tensor,
        image_b: Tensor,
        reference_crops: bool = False,
    ) -> tuple[Coefficients]:
        """Return the coefficients of every layer, one mix per b."""
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


class EncodeAnalogies:
    DESCRIPTION = (
        "Encodes many example pairs of one edit and averages them, so that what they share counts more than the "
        "details of a single pair. Reports how well the pairs agree and which ones are outliers."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "encode"
    INPUT_IS_LIST = True
    RETURN_TYPES = (COEFFICIENTS, "STRING")
    RETURN_NAMES = ("coefficients", "report")
    OUTPUT_TOOLTIPS = ("The average; one mix per b.", "How far each pair is from the others.")
    SEARCH_ALIASES: ClassVar[list[str]] = ["average", "many examples", "folder", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "basis": (BASIS, {"tooltip": "From Load LoRWeB Basis."}),
                "clip_vision": ("CLIP_VISION", {"tooltip": "The image encoder that the basis was trained with."}),
                "image_b": ("IMAGE", {"tooltip": "The images to edit; a batch or a list."}),
                "folder": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "A folder below ComfyUI's input folder with x_a.png and x_a_prime.png, or a/1.png "
                        "and a_prime/1.png, and so on. Empty: only the connected pairs.",
                    },
                ),
                "average": (
                    list(AVERAGES),
                    {
                        "default": "coefficients",
                        "tooltip": "coefficients: average the mixes (safe). query: average the embeddings, then run "
                        "the router once (more decisive).",
                    },
                ),
            },
            "optional": {
                "images_a": ("IMAGE", {"tooltip": "Before the edit: a batch or a list, one image per pair."}),
                "images_a_prime": ("IMAGE", {"tooltip": "After the edit, in the same order."}),
            },
        }

    @classmethod
    def IS_CHANGED(cls, folder: list[str | None], **_others: object) -> str | float:  # the host passes all inputs
        """Encode again when an image in the folder changes."""
        if folder[0] is None:  # linked, and not known yet: never the same
            return float("nan")  # a new object each time: the host takes the same object for equal
        name = folder[0].strip()
        root = host.find_input_folder(name)
        return repr([host.fingerprint_file(path) for path in sorted(root.rglob("*"))]) if name and root.is_dir() else ""

    def encode(
        self,
        basis: list[LoadedBasis],
        clip_vision: list[ClipVision],
        image_b: list[Tensor],
        folder: list[str],
        average: list[str],
        images_a: list[Tensor] | None = None,
        images_a_prime: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """Return the average of all pairs and the report."""
        before, after = (
            [image[None] for batch in batches or [] for image in batch] for batches in (images_a, images_a_prime)
        )
        if len(before) != len(after):
            raise ShapeError(
                f"images_a has {len(before)} images and images_a_prime {len(after)}. Connect both images of every "
                "pair, in the same order."
            )
        pairs: list[tuple[str, Callable[[], tuple[Tensor, Tensor]]]]  # name, and what reads the two images when needed
        pairs = [(f"pair {n}", partial(tuple, pair)) for n, pair in enumerate(zip(before, after, strict=True), start=1)]
        if folder[0].strip():
            for found in find_pairs(host.find_input_folder(folder[0])):
                pairs.append((found.name, partial(_read_pair, found.before, found.after)))
        if not pairs:
            raise ShapeError(
                "There is no example pair. Connect images_a and images_a_prime, or enter a folder below ComfyUI's "
                "input folder."
            )
        loaded, vision = basis[0], clip_vision[0]
        progress, preprocessing = host.Progress(len(pairs)), preprocessing_of(vision)
        embed = embed_once(lambda images: embed_images(vision, images, loaded.basis))  # each b with the first pair only
        queries = []
        for _, read in pairs:
            pair = read()
            embeddings = [
                embed_analogy(loaded.basis.settings, embed, *pair, batch, preprocessing=preprocessing)
                for batch in image_b
            ]
            queries.append(torch.cat(embeddings))  # [B, Q]
            progress.step()
        names = [name for name, _ in pairs]
        coefficients, spread = average_analogies(loaded.basis, queries, names=names, average=average[0])
        report = spread.describe()
        return {"ui": {"text": [report]}, "result": (coefficients, report)}


def _read_pair(before: Path, after: Path) -> tuple[Tensor, Tensor]:
    return from_pil(read_image(before))[None], from_pil(read_image(after))[None]
