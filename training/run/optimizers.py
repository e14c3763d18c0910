"""Which optimizer moves the basis, at which rates, and the moving average of its weights.

`adamw8bit` keeps its two moments in 8 bits (2 bytes a parameter instead of 8): bitsandbytes for float32 weights,
torchao for bfloat16 ones (stochastic rounding; needs a compiler). What does not work here gives way to plain AdamW, and
the log says so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..adapter.trainable import TrainableKontext
from ..config.schema import OptimizerConfig

logger = logging.getLogger(__name__)
_Builder = Callable[[list[dict[str, Any]], dict[str, Any]], torch.optim.Optimizer]


def build_optimizer(config: OptimizerConfig, model: TrainableKontext) -> torch.optim.Optimizer:
    """Return the optimizer over adapters and router; each group keeps its full rate as `base_rate`."""
    router_rate = config.router_learning_rate or config.learning_rate
    groups: list[dict[str, Any]] = [
        {"params": model.adapter_parameters(), "lr": config.learning_rate, "base_rate": config.learning_rate},
        {"params": model.router_parameters(), "lr": router_rate, "base_rate": router_rate},
    ]
    options = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }
    is_bfloat16 = model.adapter_parameters()[0].dtype == torch.bfloat16
    for build in _builders(config.name, is_bfloat16):
        problem = _what_stops(build, like=groups[0]["params"][0], options=options)
        if problem is None:
            return build(groups, options)
        logger.warning("optimizer.name %s: %s; trying the next one", config.name, problem)
    return _plain(groups, options)


def learning_rate_factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the factor on all rates for the update number `step` (from 0) of `steps`; a pure function."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if config.schedule == "linear" else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to factor × its full rate; returns the first group's."""
    for group in optimizer.param_groups:
        rate = group["base_rate"] * factor
        if isinstance(group["lr"], Tensor):  # torchao compiles its step and wants the tensor to stay
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    return float(optimizer.param_groups[0]["lr"])


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore an optimizer's moments; rates, decay and all other options stay as they were configured."""
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    groups = [{**saved, **own} for saved, own in zip(state["param_groups"], options, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def allow_packed_states() -> None:
    """Let checkpoints with torchao's packed moments be read; importing torchao registers their class as harmless."""
    with suppress(ImportError):
        import torchao.optim  # noqa: F401


class MovingAverage:
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
        """Go on from a saved average."""
        self.updates = int(state["updates"])
        for name, average in self.tensors.items():
            average.copy_(state["tensors"][name].detach())


def _builders(name: str, is_bfloat16: bool) -> list[_Builder]:
    if is_bfloat16:
        return [_torchao] if name == "adamw8bit" else [_torchao_full]
    return [_bitsandbytes, _torchao] if name == "adamw8bit" else []


def _what_stops(build: _Builder, *, like: Tensor, options: dict[str, Any]) -> str | None:
    """Return why an optimizer cannot be used here, from one update of a few numbers, or None.

    torchao compiles its update, for which a compiler may be missing; that would show only after the base was loaded
    and the first step done.
    """
    trial = torch.nn.Parameter(torch.zeros(2, 4096, device=like.device, dtype=like.dtype))
    trial.grad = torch.zeros_like(trial)
    try:
        build([{"params": [trial], "lr": options["lr"]}], options).step()
    except (ImportError, OSError, RuntimeError) as error:  # torch's errors of compilation are RuntimeErrors
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:150] if str(error).strip() else ''}"
    return None


def _plain(groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    is_cuda = groups[0]["params"][0].is_cuda
    return torch.optim.AdamW(groups, **options, fused=True if is_cuda else None)


def _bitsandbytes(groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit  # type: ignore[attr-defined]

    return AdamW8bit(groups, **options)


def _torchao(groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    from torchao.optim import AdamW8bit

    is_bfloat16 = groups[0]["params"][0].dtype == torch.bfloat16
    return AdamW8bit(groups, **options, bf16_stochastic_round=is_bfloat16)


def _torchao_full(groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    from torchao.optim import _AdamW

    return _AdamW(groups, **options, bf16_stochastic_round=True)
