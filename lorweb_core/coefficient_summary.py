"""What coefficients say, in numbers and words: which adapters are used, how evenly, and how two analogies differ.

With p_n = |c_n| / Σ_m |c_m| per layer: use of adapter n = mean of p_n over layers; entropy H = -Σ_n p_n · log p_n;
effective adapters = exp(H), from 1 (one alone) to N (uniform); distance from uniform = ½ · Σ_n |p_n - 1/N|.
Layers with no coefficient but zeros (a part that was switched off) do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blending import blend_coefficients
from .coefficients import Coefficients, name_of_basis, require_whole_coefficients
from .errors import ShapeError
from .layer_names import sort_layer_names

_NAMED_ADAPTERS = 5
_NAMED_LAYERS = 3


@dataclass(frozen=True, eq=False)
class CoefficientTable:
    """One mix as a table in computing order.

    Attributes:
        layer_names: L names.
        values: [L, N], NaN where a layer has fewer adapters than the widest.
    """

    layer_names: tuple[str, ...]
    values: Tensor

    @property
    def basis_size(self) -> int:
        """N of the widest layer."""
        return self.values.shape[1]


@dataclass(frozen=True, eq=False)
class Summary:
    """Numbers about one mix.

    Attributes:
        adapter_use: [N], mean share of each adapter over the layers in use.
        effective_adapters: [L], exp of the entropy; 0 for a layer that is switched off.
        entropy: [L], as a share of log N, 0–1.
        distance_from_uniform: mean over the layers in use, 0 … 1 - 1/N.
        layers_off: how many layers have zeros only.
    """

    adapter_use: Tensor
    effective_adapters: Tensor
    entropy: Tensor
    distance_from_uniform: float
    layers_off: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two mixes side by side.

    Attributes:
        difference: first - second.
        cosine: [L], between the two layers' coefficients; 0 where one is all zeros.
        distance: mean over layers of ½ · Σ|difference|.
    """

    difference: CoefficientTable
    cosine: Tensor
    distance: float


def tabulate(coefficients: Mapping[str, Any], *, mix: int = 0) -> CoefficientTable:
    """Return one mix as a table, layers in computing order.

    Raises: CheckpointError, ShapeError: for damaged coefficients, or a mix that does not exist.
    """
    whole = require_whole_coefficients(coefficients)
    names = sort_layer_names(whole["layers"])
    rows = [whole["layers"][name] for name in names]
    batch, width = rows[0].shape[0], max(row.shape[1] for row in rows)
    if not 0 <= mix < batch:
        raise ShapeError(
            expected=f"mix to be one of 0 … {batch - 1}, since there are {batch}",
            got=str(mix),
            remedy="Choose a mix that exists; the first is 0.",
        )
    if all(row.shape[1] == width for row in rows):
        return CoefficientTable(tuple(names), torch.stack(rows)[:, mix].float())
    values = torch.full((len(rows), width), float("nan"))
    for index, row in enumerate(rows):
        values[index, : row.shape[1]] = row[mix]
    return CoefficientTable(tuple(names), values)


def summarise(table: CoefficientTable) -> Summary:
    """Return the numbers about one mix."""
    magnitude = table.values.abs().nan_to_num(0.0)
    amount = magnitude.sum(1, keepdim=True)
    is_on = amount[:, 0] > 0
    share = torch.where(amount > 0, magnitude / amount, 0.0)
    sizes = (~table.values.isnan()).sum(1)
    nats = -torch.special.xlogy(share, share).sum(1)
    uniform = torch.where(table.values.isnan(), 0.0, 1.0 / sizes[:, None])
    distance = 0.5 * (share - uniform).abs().sum(1)
    on_count = max(int(is_on.sum()), 1)
    return Summary(
        adapter_use=share.sum(0) / on_count,
        effective_adapters=torch.where(is_on, nats.exp(), 0.0),
        entropy=torch.where(sizes > 1, nats / sizes.clamp(min=2).log(), 0.0),
        distance_from_uniform=float(distance[is_on].sum()) / on_count,
        layers_off=int((~is_on).sum()),
    )


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, mix: int = 0) -> Comparison:
    """Return how two analogies of one basis differ, for one mix; an analogy with one mix stands for all of them.

    Raises: CheckpointError, ShapeError: see `blending.blend_coefficients`.
    """
    table = tabulate(blend_coefficients([first, second], [1.0, -1.0], method="sum"), mix=mix)
    sides = [tabulate(side, mix=min(mix, _last_mix(side))).values.nan_to_num(0.0) for side in (first, second)]
    cosine = torch.nn.functional.cosine_similarity(sides[0], sides[1], dim=1)
    distance = 0.5 * table.values.nan_to_num(0.0).abs().sum(1).mean()
    return Comparison(table, cosine, float(distance))


def describe(coefficients: Coefficients, *, mix: int = 0) -> str:
    """Return lines for people about one mix."""
    table = tabulate(coefficients, mix=mix)
    summary = summarise(table)
    size, batch = table.basis_size, _last_mix(coefficients) + 1
    order = summary.adapter_use.argsort(descending=True, stable=True)[:_NAMED_ADAPTERS].tolist()
    strongest = ", ".join(f"{adapter} ({summary.adapter_use[adapter]:.1%})" for adapter in order)
    is_on = summary.effective_adapters > 0
    on = summary.effective_adapters[is_on]
    average = float(on.mean()) if len(on) else 0.0
    lines = [
        f"Mix {mix + 1} of {batch}: {len(table.layer_names)} layers × {size} adapters",
        f"Basis: {name_of_basis(coefficients)}",
        f"Strongest adapters: {strongest}",
        f"Adapters in use: {average:.1f} of {size} per layer on average (from entropy)",
        f"Distance from uniform: {summary.distance_from_uniform:.1%}",
    ]
    if summary.layers_off:
        lines.append(f"Switched off: {summary.layers_off} layers")
    if len(on):
        peaked = sorted(zip(on.tolist(), _names_where(table, is_on), strict=True))[:_NAMED_LAYERS]
        lines.append("Most decided: " + ", ".join(f"{name} ({count:.1f})" for count, name in peaked))
    return "\n".join(lines)


def describe_comparison(comparison: Comparison) -> str:
    """Return lines for people about two mixes."""
    cosine, names = comparison.cosine, comparison.difference.layer_names
    apart = cosine.argsort(stable=True)[:_NAMED_LAYERS].tolist()
    return "\n".join(
        [
            f"Difference: {comparison.distance:.1%} of the mix on average",
            f"Cosine per layer: mean {cosine.mean():.3f}, lowest {cosine.min():.3f}, highest {cosine.max():.3f}",
            "Furthest apart: " + ", ".join(f"{names[index]} ({cosine[index]:.3f})" for index in apart),
        ]
    )


def _last_mix(coefficients: Mapping[str, Any]) -> int:
    return int(next(iter(coefficients["layers"].values())).shape[0]) - 1


def _names_where(table: CoefficientTable, chosen: Tensor) -> list[str]:
    return [name for name, is_chosen in zip(table.layer_names, chosen.tolist(), strict=True) if is_chosen]
