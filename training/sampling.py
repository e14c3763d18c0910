"""Noise → a picture's latents: Euler steps along the predicted flow, with FLUX's resolution-dependent shift.

    σ' = e^μ / (e^μ + 1/σ − 1),  μ linear in the number of target tokens;   x ← x + (σ_next − σ)·v(x, σ)

The same schedule as diffusers' FlowMatchEulerDiscreteScheduler with FLUX.1-Kontext's values. Source: arXiv 2403.03206.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorweb_core.preprocessing import read_json_object

#: (latents [B, C, h, w], sigmas [B]) → velocity [B, C, h, w]
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SigmaSchedule:
    """How sigmas depend on steps and picture size; names and defaults are the scheduler config's of Kontext.

    Attributes:
        use_dynamic_shifting: shift by μ, else by the constant `shift`.
        shift: of the constant form.
        base_shift: μ at `base_image_seq_len` tokens.
        max_shift: μ at `max_image_seq_len` tokens.
        base_image_seq_len: tokens.
        max_image_seq_len: tokens.
    """

    use_dynamic_shifting: bool = True
    shift: float = 3.0
    base_shift: float = 0.5
    max_shift: float = 1.15
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
    """Return the schedule of a diffusers folder's `scheduler/`, Kontext's where the file is missing or silent.

    Raises: ModelError: when the file cannot be read.
    """
    path = components / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return SigmaSchedule()
    values = read_json_object(path)
    return SigmaSchedule(**{item.name: values[item.name] for item in fields(SigmaSchedule) if item.name in values})


@torch.no_grad()
def sample_latents(
    predict: Predict,
    noise: Tensor,
    sigmas: Tensor,
    *,
    on_step: Callable[[int, Tensor], object] | None = None,
) -> Tensor:
    """Return latents [B, C, h, w] float32, from noise of that shape.

    Args:
        predict: the velocity at latents and sigmas [B].
        noise: standard normal.
        sigmas: [steps + 1], falling to 0.
        on_step: called with the number of the step (from 0) and the latents after it.
    """
    latents = noise.float()
    for index, (sigma, following) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        velocity = predict(latents, torch.full((latents.shape[0],), sigma, device=latents.device))
        latents = latents + (following - sigma) * velocity.float()
        if on_step is not None:
            on_step(index, latents)
    return latents


def target_tokens(latents: Tensor) -> int:
    """Return how many tokens latents [B, C, h, w] make."""
    return latents.shape[-2] * latents.shape[-1] // 4
