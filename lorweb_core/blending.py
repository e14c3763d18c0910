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
    count_mixes,
    is_all_finite,
    join_layers,
    name_of_basis,
    require_whole_coefficients,
    split_layers,
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
    """Return coefficients of B mixes from several analogies of one basis, with one weight (any real number) each.

    Every analogy has B mixes, or one that is used for all B. `mean` divides by the sum of the weights, `sum` does not.

    Raises:
        SettingsError: for an unknown method, not one finite weight per analogy, weights of a mean that sum to zero, or
            a result that overflows float32.
        CheckpointError, ShapeError: see `require_one_origin`.
    """
    if method not in METHODS:
        raise SettingsError(f"The method {method!r} does not exist. Use {' or '.join(METHODS)}.")
    factors = [float(weight) for weight in weights]
    if not analogies or len(factors) != len(analogies) or not all(map(math.isfinite, factors)):
        raise SettingsError(
            f"{len(analogies)} analogies do not go with the weights {factors}. Give at least one analogy and a finite "
            "weight for each; 1 for each is the plain mean."
        )
    given = ", ".join(f"{weight:g}" for weight in weights)
    if method == "mean":
        largest = max(map(abs, factors))
        if not math.isfinite(largest * len(factors)):  # a mean does not change with the size of all weights
            factors = [factor / largest for factor in factors]
        if abs(sum(factors)) <= _SMALLEST_SHARE * sum(map(abs, factors)):
            raise SettingsError(
                f"The weights {given} sum to zero, so their mean does not exist. Change a weight, or use the method "
                "sum, which does not divide by their sum."
            )
    wholes, values = _join_analogies(analogies)
    if method == "mean":
        blended = _weighted_mean(values, factors)
    else:
        blended = sum((value * factor for value, factor in zip(values, factors, strict=True)), torch.zeros(()))
    return _split_finite(blended, wholes, "weights", given)


def sweep_analogies(analogies: Sequence[Mapping[str, Any]], start: float, end: float, *, steps: int) -> Coefficients:
    """Return interpolations at evenly spaced positions as one batch of steps · B mixes, position by position.

    `interpolation_weights` defines positions; 1 step is `start` alone. From an analogy that is switched off to one that
    is on, the positions are strengths. Errors: as `blend_coefficients`.
    """
    if steps < 1:
        raise SettingsError(f"steps is {steps}, but must be at least 1, which gives a single blend.")
    positions = [start + (end - start) * index / max(steps - 1, 1) for index in range(steps)]
    weights = [interpolation_weights(position, len(analogies)) for position in positions]
    wholes, values = _join_analogies(analogies)
    swept = torch.cat([_weighted_mean(values, row) for row in weights])
    return _split_finite(swept, wholes, "positions", f"{start:g} to {end:g}")


def interpolation_weights(position: float, count: int) -> list[float]:
    """Return the weights of `count` analogies at a position: 0 is the first, 1 the second, between them both.

    Positions outside extrapolate from the nearest two. SettingsError for fewer than two analogies, or a position that
    is not finite or beyond ±`MAX_POSITION`.
    """
    if count < 2 or not abs(position) <= MAX_POSITION:
        raise SettingsError(
            f"Position {position:g} with {count} {'analogy' if count == 1 else 'analogies'} cannot be "
            f"interpolated. Give two analogies or more and a position from -{MAX_POSITION:,} to "
            f"{MAX_POSITION:,}, such as 0.5."
        )
    start = min(max(math.floor(position), 0), count - 2)
    weights = [0.0] * count
    weights[start], weights[start + 1] = 1.0 - (position - start), position - start
    return weights


def require_one_origin(analogies: Sequence[Mapping[str, Any]]) -> int:
    """Return B, the number of mixes, of analogies that belong together.

    Raises CheckpointError for several bases, ShapeError if layers, basis sizes or numbers of mixes differ.
    """
    first = analogies[0]
    for other in analogies[1:]:
        if other["basis_id"] != first["basis_id"]:
            raise CheckpointError(
                f"The analogies belong to different bases: {name_of_basis(first)} and {name_of_basis(other)}. Encode "
                "all of them with the same basis."
            )
        sizes = [{name: mix.shape[1] for name, mix in whole["layers"].items()} for whole in (first, other)]
        if sizes[0] != sizes[1]:
            odd = [name for name in {**sizes[0], **sizes[1]} if sizes[0].get(name) != sizes[1].get(name)]
            raise ShapeError(
                f"The analogies differ in {len(odd)} of {len(sizes[0])} layers, such as {', '.join(odd[:3])}. Encode "
                "them again with the same basis."
            )
    counts = [count_mixes(analogy) for analogy in analogies]
    batch = max(counts)
    if any(count not in (1, batch) for count in counts):
        raise ShapeError(
            f"The analogies have {', '.join(map(str, counts))} mixes, but must have equally many, or one. Encode every "
            "example pair with the same images b."
        )
    return batch


def _join_analogies(analogies: Sequence[Mapping[str, Any]]) -> tuple[list[Coefficients], list[Tensor]]:
    """Return the checked analogies, and the numbers [B, ΣN] of each, in the first one's order of layers."""
    wholes = [require_whole_coefficients(analogy) for analogy in analogies]
    batch = require_one_origin(wholes)
    order = list(wholes[0]["layers"])
    return wholes, [join_layers({name: whole["layers"][name] for name in order}).expand(batch, -1) for whole in wholes]


def _weighted_mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = sum(weights)
    heaviest = max(range(len(weights)), key=lambda index: abs(weights[index]))
    result = values[heaviest].clone()
    for index, (value, weight) in enumerate(zip(values, weights, strict=True)):
        if index != heaviest and weight:
            result += (value - values[heaviest]) * (weight / total)
    return result


def _split_finite(blended: Tensor, wholes: Sequence[Coefficients], what: str, given: str) -> Coefficients:
    if not is_all_finite(blended):
        largest = max(float(mix.abs().max()) for whole in wholes for mix in whole["layers"].values())
        raise SettingsError(
            f"The {what} {given} overflow float32, since the coefficients reach {largest:.2g}. Use smaller {what}, or "
            "analogies with smaller numbers."
        )
    return with_layers(wholes[0], split_layers(blended, wholes[0]["layers"]))
