"""Optimizer, learning rates and EMA of the trained weights.

`adamw8bit` keeps its two moments in 8 bits (2 bytes per parameter instead of 8) and comes from bitsandbytes; where it
does not work, plain AdamW takes its place with a warning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..adapter.trainable import TrainableKontext
from ..config.schema import OptimizerConfig

logger = logging.getLogger(__name__)
#: The published trainer's.
_OPTIONS: dict[str, Any] = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.05}


def build_optimizer(config: OptimizerConfig, model: TrainableKontext) -> torch.optim.Optimizer:
    """Return the optimizer of adapters and router; each group keeps its full rate as `base_rate`."""
    router_rate = config.router_learning_rate or config.learning_rate
    adapters = model.adapter_parameters()
    groups: list[dict[str, Any]] = [
        {"params": adapters, "lr": config.learning_rate, "base_rate": config.learning_rate},
        {"params": model.router_parameters(), "lr": router_rate, "base_rate": router_rate},
    ]
    if config.name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # type: ignore[attr-defined]

            # One update of a few numbers: a build without this machine's GPU would fail only after the first step.
            trial = torch.nn.Parameter(torch.zeros(2, 4096, device=adapters[0].device))
            trial.grad = torch.zeros_like(trial)
            AdamW8bit([trial]).step()
            return AdamW8bit(groups, **_OPTIONS)
        except (ImportError, OSError, RuntimeError) as error:
            reason = next(iter(str(error).strip().splitlines()), "")[:150]
            logger.warning(
                "optimizer.name adamw8bit: %s: %s; plain AdamW is used, with 8 bytes per parameter instead of 2",
                type(error).__name__, reason,
            )  # fmt: skip
    return torch.optim.AdamW(groups, **_OPTIONS, fused=True if adapters[0].is_cuda else None)


def set_learning_rate(optimizer: torch.optim.Optimizer, schedule: str, step: int, steps: int) -> float:
    """Set every group's rate for update number `step` (from 0) of `steps`; returns the adapters' rate."""
    factor = 0.5 * (1 + math.cos(math.pi * step / steps)) if schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["base_rate"] * factor
    return float(optimizer.param_groups[0]["lr"])


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore an optimizer's moments; rates and all other options stay as configured."""
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    groups = [{**saved, **own} for saved, own in zip(state["param_groups"], options, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


class EMA:
    """Exponential moving average of the trained weights, float32, on their device.

    Args:
        state: tensors by name, as of `TrainableKontext.trained_state`; copied.
        decay: share of the old average that stays; the first updates use (1 + n)/(10 + n) when that is smaller.
    """

    def __init__(self, state: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.tensors = {name: tensor.detach().float().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor]) -> None:
        """Move towards the current weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self.tensors.items():
            average.lerp_(state[name].detach().float(), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"updates": self.updates, "tensors": self.tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a saved average."""
        self.updates = int(state["updates"])
        for name, average in self.tensors.items():
            average.copy_(state["tensors"][name].detach())
