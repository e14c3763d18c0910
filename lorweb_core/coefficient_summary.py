"""Coefficients in numbers and words: which adapters are used, how evenly, and how two analogies differ.

With p_n = |c_n| / Σ_m |c_m| per layer: use of adapter n = mean of p_n over layers; entropy H = -Σ_n p_n · log p_n;
effective adapters = exp(H), from 1 (one alone) to N (uniform); distance from uniform = ½ · Σ_n |p_n - 1/N|.
Layers with no coefficient but zeros (a part that was switched off) do not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .blending import require_one_origin
from .coefficients import Coefficients, count_mixes, name_of_basis
from .errors import ShapeError
from .layer_names import sort_layer_names

_NAMED_ADAPTERS = 5
_NAMED_LAYERS = 3


@dataclass(frozen=True, eq=False)
class CoefficientTable:
    """One mix as L layers in computing order; values are [L, N], NaN where a layer has fewer adapters."""

    layer_names: tuple[str, ...]
    values: Tensor

    @property
    def basis_size(self) -> int:
        """N of the widest layer."""
        return self.values.shape[1]


@dataclass(frozen=True, eq=False)
class Summary:
    """Numbers about one mix; a layer of zeros is switched off."""

    adapter_use: Tensor  # [N], mean share of each adapter over the layers that are on
    effective_adapters: Tensor  # [L], 0 for a layer that is off
    entropy: Tensor  # [L], as a share of log N, 0–1
    distance_from_uniform: float  # mean over the layers that are on, 0 … 1 - 1/N; NaN if none is
    layers_off: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """The difference of two mixes."""

    difference: CoefficientTable  # first - second
    cosine: Tensor  # [L], between the two layers; 0 where one is all zeros, NaN where both are
    adapter_use: Tensor  # [N], mean |difference| of each adapter over the layers
    distance: float  # mean over layers of ½ · Σ|difference|


def tabulate(coefficients: Mapping[str, Any], *, mix: int = 0) -> CoefficientTable:
    """Return one mix of checked coefficients, layers in computing order. ShapeError for a missing mix."""
    batch = count_mixes(coefficients)
    if not 0 <= mix < batch:
        raise ShapeError(
            f"There is no mix {mix}: these coefficients have {batch}, counted from 0. Choose 0 … {batch - 1}."
        )
    names = sort_layer_names(coefficients["layers"])
    rows = [coefficients["layers"][name][mix] for name in names]
    return CoefficientTable(tuple(names), pad_sequence(rows, batch_first=True, padding_value=math.nan))


def summarize(table: CoefficientTable) -> Summary:
    """Return use, entropy and distance from uniform of one mix."""
    magnitude = table.values.abs().nan_to_num(0.0)
    amount = magnitude.sum(1, keepdim=True)
    is_on = amount[:, 0] > 0
    share = torch.where(amount > 0, magnitude / amount, 0.0)
    sizes = (~table.values.isnan()).sum(1)
    nats = -torch.special.xlogy(share, share).sum(1)
    uniform = torch.where(table.values.isnan(), 0.0, 1.0 / sizes[:, None])
    distance = 0.5 * (share - uniform).abs().sum(1)
    on_count = int(is_on.sum())
    return Summary(
        adapter_use=share.sum(0) / max(on_count, 1),
        effective_adapters=torch.where(is_on, nats.exp(), 0.0),
        entropy=torch.where(sizes > 1, nats / sizes.clamp(min=2).log(), 0.0),
        distance_from_uniform=float(distance[is_on].mean()) if on_count else math.nan,
        layers_off=int((~is_on).sum()),
    )


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, mix: int = 0) -> Comparison:
    """Return how two analogies of one basis differ in one mix; an analogy with a single mix is used for all.

    Errors as `tabulate` and `blending.require_one_origin`.
    """
    batch = require_one_origin((first, second))
    first_table, second_table = (
        tabulate(side, mix=mix if count_mixes(side) == batch else 0) for side in (first, second)
    )
    table = CoefficientTable(first_table.layer_names, first_table.values - second_table.values)
    if bool(table.values.isinf().any()):
        raise ShapeError(
            "The difference of these analogies overflows float32: the first has numbers of up to "
            f"{float(first_table.values.nan_to_num(0.0).abs().max()):.2g}. Compare analogies with smaller numbers."
        )
    # In float64, which holds the squares of all float32 numbers.
    sides = [side.values.nan_to_num(0.0).double() for side in (first_table, second_table)]
    cosine = torch.nn.functional.cosine_similarity(sides[0], sides[1], dim=1, eps=1e-300).float()
    are_off = (sides[0] == 0).all(1) & (sides[1] == 0).all(1)
    magnitude = table.values.nan_to_num(0.0).abs()
    return Comparison(
        table,
        cosine=torch.where(are_off, math.nan, cosine),
        adapter_use=magnitude.mean(0),
        distance=float(0.5 * magnitude.sum(1).mean()),
    )


def describe(coefficients: Coefficients, *, mix: int = 0, title: str = "") -> str:
    """Return a summary of one mix, counted from 0, in several lines; `title` replaces "Mix 1 of B"."""
    table = tabulate(coefficients, mix=mix)
    summary = summarize(table)
    size, layers = table.basis_size, len(table.layer_names)
    lines = [
        f"{title or f'Mix {mix + 1} of {count_mixes(coefficients)}'}: {layers} layers × {size} adapters",
        f"Basis: {name_of_basis(coefficients)}",
    ]
    if summary.layers_off == layers:
        return "\n".join([*lines, f"Switched off: all {layers} layers, so this mix changes nothing"])
    order = summary.adapter_use.argsort(descending=True, stable=True)[:_NAMED_ADAPTERS].tolist()
    strongest = ", ".join(f"{adapter} ({summary.adapter_use[adapter]:.1%})" for adapter in order)
    is_on = summary.effective_adapters > 0
    on = summary.effective_adapters[is_on]
    lines += [
        f"Strongest adapters: {strongest}",
        f"Adapters in use: {on.mean():.1f} of {size} per layer on average (from entropy)",
        f"Distance from uniform: {summary.distance_from_uniform:.1%}",
    ]
    if summary.layers_off:
        lines.append(f"Switched off: {summary.layers_off} of {layers} layers")
    peaked = sorted(zip(on.tolist(), _names_where(table, is_on), strict=True))[:_NAMED_LAYERS]
    lines.append("Most decided: " + ", ".join(f"{name} ({count:.1f})" for count, name in peaked))
    return "\n".join(lines)


def describe_comparison(comparison: Comparison) -> str:
    """Return a summary of a comparison in several lines."""
    is_known = ~comparison.cosine.isnan()
    cosine, names = comparison.cosine[is_known], _names_where(comparison.difference, is_known)
    off = len(comparison.cosine) - len(cosine)
    lines = [f"Difference: {comparison.distance:.1%} of the mix on average"]
    if off:
        lines.append(f"Off in both: {off} of {len(comparison.cosine)} layers")
    if len(cosine):
        apart = cosine.argsort(stable=True)[:_NAMED_LAYERS].tolist()
        lines += [
            f"Cosine per layer: mean {cosine.mean():.3f}, lowest {cosine.min():.3f}, highest {cosine.max():.3f}",
            "Furthest apart: " + ", ".join(f"{names[index]} ({cosine[index]:.3f})" for index in apart),
        ]
    return "\n".join(lines)


def _names_where(table: CoefficientTable, chosen: Tensor) -> list[str]:
    return [name for name, is_chosen in zip(table.layer_names, chosen.tolist(), strict=True) if is_chosen]
