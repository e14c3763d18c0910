"""Collated quadruplets → what a training step takes: latents, text and query embeddings on the device.

Frozen encoders only, nothing is trained here. Pictures come as uint8 grids and as fitted encoder pictures
(`data.quadruplets`); query modes that look at the whole grid cut it out of the context, as the nodes do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorweb_core.grid import tile_2x2
from lorweb_core.query import join_embeddings, pictures_to_embed
from lorweb_core.settings import RouterSettings

from ..base.text import CaptionTable
from ..base.transformer import Codec, Conditioning
from ..data.images import to_model_range
from ..data.tensor_cache import TensorCache

# Grids → latents, on the fly or from cells kept in a cache.
#
# A grid's latents are not the tiling of its cells' latents: convolutions and the VAE's attention cross the borders. So
# grids are encoded whole by default (about 2 % of a step); tiling cached cells is an approximation to be
# asked for, exact
# only for codecs that see no neighbors. Every cell is then encoded by itself, so its latents depend on nothing else.


@dataclass(frozen=True)
class GridLatents:
    """Turns collated grids into latents.

    Attributes:
        codec: the VAE.
        cache: of single cells, or None to encode whole grids.
    """

    codec: Codec
    cache: TensorCache | None = None

    def encode(
        self, batch: dict[str, Any], rows: slice, posterior_noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return latents [B, C, h, w] float32 of target and context.

        Args:
            batch: from `collate_quadruplets`.
            rows: which samples.
            posterior_noise: [B, 2, C, h, w] to sample the VAE's posterior; None takes its mode.
        """
        if self.cache is not None:
            return self._tile_cells(batch, rows, self.cache)
        grids = torch.stack([batch["target"][rows], batch["context"][rows]], dim=1)
        noise = None if posterior_noise is None else posterior_noise.flatten(0, 1)
        latents = self.codec.encode(to_model_range(grids.flatten(0, 1)), noise=noise).unflatten(0, (-1, 2))
        return latents[:, 0], latents[:, 1]

    def flush(self) -> None:
        """Write latents that are not on disk yet."""
        if self.cache is not None:
            self.cache.flush()

    def _tile_cells(self, batch: dict[str, Any], rows: slice, cache: TensorCache) -> tuple[Tensor, Tensor]:
        targets, contexts = [], []
        for grid, (key_a, key_a_prime, key_b) in zip(batch["target"][rows], batch["image_keys"][rows], strict=True):
            height, width = grid.shape[1] // 2, grid.shape[2] // 2
            key_b_prime = key_b.removesuffix(".before") + ".after"
            cells = [
                self._encode_cell(cache, key, grid[:, y : y + height, x : x + width])
                for key, y, x in (
                    (key_a, 0, 0), (key_a_prime, 0, width), (key_b, height, 0), (key_b_prime, height, width),
                )
            ]  # fmt: skip
            a, a_prime, b, b_prime = cells
            targets.append(tile_2x2(a, a_prime, b, b_prime))
            contexts.append(tile_2x2(a, a_prime, b, b))
        return torch.stack(targets), torch.stack(contexts)

    def _encode_cell(self, cache: TensorCache, key: str, cell: Tensor) -> Tensor:
        name = f"{key}@{cell.shape[2]}x{cell.shape[1]}"
        latents = cache.get(name)
        if latents is None:
            latents = self.codec.encode(to_model_range(cell[None]))[0].cpu()
            cache.put(name, latents)
        return latents


#: [pictures, S, S, 3] float 0–1 → [pictures, P]
Embed = Callable[[Tensor], Tensor]
GRID_MODES = ("aa'bb'", "caa'bb'", "caa'b", "caa'")


@dataclass(frozen=True)
class EncodedBatch:
    """A micro-batch ready for the step.

    Attributes:
        latents: [B, C, h, w] float32 of the grid a | a′ over b | b′.
        conditioning: context, text and query for the same samples.
    """

    latents: Tensor
    conditioning: Conditioning


@dataclass(frozen=True)
class BatchEncoder:
    """The frozen encoders of a run.

    Attributes:
        grids: pixels to latents.
        captions: embeddings of all prompts.
        embed: the image encoder, or None when `cached_embedding` has everything.
        cached_embedding: picture name → [P], or None.
        settings: query mode.
        guidance: value for the guidance embedding.
        device: of the results.
        dtype: of text embeddings and the base.
    """

    grids: GridLatents
    captions: CaptionTable
    embed: Embed | None
    cached_embedding: Callable[[str], Tensor] | None
    settings: RouterSettings
    guidance: float
    device: torch.device
    dtype: torch.dtype

    def encode(self, batch: dict[str, Any], rows: slice, *, posterior_noise: Tensor | None = None) -> EncodedBatch:
        """Return some rows of a collated batch, encoded.

        Args:
            batch: from `collate_quadruplets`.
            rows: which of its samples.
            posterior_noise: [B, 2, C, h, w] to sample the VAE's posterior; None takes its mode.
        """
        latents, context_latents = self.grids.encode(batch, rows, posterior_noise)
        prompt_embeds, pooled = self.captions.batch(batch["caption"][rows], self.device, self.dtype)
        conditioning = Conditioning(
            context_latents=context_latents.to(self.device),
            prompt_embeds=prompt_embeds,
            pooled_embeds=pooled,
            query_embedding=self.query_embeddings(batch, rows).to(self.device),
            guidance=self.guidance,
        )
        return EncodedBatch(latents.to(self.device), conditioning)

    def query_embeddings(self, batch: dict[str, Any], rows: slice) -> Tensor:
        """Return the query embeddings [B, Q] float32 on the CPU."""
        mode = self.settings.query_mode
        if mode in GRID_MODES:
            return self._embed_grids(batch["context"][rows])
        if self.cached_embedding is not None:
            names = batch["image_keys"][rows]
            parts = [torch.stack([self.cached_embedding(keys[i]) for keys in names]) for i in range(3)]
        else:
            parts = list(self._embed_pictures(batch["images"][rows]))
        return join_embeddings(mode, parts[:2] if mode == "ca'-ca" else parts)

    def _embed_pictures(self, images: Tensor) -> Sequence[Tensor]:
        """[B, 3, S, S, 3] uint8 → three times [B, P], all pictures in one pass of the encoder."""
        embeddings = _required(self.embed)(images.flatten(0, 1).float() / 255)
        return embeddings.unflatten(0, (-1, 3)).unbind(1)

    def _embed_grids(self, context: Tensor) -> Tensor:
        """Embeddings of whole grids, put together again from their cells."""
        grids = context.permute(0, 2, 3, 1).float() / 255
        height, width = grids.shape[1] // 2, grids.shape[2] // 2
        cells = grids[:, :height, :width], grids[:, :height, width:], grids[:, height:, :width]
        pictures = pictures_to_embed(self.settings.query_mode, *cells)
        return join_embeddings(self.settings.query_mode, [_required(self.embed)(part) for part in pictures])


def _required(embed: Embed | None) -> Embed:
    if embed is None:
        raise RuntimeError("no image encoder was loaded although pictures have to be embedded")
    return embed
