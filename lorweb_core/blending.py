"""Several analogies → one: sums, means and interpolations of their coefficients.

    mean: c = Σ_i w_i · c_i / Σ_i w_i        sum: c = Σ_i w_i · c_i        interpolation: a mean of two neighbors

Weights may be any real numbers; outside of 0…1 they extrapolate. The mean is computed as c_k + Σ_i ŵ_i · (c_i − c_k)
with k the heaviest, so that a blend of x with itself is x, and weight on one alone is that one, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .coefficients import (
    Coefficients,
    LayerStack,
    count_mixes,
    is_all_finite,
    name_of_basis,
    require_whole_coefficients,
    stack_layers,
    unstack_layers,
    with_layers,
)
from .errors import CheckpointError, SettingsError, ShapeError

METHODS = ("mean", "sum")
#: Further along, a float64 cannot tell the sum of the two weights, which is 1, from their rounding errors.
MAX_POSITION = 100_000
#: A sum of weights below this share of their magnitudes counts as zero: dividing by it would blow up rounding.
_SMALLEST_SHARE = 1e-6


def blend_coefficients(
    analogies: Sequence[Mapping[str, Any]], weights: Sequence[float], *, method: str = "mean"
) -> Coefficients:
    """Return one set of coefficients made of several of the same basis.

    Args:
        analogies: coefficients with B mixes each, or with one, which is then used for all B.
        weights: one for each analogy, any real numbers.
        method: `mean` divides by the sum of the weights; `sum` does not.
    Returns: coefficients of B mixes; inputs are not changed.
    Raises:
        SettingsError: for an unknown method, weights that are not finite or not one per analogy, or weights of a mean
            that sum to zero, or weights with which numbers become infinite.
        CheckpointError: when the analogies belong to several bases.
        ShapeError: when layers, basis sizes or batches differ.
    """
    wholes = [require_whole_coefficients(analogy) for analogy in analogies]
    factors = _require_weights(weights, len(wholes), method)
    batch = require_one_origin(wholes)
    combine = _weighted_mean if method == "mean" else _weighted_sum
    blended = [
        LayerStack(names, combine([part.expand(-1, batch, -1) for part in parts], factors))
        for names, parts in _stack_alike(wholes)
    ]
    _require_finite(blended, wholes, "weights", ", ".join(f"{weight:g}" for weight in weights))
    return with_layers(wholes[0], unstack_layers(blended, wholes[0]["layers"]))


def sweep_analogies(analogies: Sequence[Mapping[str, Any]], start: float, end: float, *, steps: int) -> Coefficients:
    """Return interpolations at evenly spaced positions as one batch, all mixes of a position next to each other.

    From an analogy that is switched off to one that is on, the positions are strengths.

    Args:
        analogies: two or more of one basis, with B mixes each, or one.
        start: first position, see `interpolation_weights`.
        end: last position.
        steps: how many positions; 1 is `start` alone.
    Returns: coefficients of steps · B mixes.
    Raises: SettingsError: for less than one step and positions that are too far; else see `blend_coefficients`.
    """
    if steps < 1:
        raise SettingsError(expected="at least 1 step", got=str(steps), remedy="Use 1 for a single blend.")
    positions = [start + (end - start) * index / max(steps - 1, 1) for index in range(steps)]
    weights = [interpolation_weights(place, len(analogies)) for place in positions]
    wholes = [require_whole_coefficients(analogy) for analogy in analogies]
    batch = require_one_origin(wholes)
    swept = [
        LayerStack(names, _interpolate([part.expand(-1, batch, -1) for part in parts], weights))
        for names, parts in _stack_alike(wholes)
    ]
    _require_finite(swept, wholes, "positions", f"{start:g} to {end:g}")
    return with_layers(wholes[0], unstack_layers(swept, wholes[0]["layers"]))


def interpolation_weights(position: float, count: int) -> list[float]:
    """Return the weights for a place on the way through `count` analogies: 0 is the first, 1 the second, and so on.

    Between two whole numbers the two neighbors are mixed; before the first and behind the last the way goes straight
    on, so -0.5 is "the first, and half of the difference to the second away from it".

    Raises: SettingsError: for fewer than two analogies, or a position that is not finite or beyond `MAX_POSITION`.
    """
    if count < 2 or not abs(position) <= MAX_POSITION:
        raise SettingsError(
            expected=f"at least two analogies and a position from -{MAX_POSITION:,} to {MAX_POSITION:,}",
            got=f"position {position:g} and {count} {'analogy' if count == 1 else 'analogies'}",
            remedy="Give two analogies or more and a position such as 0.5.",
        )
    start = min(max(math.floor(position), 0), count - 2)
    weights = [0.0] * count
    weights[start], weights[start + 1] = 1.0 - (position - start), position - start
    return weights


def _weighted_mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = sum(weights)
    heaviest = max(range(len(weights)), key=lambda index: abs(weights[index]))
    result = values[heaviest].clone()
    for index, (value, weight) in enumerate(zip(values, weights, strict=True)):
        if index != heaviest and weight:
            result += (value - values[heaviest]) * (weight / total)
    return result


def _weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    result = torch.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        result = result + value * weight
    return result


def _interpolate(values: Sequence[Tensor], weights: Sequence[Sequence[float]]) -> Tensor:
    """Return `_weighted_mean` of every row of two neighbors' weights, [L, steps · B, N], bit for bit."""
    neighbors = [sorted(range(len(row)), key=lambda index: -abs(row[index]))[:2] for row in weights]
    shares = [row[far] / sum(row) for row, (_, far) in zip(weights, neighbors, strict=True)]
    stacked = torch.stack(list(values), dim=1)  # [L, analogies, B, N]
    near, result = (stacked[:, [pair[side] for pair in neighbors]] for side in (0, 1))  # [L, steps, B, N]
    result -= near
    result *= torch.tensor(shares, dtype=result.dtype)[:, None, None]
    result += near
    return result.flatten(1, 2)


def _require_weights(weights: Sequence[float], count: int, method: str) -> list[float]:
    numbers = [float(weight) for weight in weights]
    if method not in METHODS:
        raise SettingsError(
            expected=f"method to be one of {', '.join(METHODS)}", got=repr(method), remedy="Choose one of these."
        )
    if not count or len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise SettingsError(
            expected="at least one analogy and a finite weight for each",
            got=f"{count} analogies and the weights {numbers}",
            remedy="Give every analogy one weight; 1 for each is the plain mean.",
        )
    largest = max(map(abs, numbers))
    if method == "mean" and not math.isfinite(largest * count):  # a mean does not change with the size of all weights
        numbers = [number / largest for number in numbers]
    if method == "mean" and abs(sum(numbers)) <= _SMALLEST_SHARE * sum(map(abs, numbers)):
        raise SettingsError(
            expected="weights of a mean that do not sum to zero",
            got=", ".join(f"{number:g}" for number in weights),
            remedy="Change a weight, or use the method sum, which does not divide by their sum.",
        )
    return numbers


def _stack_alike(wholes: Sequence[Coefficients]) -> list[tuple[tuple[str, ...], list[Tensor]]]:
    """Return, by basis size, the layers' names and each analogy's numbers [L, B or 1, N] in that order of layers."""
    order = list(wholes[0]["layers"])
    stacked = [stack_layers({name: whole["layers"][name] for name in order}) for whole in wholes]
    return [(parts[0].names, [part.values for part in parts]) for parts in zip(*stacked, strict=True)]


def _require_finite(stacks: Sequence[LayerStack], wholes: Sequence[Coefficients], what: str, given: str) -> None:
    """Raise when a blend of finite numbers is none: the weights, or the numbers, are too large for float32."""
    if all(is_all_finite(stack.values) for stack in stacks):
        return
    largest = max(float(mix.abs().max()) for whole in wholes for mix in whole["layers"].values())
    raise SettingsError(
        expected=f"{what} that keep coefficients within float32, up to {torch.finfo(torch.float32).max:.2g}",
        got=f"{what} {given} for coefficients of up to {largest:.2g}",
        remedy=f"Use smaller {what}, or analogies with smaller numbers; those of a softmax are at most 1.",
    )


def require_one_origin(analogies: Sequence[Mapping[str, Any]]) -> int:
    """Return B, the number of mixes, once analogies of right layout are known to go together.

    Raises: CheckpointError, ShapeError: when they belong to several bases, or layers, basis sizes or batches differ.
    """
    first = analogies[0]
    for other in analogies[1:]:
        if other["basis_id"] != first["basis_id"]:
            raise CheckpointError(
                expected=f"analogies of one basis, here {name_of_basis(first)}",
                got=f"another of {name_of_basis(other)}",
                remedy="Encode all analogies with the same basis; other adapters mean other things.",
            )
        sizes = [{name: mix.shape[1] for name, mix in whole["layers"].items()} for whole in (first, other)]
        if sizes[0] != sizes[1]:
            odd = [name for name in {**sizes[0], **sizes[1]} if sizes[0].get(name) != sizes[1].get(name)]
            raise ShapeError(
                expected=f"the same {len(sizes[0])} layers with equal N in every analogy",
                got=f"{len(odd)} that differ (such as {', '.join(odd[:3])})",
                remedy="Encode the analogies again with the same basis.",
            )
    counts = [count_mixes(analogy) for analogy in analogies]
    batch = max(counts)
    if any(count not in (1, batch) for count in counts):
        raise ShapeError(
            expected="analogies with one mix each, or with equally many",
            got=f"{', '.join(map(str, counts))} mixes",
            remedy="Encode every example pair with the same pictures b.",
        )
    return batch
