"""Rectified flow on grids: sampling and weighting of sigmas, the prediction target, and the loss.

    x_σ = (1 − σ)·x₀ + σ·noise,   target = noise − x₀,   loss = mean( w(σ) · m(quadrant) · (prediction − target)² )

σ ∈ [0, 1]; the model's timestep is 1000·σ. Every sample's noise and sigma depend on (seed, step, its place in the
batch) alone: not on the number of processes, the micro-batch size or what ran before, which makes resuming exact.
Source of the bell: what the published trainer does in effect (docs/training.md, "Differences from the published
trainer"); the rest arXiv 2403.03206.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from lorweb_core.preprocessing import read_json_object

#: The published trainer's table has 1000 timesteps 1000, 999 … 1, and its draw never reaches the last.
TABLE_SIZE = 1000
_SHIFT = 3.0


def sample_generator(seed: int, step: int, position: int) -> torch.Generator:
    """Return the CPU generator of one sample: the same for the same seed, step and place in the global batch."""
    digest = hashlib.blake2b(f"{seed}:{step}:{position}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_sigma(mode: str, generator: torch.Generator) -> tuple[float, float]:
    """Return (sigma, weight) of one sample.

    Args:
        mode: `bell`: uniform sigmas, bell-shaped weights (reference); `uniform`: weights 1; `logit_normal`:
            sigmoid of a normal number, weights 1; `shifted`: uniform, σ' = s·σ/(1 + (s − 1)·σ) with s = 3, weights 1.
        generator: see `sample_generator`.
    """
    if mode == "logit_normal":
        return 1 / (1 + math.exp(-float(torch.randn((), generator=generator)))), 1.0
    index = int(torch.randint(0, TABLE_SIZE - 1, (), generator=generator))
    sigma = (TABLE_SIZE - index) / TABLE_SIZE
    if mode == "shifted":
        return _SHIFT * sigma / (1 + (_SHIFT - 1) * sigma), 1.0
    return sigma, float(bell_weights()[index]) if mode == "bell" else 1.0


def bell_weights() -> Tensor:
    """Return the reference's effective weights [1000] float32 by table index i (timestep 1000 − i).

    y_i = exp(−2·((i − 500)/1000)²) − min(y), scaled to mean 1: 0 at pure noise, 1.58 in the middle.
    """
    index = torch.arange(TABLE_SIZE, dtype=torch.float32)
    bell = torch.exp(-2 * ((index - TABLE_SIZE / 2) / TABLE_SIZE) ** 2)
    raised = bell - bell.min()
    return raised * (TABLE_SIZE / raised.sum())


def add_noise(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Return x_σ of latents [B, C, h, w], noise alike and sigmas [B], in float32."""
    sigma = sigmas.float().view(-1, 1, 1, 1)
    return (1 - sigma) * latents.float() + sigma * noise.float()


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """Return what the model should predict, noise − latents, in float32."""
    return noise.float() - latents.float()


def quadrant_weights(height: int, width: int, copied_weight: float, *, device: torch.device | None = None) -> Tensor:
    """Return m [h, w] with mean 1: the answer's quadrant (bottom right) against `copied_weight` elsewhere.

    The other three quadrants are in the context already; 1 weighs all alike (paper), 0 trains the answer alone.
    """
    weights = torch.full((height, width), float(copied_weight), device=device)
    weights[height // 2 :, width // 2 :] = 1.0
    return weights / weights.mean()


def sample_losses(prediction: Tensor, target: Tensor, weights: Tensor, *, copied_weight: float = 1.0) -> Tensor:
    """Return each sample's loss [B] float32: the weighted squared error, mean over channels and positions.

    `prediction` and `target` are [B, C, h, w], `weights` are w(σ) [B]; for `copied_weight` see `quadrant_weights`.
    """
    squared = (prediction.float() - target.float()) ** 2
    if copied_weight != 1.0:
        height, width = squared.shape[-2:]
        squared = squared * quadrant_weights(height, width, copied_weight, device=squared.device)
    return squared.flatten(1).mean(1) * weights.float()


# Latents ⇄ the tokens that FLUX reads: 2×2 latent positions a token. Channel order within a token is (channel, row,
# column) as in the published FLUX code and diffusers. Target tokens come first with ids (0, y, x), context tokens
# follow with ids (1, y, x); text ids are zero.
TARGET, CONTEXT = 0, 1


def pack_latents(latents: Tensor) -> Tensor:
    """Return tokens [B, (h/2)·(w/2), 4·C] of latents [B, C, h, w]; h and w even."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return latents [B, C, height, width] of tokens [B, (height/2)·(width/2), 4·C]."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // 2, w=width // 2, p=2, q=2)


def token_ids(height: int, width: int, kind: int, *, device: torch.device | None = None) -> Tensor:
    """Return float ids [(height/2)·(width/2), 3] of latents; kind is `TARGET` or `CONTEXT`."""
    rows = torch.arange(height // 2, device=device, dtype=torch.float32)
    columns = torch.arange(width // 2, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.full_like(y, float(kind)), y, x], dim=-1).flatten(0, 1)


# Noise → the latents of an image: Euler steps along the predicted flow, with FLUX's resolution-dependent shift.
#
#     σ' = e^μ / (e^μ + 1/σ − 1),  μ linear in the number of target tokens;   x ← x + (σ_next − σ)·v(x, σ)
#
# The schedule of diffusers' FlowMatchEulerDiscreteScheduler with FLUX.1-Kontext's values. Source: arXiv 2403.03206.

#: (latents [B, C, h, w], sigmas [B]) → velocity [B, C, h, w]
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SigmaSchedule:
    """How sigmas depend on steps and image size; names and defaults are the scheduler config's of Kontext."""

    use_dynamic_shifting: bool = True  # shift by μ, else by the constant `shift`
    shift: float = 3.0
    base_shift: float = 0.5  # μ at `base_image_seq_len` tokens
    max_shift: float = 1.15  # μ at `max_image_seq_len` tokens
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096

    def sigmas(self, steps: int, tokens: int) -> Tensor:
        """Return steps + 1 sigmas from 1 to 0, float32."""
        even = torch.from_numpy(np.linspace(1.0, 1 / steps, steps).astype(np.float32))
        if self.use_dynamic_shifting:
            slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
            factor = math.exp(self.base_shift + (tokens - self.base_image_seq_len) * slope)
            shifted = factor / (factor + (1 / even - 1))
        else:
            shifted = self.shift * even / (1 + (self.shift - 1) * even)
        return torch.cat([shifted, torch.zeros(1)])


def read_schedule(components: Path) -> SigmaSchedule:
    """Return the schedule of a diffusers folder's `scheduler/`, Kontext's where the file or a value is missing."""
    path = components / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return SigmaSchedule()
    values = read_json_object(path)
    return SigmaSchedule(**{item.name: values[item.name] for item in fields(SigmaSchedule) if item.name in values})


@torch.no_grad()
def sample_latents(
    predict: Predict, noise: Tensor, sigmas: Tensor, *, on_step: Callable[[Tensor], object] | None = None
) -> Tensor:
    """Return latents [B, C, h, w] float32, from standard normal noise of that shape.

    `sigmas` [steps + 1] fall to 0; `on_step` gets the latents after every step.
    """
    latents = noise.float()
    for sigma, following in pairwise(sigmas.tolist()):
        velocity = predict(latents, torch.full((latents.shape[0],), sigma, device=latents.device))
        latents = latents + (following - sigma) * velocity.float()
        if on_step is not None:
            on_step(latents)
    return latents


def target_tokens(latents: Tensor) -> int:
    """Return how many tokens latents [B, C, h, w] make."""
    return latents.shape[-2] * latents.shape[-1] // 4
