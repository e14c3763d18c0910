"""The frozen encoders of a run: a collated batch of quadruplets → latents, text and query embeddings on the device.

Whole 2×2 grids go through the VAE: the latents of a grid are not its cells' latents tiled, since convolutions and
attention cross the borders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorweb_core.query import images_to_embed, join_embeddings

from ..base.text import CaptionTable
from ..base.transformer import VAE, Conditioning
from ..config.schema import GRID_QUERY_MODES
from ..data.images import to_model_range

#: Value of the guidance embedding in training (reference).
TRAINING_GUIDANCE = 1.0


@dataclass(frozen=True)
class BatchEncoder:
    """The frozen encoders of a run.

    Attributes:
        vae: of the base.
        captions: embeddings of all prompts.
        embed: the image encoder, [images, S, S, 3] float 0–1 → [images, P]; unused when `cached_embedding` is given.
        cached_embedding: image key → [P], or None.
        query_mode: which images are embedded and how they are joined.
        device: of the results.
        dtype: of text embeddings and the base.
    """

    vae: VAE
    captions: CaptionTable
    embed: Callable[[Tensor], Tensor] | None
    cached_embedding: Callable[[str], Tensor] | None
    query_mode: str
    device: torch.device
    dtype: torch.dtype

    def encode(self, batch: dict[str, Any], rows: slice) -> tuple[Tensor, Conditioning]:
        """Return latents [B, C, h, w] float32 of the grid a | a′ over b | b′, and the conditioning, of some rows.

        Args:
            batch: from `collate_quadruplets`.
            rows: which of its samples.
        """
        grids = torch.stack([batch["target"][rows], batch["context"][rows]])
        latents, context_latents = self.vae.encode(to_model_range(grids.flatten(0, 1))).to(self.device).chunk(2)
        prompt_embeds, pooled = self.captions.batch(batch["caption"][rows], self.device, self.dtype)
        conditioning = Conditioning(
            context_latents=context_latents,
            prompt_embeds=prompt_embeds,
            pooled_embeds=pooled,
            query_embedding=self.query_embeddings(batch, rows).to(self.device),
            guidance=TRAINING_GUIDANCE,
        )
        return latents, conditioning

    def query_embeddings(self, batch: dict[str, Any], rows: slice) -> Tensor:
        """Return the query embeddings [B, Q] float32 on the CPU."""
        if self.cached_embedding is not None:
            keys = batch["image_keys"][rows]
            parts = [torch.stack([self.cached_embedding(of_row[i]) for of_row in keys]) for i in range(3)]
        elif self.embed is None:
            raise RuntimeError("no image encoder was loaded although images have to be embedded")
        elif self.query_mode in GRID_QUERY_MODES:  # cut out of the context, as the nodes do
            grids = batch["context"][rows].permute(0, 2, 3, 1).float() / 255
            height, width = grids.shape[1] // 2, grids.shape[2] // 2
            cells = grids[:, :height, :width], grids[:, :height, width:], grids[:, height:, :width]
            parts = [self.embed(images) for images in images_to_embed(self.query_mode, *cells)]
            return join_embeddings(self.query_mode, parts)
        else:
            images = batch["images"][rows]  # [B, 3, S, S, 3] uint8
            parts = list(self.embed(images.flatten(0, 1).float() / 255).unflatten(0, (-1, 3)).unbind(1))
        return join_embeddings(self.query_mode, parts[:2] if self.query_mode == "ca'-ca" else parts)
