"""An analogy's three images → the query embedding that every layer's router takes.

Modes, with E(x) the image embedding: `cat-aa'b` [E(a), E(a'), E(b)] joined; `ca'-ca` E(a') - E(a); `ca'-ca+cb` the same
+ E(b); `aa'bb'` (or `caa'bb'`) E(grid); `caa'b` E(grid with its bottom right black); `caa'` E(upper half of the grid).
The images themselves are embedded. The reference cuts them out of the grid with one side length for both axes, which
is wrong unless the quadrants are square; `reference_crops` repeats that for comparisons. Source: the reference run,
tests/golden/query.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from .errors import ImageError, SettingsError, ShapeError
from .grid import reference_grid
from .images import MAX_ASPECT, from_pil, require_analogy, to_pil
from .preprocessing import Preprocessing, fit_image, fit_images
from .settings import RouterSettings

#: How many of a, a′, b a mode embeds as separate images; 0 for the modes that embed the grid or a part of it.
_IMAGE_COUNT = {"cat-aa'b": 3, "ca'-ca": 2, "ca'-ca+cb": 3, "aa'bb'": 0, "caa'bb'": 0, "caa'b": 0, "caa'": 0}


def images_to_embed(
    query_mode: str,
    image_a: Tensor,
    image_a_prime: Tensor,
    image_b: Tensor,
    *,
    reference_crops: bool = False,
    preprocessing: Preprocessing | None = None,
) -> list[Tensor]:
    """Return the images whose embeddings `join_embeddings` takes, in its order: batches [1 or B, H, W, 3], float 0–1.

    image_a and image_a_prime are [1 or B, H, W, C], image_b [B, H, W, C]; a pair given once stays one image where b
    does not enter.

    Args:
        reference_crops: cut the images out of the reference's grid as the reference does.
        preprocessing: when given, the images come fitted to [·, S, S, 3], so they can be embedded as one batch
            and no full-size grid is kept.
    Raises: ImageError, ShapeError: see `images.require_analogy`, and when a reference crop would be empty.
        SettingsError: for an unknown query mode.
    """
    count = _count_images(query_mode)
    analogy = require_analogy(image_a, image_a_prime, image_b)
    if count and not reference_crops:
        return [fit_images(images, preprocessing) if preprocessing else images for images in analogy[:count]]
    rows = []
    for index in range(len(image_b)):
        triplet = (to_pil(images[index if len(images) > 1 else 0]) for images in analogy)
        cuts = _cut_grid(query_mode, reference_grid(*triplet), reference_crops)
        rows.append([from_pil(fit_image(cut, preprocessing) if preprocessing else cut) for cut in cuts])
    return [torch.stack(batch) for batch in zip(*rows, strict=True)]


def join_embeddings(query_mode: str, embeddings: Sequence[Tensor]) -> Tensor:
    """Return the query embedding [B, Q], float32; Q is 3·P for `cat-aa'b`, else P.

    `embeddings` are one [1 or B, P] per entry of `images_to_embed`, not normalized. Raises ShapeError when their
    number, widths or batches do not fit, SettingsError for an unknown query mode.
    """
    count = _count_images(query_mode) or 1
    batch = max((len(embedding) for embedding in embeddings), default=0)
    shapes = [tuple(embedding.shape) for embedding in embeddings]
    widths = {shape[1] for shape in shapes if len(shape) == 2}
    if len(shapes) != count or len(widths) != 1 or any(len(s) != 2 or s[0] not in (1, batch) for s in shapes):
        raise ShapeError(
            f"Query mode {query_mode} takes {count} image embeddings [1 or B, P], but their shapes are {shapes}. "
            "Embed all images with one image encoder, one pair for all b or one pair per b."
        )
    rows = [embedding.to(torch.float32).expand(batch, -1) for embedding in embeddings]
    if query_mode == "cat-aa'b":
        return torch.cat(rows, dim=1)
    if count == 1:
        return rows[0].contiguous()
    difference = rows[1] - rows[0]
    return difference + rows[2] if count == 3 else difference


def embed_analogy(
    settings: RouterSettings,
    encode: Callable[[Tensor], Tensor],
    image_a: Tensor,
    image_a_prime: Tensor,
    image_b: Tensor,
    *,
    reference_crops: bool = False,
    preprocessing: Preprocessing | None = None,
) -> Tensor:
    """Return the query embedding [B, Q] of analogies, float32; [1, Q] when b does not enter (`ca'-ca`, one pair).

    Args:
        encode: images [n, H, W, 3], float 0–1 → image embeddings [n, P], such as `ImageEncoder.embed`.
        preprocessing: the encoder's; images of several sizes are then fitted first and encoded as one batch.
    The other arguments and the errors are those of `images_to_embed`.
    """
    batches = images_to_embed(
        settings.query_mode,
        image_a,
        image_a_prime,
        image_b,
        reference_crops=reference_crops,
        preprocessing=preprocessing,
    )
    if preprocessing is None and len({batch.shape[1:] for batch in batches}) > 1:
        return join_embeddings(settings.query_mode, [encode(batch) for batch in batches])
    embeddings = encode(torch.cat(batches))
    return join_embeddings(settings.query_mode, embeddings.split([len(batch) for batch in batches]))


def embed_once(encode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `encode` with a memory: images that come again, such as b with every pair, are encoded once."""
    known: dict[tuple[torch.Size, bytes], Tensor] = {}

    def encode_new(images: Tensor) -> Tensor:
        keys = [(image.shape, hashlib.blake2b(image.cpu().contiguous().numpy().data).digest()) for image in images]
        new = {key: position for position, key in enumerate(keys) if key not in known}
        if new:
            known.update(zip(new, encode(images[list(new.values())]), strict=True))
        return torch.stack([known[key] for key in keys])

    return encode_new


def _count_images(query_mode: str) -> int:
    if query_mode not in _IMAGE_COUNT:
        raise SettingsError(f"query_mode is {query_mode!r:.80}. Known are {', '.join(_IMAGE_COUNT)}.")
    return _IMAGE_COUNT[query_mode]


def _cut_grid(query_mode: str, grid: Image.Image, reference_crops: bool) -> list[Image.Image]:
    """Return the crops of the grid to embed.

    The reference takes half the width for both sides of every quadrant, so its b is empty from an aspect of 2:1 on,
    where it crashes.
    """
    width, height = grid.size
    half_width = width // 2
    half_height = half_width if reference_crops else height // 2
    boxes = [(0, 0, width, height)]
    if query_mode == "caa'b":
        grid.paste((0, 0, 0), (half_width, half_height, width, max(height, half_height)))
    elif query_mode == "caa'":
        boxes = [(0, 0, width, min(half_height, height))]
    elif _IMAGE_COUNT[query_mode]:
        lower = min(half_height, height)
        boxes = [(0, 0, half_width, lower), (half_width, 0, width, lower), (0, half_height, half_width, height)]
        boxes = boxes[: _IMAGE_COUNT[query_mode]]
    if any((right - left) > MAX_ASPECT * (bottom - top) for left, top, right, bottom in boxes):
        raise ImageError(
            f"With reference_crops, images must be less than twice as wide as high; from this grid of {width}×{height} "
            "px the reference would cut an empty or hair-thin b. Switch reference_crops off: the images themselves are "
            "then embedded, at any aspect."
        )
    return [grid.crop(box) for box in boxes]
