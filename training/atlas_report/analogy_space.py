"""The space that analogies span in the coefficients: distances, neighbours and a plane to look at.

    distance(i, j) = √( 1/L · Σ_layers |c_i − c_j|² )        L layers; 0 = the same mixed LoRA

Distances are those of the full space; the plane (principal components, or t-SNE of the first 50) is for the eye only.
Everything is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorweb_core.coefficients import Coefficients
from lorweb_core.errors import SettingsError

MAPS = ("pca", "tsne")
_COMPONENTS = 50
_PERPLEXITY = 30.0
_WANTED_VARIANCE = 0.9
#: Coefficients closer than this are rounding errors apart.
_ALIKE = 1e-6


@dataclass(frozen=True, eq=False)
class AnalogySpace:
    """Where the known analogies lie.

    Attributes:
        features: [A, D], coefficients of all layers in a row, divided by √L.
        distances: [A, A], infinite on the diagonal.
        points: [A, 2] of the map.
        new_points: [B, 2] of the new analogies; with t-SNE those of their nearest known ones.
        new_distances: [B, A] from new to known analogies.
        variance: share of each principal component, up to 50 of them.
    """

    features: Tensor
    distances: Tensor
    points: np.ndarray
    new_points: np.ndarray
    new_distances: Tensor
    variance: tuple[float, ...]

    @property
    def dimensions(self) -> str:
        """How many principal components hold 90 % of the variance, for people."""
        reached = np.cumsum(self.variance) >= _WANTED_VARIANCE
        return str(int(reached.argmax()) + 1) if reached.any() else f"more than {len(self.variance)}"

    @property
    def nearest(self) -> list[int]:
        """Of every known analogy, the nearest other one."""
        return self.distances.argmin(1).tolist()

    def nearest_known(self, new: int, *, count: int) -> list[tuple[int, float]]:
        """Return (known analogy, distance) for the nearest ones to a new analogy, nearest first."""
        order = self.new_distances[new].argsort(stable=True)[:count].tolist()
        return [(known, float(self.new_distances[new, known])) for known in order]


def measure_space(known: Coefficients, new: Coefficients | None, *, method: str) -> AnalogySpace:
    """Return distances and map of A known and B new analogies; the new ones do not move the map.

    Args:
        known: at least three mixes.
        new: to be placed among them; None for none.
        method: one of `MAPS`.
    Raises: SettingsError: when scikit-learn is not installed.
    """
    features = _features(known)
    new_features = _features(new) if new is not None else features[:0]
    distances = _distances(features, features).fill_diagonal_(math.inf)
    new_distances = _distances(new_features, features)
    components, new_components, variance = _principal_components(features.numpy(), new_features.numpy())
    if method == "pca":
        points, new_points = components[:, :2], new_components[:, :2]
    else:
        points = _tsne(components)
        new_points = points[new_distances.argmin(1).numpy()]  # t-SNE has no place of its own for new points
    return AnalogySpace(features, distances, points, new_points, new_distances, variance)


def same_task_share(space: AnalogySpace, tasks: Sequence[str]) -> dict[str, float]:
    """Return task → share of its analogies whose nearest other analogy has the same task; tasks of two or more."""
    agrees: dict[str, list[bool]] = {}
    for task, nearest in zip(tasks, space.nearest, strict=True):
        agrees.setdefault(task, []).append(tasks[nearest] == task)
    return {task: sum(values) / len(values) for task, values in agrees.items() if len(values) > 1}


def nearest_tasks(space: AnalogySpace, tasks: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Return task → the task with the nearest mean, and the distance between the two means."""
    names = list(dict.fromkeys(tasks))
    if len(names) < 2:
        return {}
    of_task = {name: [place for place, task in enumerate(tasks) if task == name] for name in names}
    means = torch.stack([space.features[of_task[name]].mean(0) for name in names])
    distances = _distances(means, means).fill_diagonal_(math.inf)
    return {name: (names[int(row.argmin())], float(row.min())) for name, row in zip(names, distances, strict=True)}


def require_scikit_learn() -> Any:  # noqa: ANN401 (a module)
    """Return the module `sklearn`.

    Raises: SettingsError: when it is not installed.
    """
    try:
        import sklearn
    except ImportError as error:
        raise SettingsError(
            expected="scikit-learn, which draws the map",
            got=str(error),
            remedy="Install it: pip install scikit-learn (extra `atlas`).",
        ) from error
    return sklearn


def _features(coefficients: Coefficients) -> Tensor:
    layers = list(coefficients["layers"].values())
    return torch.cat(layers, dim=1) / math.sqrt(len(layers))


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    """Return the distances [R, O] of rows, from their differences.

    Beyond 25 rows torch takes them from a matrix product, |a|² + |b|² − 2ab, whose rounding error can be larger than
    the distance of near neighbours. This takes longer: measured once for 1000 rows of 494 · 32 numbers on one core,
    15 s instead of 0.5 s.
    """
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def _principal_components(known: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Coordinates [A, k] and [B, k], at least two wide, and the share of the variance of each component."""
    require_scikit_learn()
    from sklearn.decomposition import PCA

    if _are_alike(known):  # all alike: there is no direction to find
        return np.zeros((len(known), 2)), np.zeros((len(new), 2)), (0.0,)
    model = PCA(n_components=min(_COMPONENTS, *known.shape), random_state=0).fit(known)
    new_components = model.transform(new) if len(new) else np.zeros((0, model.n_components_))
    return _two_wide(model.transform(known)), _two_wide(new_components), tuple(model.explained_variance_ratio_.tolist())


def _tsne(components: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    if _are_alike(components):  # scikit-learn's t-SNE crashes the process on these
        return np.zeros((len(components), 2))
    perplexity = min(_PERPLEXITY, (len(components) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(components).astype(np.float64)


def _are_alike(rows: np.ndarray) -> bool:
    return float(np.ptp(rows, axis=0).max()) < _ALIKE


def _two_wide(components: np.ndarray) -> np.ndarray:
    missing = max(0, 2 - components.shape[1])
    return np.pad(components, ((0, 0), (0, missing)))
