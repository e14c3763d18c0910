"""Which Linears of a FLUX transformer are trained, and putting the trained ones in their place."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn

from lorweb_core.errors import ModelError

from .linear import LoRWeBLinear

BLOCK_LISTS = ("transformer_blocks.", "single_transformer_blocks.")


def target_layers(
    transformer: nn.Module, *, include: tuple[str, ...] = ("*",), exclude: tuple[str, ...] = ()
) -> dict[str, tuple[int, int]]:
    """Return the Linears of both block types that the patterns select, name → (in, out), in the model's order.

    Raises: ModelError: when none is left.
    """
    linears = {
        name: (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(BLOCK_LISTS)
    }
    selected = {
        name: sizes for name, sizes in linears.items() if _matches(name, include) and not _matches(name, exclude)
    }
    if not selected:
        raise ModelError(
            expected="at least one Linear of the transformer blocks to match basis.include and not basis.exclude",
            got=f"{len(linears)} Linears, none selected by {list(include)} without {list(exclude)}",
            remedy='Use layer names with wildcards, such as "*.attn.*" or "single_transformer_blocks.*".',
        )
    return selected


def attach_linears(
    transformer: nn.Module,
    names: Mapping[str, tuple[int, int]],
    *,
    basis_size: int,
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, LoRWeBLinear]:
    """Replace the named Linears (name → (in, out)) by trained ones, in place, and return these by name."""
    linears = {}
    for name, (in_features, out_features) in names.items():
        parent_name, _, child = name.rpartition(".")
        parent = transformer.get_submodule(parent_name)
        linears[name] = LoRWeBLinear(
            parent.get_submodule(child), in_features, out_features,
            basis_size=basis_size, rank=rank, device=device, dtype=dtype,
        )  # fmt: skip
        parent.register_module(child, linears[name])
    return linears


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
