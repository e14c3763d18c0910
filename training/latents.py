"""Grids → latents, on the fly or from cells kept in a cache.

A grid's latents are not the tiling of its cells' latents: convolutions and the VAE's attention cross the borders. So
grids are encoded whole by default (about 2 % of a step); tiling cached cells is an approximation to be asked for, exact
only for codecs that see no neighbours. Every cell is then encoded by itself, so its latents depend on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .data.cache import TensorCache
from .data.pictures import to_model_range
from .kontext import Codec


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
            targets.append(tile_cells(a, a_prime, b, b_prime))
            contexts.append(tile_cells(a, a_prime, b, b))
        return torch.stack(targets), torch.stack(contexts)

    def _encode_cell(self, cache: TensorCache, key: str, cell: Tensor) -> Tensor:
        name = f"{key}@{cell.shape[2]}x{cell.shape[1]}"
        latents = cache.get(name)
        if latents is None:
            latents = self.codec.encode(to_model_range(cell[None]))[0].cpu()
            cache.put(name, latents)
        return latents


def tile_cells(top_left: Tensor, top_right: Tensor, bottom_left: Tensor, bottom_right: Tensor) -> Tensor:
    """Return four cells [C, h, w] as one [C, 2h, 2w]."""
    return torch.cat([torch.cat([top_left, top_right], -1), torch.cat([bottom_left, bottom_right], -1)], -2)
