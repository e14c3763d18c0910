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
from .coefficients import Coefficients, encode_coefficients, join_layers, split_layers, with_layers
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
        """Return a report of several lines."""
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
    """Return the average of several example pairs, with coefficients of B mixes, and their spread.

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
    values = join_layers(per_pair["layers"]).unflatten(0, (pairs, -1))  # [P, B, ΣN]
    if average == "query":
        averaged = encode_coefficients(basis, torch.stack([query.float() for query in query_embeddings]).mean(0))
    else:
        averaged = with_layers(per_pair, split_layers(values.mean(0), per_pair["layers"]))

    mean_of_others = (values.sum(0, keepdim=True) - values) / max(pairs - 1, 1)
    distances = 0.5 * (values - mean_of_others).abs().sum(-1).mean(-1) / len(per_pair["layers"])
    if pairs == 1:
        distances = torch.zeros(1)
    is_outlier = torch.zeros(pairs, dtype=torch.bool)
    if pairs >= _FEWEST_FOR_OUTLIERS:
        median = distances.quantile(0.5)
        deviation = _MAD_TO_DEVIATION * (distances - median).abs().quantile(0.5)
        limit = torch.maximum(median + _OUTLIER_DEVIATIONS * deviation, _OUTLIER_FACTOR * median)
        is_outlier = (distances > limit) & (distances > 1e-6)
    outliers = tuple(name for name, is_far in zip(names, is_outlier.tolist(), strict=True) if is_far)
    return averaged, Spread(tuple(names), tuple(distances.tolist()), outliers)
