"""Which analogies of a test set are taken, and what of the set could not be: shared by all kinds of sets."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol, TypeVar

from ..data.importers.extraction import safe_name
from .errors import EvaluationError
from .samples import Analogy

_SHOWN = 5


class HasTask(Protocol):
    """Anything that belongs to a task."""

    @property
    def task(self) -> str:
        """The task's name."""


ItemT = TypeVar("ItemT", bound=HasTask)


@dataclass(frozen=True)
class SetOptions:
    """Which analogies of a set are taken.

    Attributes:
        split: `train`, `val`, `test` or `all`; ignored where a set has no splits.
        tasks: names; () for all.
        b_per_pair: how many b every pair a, a′ gets.
        pairs_per_b: for pair sensitivity: how many pairs every b gets instead, under one prompt; 0 is off.
        per_task: at most so many analogies of a task (with `pairs_per_b`: so many b); 0 for all.
        caption_source: see `DrawSettings.caption_source`.
        seed: of the choice.
    """

    split: str = "test"
    tasks: tuple[str, ...] = ()
    b_per_pair: int = 2
    pairs_per_b: int = 0
    per_task: int = 0
    caption_source: str = "a"
    seed: int = 0


@dataclass(frozen=True)
class AnalogySet:
    """The analogies of a set.

    Attributes:
        analogies: in order.
        losses: what of the set is not among them, in words with counts; [] when nothing is missing.
    """

    analogies: list[Analogy]
    losses: list[str]


@dataclass
class Losses:
    """Counts what cannot be used: reason → names."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one."""
        self.names.setdefault(reason, []).append(name)

    def told(self, tasks: Iterable[str], analogies: Sequence[Analogy]) -> list[str]:
        """Return everything in words; `tasks` are those that should have analogies."""
        lines = [f"{len(names)} {reason} (first {', '.join(names[:_SHOWN])})" for reason, names in self.names.items()]
        used = {analogy.task for analogy in analogies}
        empty = [task for task in dict.fromkeys(tasks) if task not in used]
        if empty:
            more = f" … and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
            lines.append(f"tasks without samples: {', '.join(empty[:_SHOWN])}{more}")
        return lines


def of_tasks(items: Sequence[ItemT], wanted: Sequence[str]) -> list[ItemT]:
    """Return the items of the wanted tasks (anything with a `task`); all without names.

    Raises: EvaluationError: when there is no such task.
    """
    known = {item.task for item in items}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise EvaluationError(
            expected="names of tasks that the set has in this split",
            got=", ".join(map(repr, unknown)),
            remedy=f"Did you mean {near[0]!r}?" if near else f"The first are {', '.join(sorted(known)[:3])}.",
        )
    return [item for item in items if not wanted or item.task in wanted]


def short_name(name: str, length: int = 30) -> str:
    """Return the last part of a name, short and safe as a part of a file name."""
    return safe_name(PurePosixPath(name).name)[:length].strip(". ").replace(" ", "_") or "x"
