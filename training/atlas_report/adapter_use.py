"""Which adapters of a basis serve which task, and which serve none.

    share[n] = |c[n]| / Σ_m |c[m]|                     per analogy and layer
    dead:  max over analogies of share[n] < 0.1 / N    (a tenth of an even share, at its best)
    lift(task, n) = mean share in the task − mean share in all other tasks

Adapters are counted per layer, since adapter 3 of one layer has nothing to do with adapter 3 of another. Dead means
dead for these analogies: tasks that the index lacks may use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorweb_core.coefficients import Coefficients
from lorweb_core.layer_names import sort_layer_names

DEAD_SHARE = 0.1


@dataclass(frozen=True)
class Server:
    """An adapter and its mean share in a task and in all others."""

    layer_name: str
    adapter: int
    share: float
    elsewhere: float


@dataclass(frozen=True, eq=False)
class AdapterUse:
    """Use of every adapter over the known analogies.

    Attributes:
        layer_names: L names in computing order.
        mean: [L, N] mean share, NaN where a layer has fewer adapters than the widest.
        highest: [L, N] highest share in any analogy, NaN likewise.
        is_dead: [L, N].
        tasks: T names.
        of_task: [T, L, N] mean share, 0 where there is no adapter.
        elsewhere: [T, L, N] mean share in the other tasks (0 when there is no other).
    """

    layer_names: tuple[str, ...]
    mean: Tensor
    highest: Tensor
    is_dead: Tensor
    tasks: tuple[str, ...]
    of_task: Tensor
    elsewhere: Tensor

    @property
    def adapter_count(self) -> int:
        """How many adapters there are in all layers."""
        return int((~self.mean.isnan()).sum())

    @property
    def dead(self) -> list[tuple[str, int]]:
        """Layer name and number of every dead adapter."""
        return [(self.layer_names[layer], adapter) for layer, adapter in self.is_dead.nonzero().tolist()]

    def servers_of(self, task: str, *, count: int) -> list[Server]:
        """Return the adapters that this task uses more than others do, strongest lift first."""
        place = self.tasks.index(task)
        lift = (self.of_task[place] - self.elsewhere[place]).flatten()
        order = lift.argsort(descending=True, stable=True)[:count].tolist()
        return [self._server(place, entry) for entry in order if lift[entry] > 0]

    def most_selective(self, count: int) -> list[tuple[int, int]]:
        """Return (layer, adapter) of the adapters whose use differs most between tasks, in computing order."""
        deviation = self.of_task.std(0, correction=0).flatten()
        order = deviation.argsort(descending=True, stable=True)[:count].tolist()
        width = self.mean.shape[1]
        return [divmod(entry, width) for entry in sorted(order) if deviation[entry] > 0]

    def _server(self, place: int, entry: int) -> Server:
        layer, adapter = divmod(entry, self.mean.shape[1])
        share, elsewhere = (float(values[place, layer, adapter]) for values in (self.of_task, self.elsewhere))
        return Server(self.layer_names[layer], adapter, share, elsewhere)


def measure_use(coefficients: Coefficients, tasks: Sequence[str]) -> AdapterUse:
    """Return how the mixes use the adapters.

    Args:
        coefficients: of A analogies.
        tasks: A names.
    """
    names = sort_layer_names(coefficients["layers"])
    shares = _shares([coefficients["layers"][name] for name in names])
    sizes = (~shares[0].isnan()).sum(1, keepdim=True)
    highest, known = shares.amax(0), shares.nan_to_num(0.0)
    order = tuple(dict.fromkeys(tasks))
    is_task = torch.tensor([[task == name for task in tasks] for name in order])  # [T, A]
    total = known.sum(0)
    sums = torch.stack([known[chosen].sum(0) for chosen in is_task])
    counts = is_task.sum(1).view(-1, 1, 1)
    others = len(tasks) - counts
    return AdapterUse(
        layer_names=tuple(names),
        mean=shares.mean(0),
        highest=highest,
        is_dead=highest < DEAD_SHARE / sizes,
        tasks=order,
        of_task=sums / counts,
        elsewhere=torch.where(others > 0, (total - sums).clamp(min=0) / others.clamp(min=1), 0.0),
    )


def _shares(layers: Sequence[Tensor]) -> Tensor:
    """Shares [A, L, N] of the layers' coefficients [A, N], NaN-padded to the widest layer."""
    width = max(layer.shape[1] for layer in layers)
    shares = torch.full((layers[0].shape[0], len(layers), width), float("nan"))
    for place, layer in enumerate(layers):
        magnitude = layer.abs()
        shares[:, place, : layer.shape[1]] = magnitude / magnitude.sum(1, keepdim=True).clamp(min=1e-12)
    return shares
