"""Many example pairs of one edit → one analogy, and how well the pairs agree.

    average "coefficients": c = 1/P · Σ_p route(q_p)        average "query": c = route(1/P · Σ_p q_p)

The spread is measured on coefficients in both cases, since they are what makes the edit: the distance of a pair is the
share of the mix in which it differs from the mean of the other pairs, ½ · Σ_n |c_pn - mean_n| averaged over layers
and images b (0 equal, 1 nothing in common, for softmax).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .basis import Basis
from .coefficients import Coefficients, LayerStack, encode_coefficients, stack_layers, unstack_layers, with_layers
from .errors import SettingsError, ShapeError

AVERAGES = ("coefficients", "query")
#: A pair is an outlier beyond this many robust standard deviations above the median distance …
_OUTLIER_DEVIATIONS = 3.0
#: … and at least this factor above it, so that pairs which nearly agree have no outliers.
_OUTLIER_FACTOR = 1.5
_MAD_TO_DEVIATION = 1.4826
_FEWEST_FOR_OUTLIERS = 4


@dataclass(frozen=True)
class Spread:
    """How well example pairs agree: each pair's distance from the mean of the others, and the pairs far from them."""

    names: tuple[str, ...]
    distances: tuple[float, ...]
    outliers: tuple[str, ...]

    def describe(self) -> str:
        """A report of several lines."""
        if len(self.names) == 1:
            return "1 pair: nothing to compare it with"
        ordered = sorted(zip(self.distances, self.names, strict=True), reverse=True)
        mean = sum(self.distances) / len(self.distances)
        lines = [f"{len(self.names)} pairs, spread {mean:.1%} of the mix on average (0 % = all agree)"]
        lines += [
            f"{distance:6.1%}  {name}{'  <- outlier' if name in self.outliers else ''}" for distance, name in ordered
        ]
        if len(self.names) < _FEWEST_FOR_OUTLIERS:
            lines.append(f"Outliers are reported from {_FEWEST_FOR_OUTLIERS} pairs on.")
        elif not self.outliers:
            lines.append("No outliers.")
        return "\n".join(lines)


def average_analogies(
    basis: Basis, query_embeddings: Sequence[Tensor], *, names: Sequence[str], average: str = "coefficients"
) -> tuple[Coefficients, Spread]:
    """The average of several example pairs, with coefficients of B mixes, and their spread.

    `query_embeddings` has [B, Q] per pair, with the same B images b; `average` is one of `AVERAGES`. Raises ShapeError
    without pairs, or if their shapes differ.
    """
    if average not in AVERAGES:
        raise SettingsError(f"The average {average!r} does not exist. Use {' or '.join(AVERAGES)}.")
    shapes = {tuple(embedding.shape) for embedding in query_embeddings}
    if len(shapes) != 1 or len(names) != len(query_embeddings):
        raise ShapeError(
            f"{len(query_embeddings)} example pairs of shapes {sorted(shapes)} with {len(names)} names cannot be "
            "averaged. Connect at least one example pair a, a', or give a folder of pairs, all with the same images b."
        )
    pairs = len(query_embeddings)
    per_pair = encode_coefficients(basis, torch.cat([embedding.flatten(1) for embedding in query_embeddings]))
    stacks = stack_layers(per_pair["layers"])
    split = [stack.values.unflatten(1, (pairs, -1)) for stack in stacks]  # [L, P, B, N]
    spread = measure_spread(split, names)
    if average == "query":
        mean_query = torch.stack([embedding.float() for embedding in query_embeddings]).mean(0)
        return encode_coefficients(basis, mean_query), spread
    means = [LayerStack(stack.names, values.mean(1)) for stack, values in zip(stacks, split, strict=True)]
    return with_layers(per_pair, unstack_layers(means, per_pair["layers"])), spread


def measure_spread(stacks: Sequence[Tensor], names: Sequence[str]) -> Spread:
    """Each pair's distance from the mean of the others, from coefficients [L, P, B, N] per basis size."""
    pairs = len(names)
    if pairs == 1:
        return Spread(tuple(names), (0.0,), ())
    total, layers = torch.zeros(pairs), 0
    for values in stacks:
        others = (values.sum(1, keepdim=True) - values) / (pairs - 1)
        total += 0.5 * (values - others).abs().sum(-1).mean(-1).sum(0)
        layers += values.shape[0]
    distances = total / layers
    return Spread(tuple(names), tuple(distances.tolist()), tuple(names[index] for index in _find_outliers(distances)))


def _find_outliers(distances: Tensor) -> list[int]:
    if len(distances) < _FEWEST_FOR_OUTLIERS:
        return []
    middle = distances.quantile(0.5)
    deviation = _MAD_TO_DEVIATION * (distances - middle).abs().quantile(0.5)
    limit = torch.maximum(middle + _OUTLIER_DEVIATIONS * deviation, _OUTLIER_FACTOR * middle)
    return [index for index, distance in enumerate(distances) if distance > limit and distance > 1e-6]
