"""Latents ⇄ the tokens that FLUX reads: 2×2 latent positions a token, and ids that tell context from target.

Channel order within a token is (channel, row, column) as in the published FLUX code and diffusers. Target tokens
come first with ids (0, y, x), context tokens follow with ids (1, y, x); text ids are zero.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

TARGET, CONTEXT = 0, 1


def pack_latents(latents: Tensor) -> Tensor:
    """Return tokens [B, (h/2)·(w/2), 4·C] of latents [B, C, h, w]; h and w even."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return latents [B, C, height, width] of tokens [B, (height/2)·(width/2), 4·C]."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, w=width // 2, p=2, q=2)


def token_ids(height: int, width: int, kind: int, *, device: torch.device | None = None) -> Tensor:
    """Return float ids [(height/2)·(width/2), 3] of a latent picture; kind is `TARGET` or `CONTEXT`."""
    rows = torch.arange(height // 2, device=device, dtype=torch.float32)
    columns = torch.arange(width // 2, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.full_like(y, float(kind)), y, x], dim=-1).flatten(0, 1)
