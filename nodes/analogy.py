"""Node Encode Analogy (CLIP): three pictures → the coefficients of every layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..lorweb_core.averaging import AVERAGES, average_analogies
from ..lorweb_core.coefficients import Coefficients, encode_coefficients
from ..lorweb_core.errors import ShapeError
from ..lorweb_core.images import from_pil, read_image
from ..lorweb_core.pair_folder import PicturePair, find_pairs
from ..lorweb_core.query import embed_analogy, embed_once
from . import host
from .loaders import fingerprint_file
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


# Node Encode Many Analogies: several example pairs of one edit → their average.


#: Name, and what gives the pictures [1, H, W, C] before and after; files are read one pair at a time.
Pair = tuple[str, Callable[[], tuple[Tensor, Tensor]]]


class EncodeAnalogies:
    """Say one edit with many examples."""

    DESCRIPTION = (
        "Encodes many example pairs of one edit and averages them, so that what they have in common counts and the "
        "accidents of one pair do not. Reports how well they agree and which pairs are outliers."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "encode"
    INPUT_IS_LIST = True
    RETURN_TYPES = (COEFFICIENTS, "STRING")
    RETURN_NAMES = ("coefficients", "report")
    OUTPUT_TOOLTIPS = ("The average; one mix for each b.", "Each pair's distance from the others.")
    SEARCH_ALIASES: ClassVar[list[str]] = ["average", "many examples", "folder", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        return {
            "required": {
                "basis": (BASIS, {"tooltip": "From Load LoRWeB Basis."}),
                "clip_vision": ("CLIP_VISION", {"tooltip": "The image encoder of the basis."}),
                "image_b": ("IMAGE", {"tooltip": "The pictures to edit; a batch or a list."}),
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
                        "tooltip": "coefficients: average the mixes (safe). query: average the embeddings, then ask "
                        "the router once (more decided).",
                    },
                ),
            },
            "optional": {
                "images_a": ("IMAGE", {"tooltip": "Before: a batch or a list, one for each pair."}),
                "images_a_prime": ("IMAGE", {"tooltip": "After, in the same order."}),
            },
        }

    @classmethod
    def IS_CHANGED(
        cls,
        folder: list[str | None],
        average: object = None,
        basis: object = None,
        clip_vision: object = None,
        image_b: object = None,
        images_a: object = None,
        images_a_prime: object = None,
    ) -> str | float:
        """Encode again when a picture in the folder is another one."""
        if folder[0] is None:  # it comes from another node and is not known yet: never the same
            return float("nan")  # a new object: the host takes the same one for equal
        name = folder[0].strip()
        root = host.find_input_folder(name)
        return repr([fingerprint_file(path) for path in sorted(root.rglob("*"))]) if name and root.is_dir() else ""

    def encode(
        self,
        basis: list[LoadedBasis],
        clip_vision: list[Any],
        image_b: list[Tensor],
        folder: list[str],
        average: list[str],
        images_a: list[Tensor] | None = None,
        images_a_prime: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """Return the average of all pairs and the report."""
        pairs = [*_connected_pairs(images_a or [], images_a_prime or []), *_pairs_of_folder(folder[0].strip())]
        if not pairs:
            raise ShapeError(
                expected="at least one example pair a, a'",
                got="neither connected pictures nor a folder",
                remedy="Connect images_a and images_a_prime, or name a folder below ComfyUI's input folder.",
            )
        loaded = basis[0]
        queries = _embed_pairs(loaded, clip_vision[0], pairs, image_b)
        names = [name for name, _ in pairs]
        coefficients, spread = average_analogies(loaded.basis, queries, names=names, average=average[0])
        report = spread.describe()
        return {"ui": {"text": [report]}, "result": (coefficients, report)}


def _connected_pairs(images_a: list[Tensor], images_a_prime: list[Tensor]) -> list[Pair]:
    before = [picture[None] for batch in images_a for picture in batch]
    after = [picture[None] for batch in images_a_prime for picture in batch]
    if len(before) != len(after):
        raise ShapeError(
            expected="as many pictures in images_a as in images_a_prime",
            got=f"{len(before)} and {len(after)}",
            remedy="Connect both halves of every pair, in the same order.",
        )
    pairs = zip(before, after, strict=True)
    return [(f"pair {index + 1}", partial(tuple, pictures)) for index, pictures in enumerate(pairs)]


def _pairs_of_folder(name: str) -> list[Pair]:
    if not name:
        return []
    return [(pair.name, partial(_read_pair, pair)) for pair in find_pairs(host.find_input_folder(name))]


def _read_pair(pair: PicturePair) -> tuple[Tensor, Tensor]:
    return from_pil(read_image(pair.before))[None], from_pil(read_image(pair.after))[None]


def _embed_pairs(loaded: LoadedBasis, clip_vision: Any, pairs: list[Pair], image_b: list[Tensor]) -> list[Tensor]:  # noqa: ANN401
    """Return each pair's query embedding [B, Q] with all pictures b, which are embedded with the first pair only."""
    progress, fit = host.Progress(len(pairs)), preprocessing_of(clip_vision)
    embed = embed_once(lambda images: embed_images(clip_vision, images, loaded.basis))
    queries = []
    for _, read in pairs:
        pair = read()
        with_each = [embed_analogy(loaded.basis.settings, embed, *pair, batch, preprocessing=fit) for batch in image_b]
        queries.append(torch.cat(with_each))
        progress.step()
    return queries
