"""Rectified flow on grids: which sigmas are drawn, how they weigh, what is predicted, and the loss.

    x_σ = (1 − σ)·x₀ + σ·noise,   target = noise − x₀,   loss = mean( w(σ) · m(quadrant) · (prediction − target)² )

σ ∈ [0, 1]; the model's timestep is 1000·σ. Every sample's noise and sigma depend on (seed, step, its place in the
batch) alone: not on the number of processes, the micro-batch size or what ran before, which makes resuming exact.
Source of the bell: what the published trainer does in effect (README, "Differences"); the rest arXiv 2403.03206.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: The published trainer's table has 1000 timesteps 1000, 999 … 1, and its draw never reaches the last.
TABLE_SIZE = 1000
TIMESTEP_MODES = ("bell", "uniform", "logit_normal", "shifted")


@dataclass(frozen=True)
class TimestepSettings:
    """How sigmas are drawn and weighed.

    Attributes:
        mode: `bell`: uniform draw, bell-shaped weights (reference); `uniform`: weights 1; `logit_normal`: sigmoid of
            a normal draw, weights 1; `shifted`: uniform, then σ' = s·σ/(1 + (s − 1)·σ), weights 1.
        logit_mean: of the normal draw.
        logit_std: of the normal draw.
        shift: s.
    """

    mode: str = "bell"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 3.0


def sample_generator(seed: int, step: int, position: int) -> torch.Generator:
    """Return the CPU generator of one sample: the same for the same seed, step and place in the global batch."""
    digest = hashlib.blake2b(f"{seed}:{step}:{position}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw_sigma(settings: TimestepSettings, generator: torch.Generator) -> tuple[float, float]:
    """Return (sigma, weight) of one sample."""
    if settings.mode == "logit_normal":
        logit = settings.logit_mean + settings.logit_std * float(torch.randn((), generator=generator))
        return 1 / (1 + math.exp(-logit)), 1.0
    index = int(torch.randint(0, TABLE_SIZE - 1, (), generator=generator))
    sigma = (TABLE_SIZE - index) / TABLE_SIZE
    if settings.mode == "shifted":
        return settings.shift * sigma / (1 + (settings.shift - 1) * sigma), 1.0
    return sigma, float(bell_weights()[index]) if settings.mode == "bell" else 1.0


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


def _weights_like(squared: Tensor, copied_weight: float) -> Tensor:
    return quadrant_weights(squared.shape[-2], squared.shape[-1], copied_weight, device=squared.device)


def sample_losses(prediction: Tensor, target: Tensor, weights: Tensor, *, copied_weight: float = 1.0) -> Tensor:
    """Return each sample's loss [B] float32: the weighted squared error, mean over channels and positions.

    Args:
        prediction: [B, C, h, w].
        target: [B, C, h, w].
        weights: [B], w(σ).
        copied_weight: see `quadrant_weights`.
    """
    squared = (prediction.float() - target.float()) ** 2
    if copied_weight != 1.0:
        squared = squared * _weights_like(squared, copied_weight)
    return squared.flatten(1).mean(1) * weights.float()
