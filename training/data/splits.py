"""Held-out pairs and held-out tasks, and the fixed analogies on which a run is validated.

A pair outside the split `train` is never used for training. A task without any `train` pair is a held-out task:
its transformation itself is new. Both choices depend on names and seed only, not on the order of files.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from .buckets import Cell, aspects_match, nearest_bucket
from .index import DataError, PairRecord
from .pairing import Quadruplet, caption_of, positions_by_task, uniforms

TaskKind = Literal["seen", "held-out"]


def hold_out(
    records: Sequence[PairRecord], *, tasks: int | Collection[str] = 0, pairs_per_task: int = 0, split: str = "val",
    seed: int = 0,
) -> list[PairRecord]:  # fmt: skip
    """The same records with some `train` pairs moved to another split.

    Pairs of the same two images stay together, so nothing held out is trained on in the opposite direction or under
    another name: a reversed task goes with its forward one (as one of `tasks`), and a `train` pair whose images the
    index has in another split goes there.

    Args:
        tasks: names of the tasks to hold out whole, or how many to choose.
        pairs_per_task: how many pairs of every other task to hold out; a task keeps at least two for training.
        split: where they go, `val` or `test`.
    Raises DataError for a task that is not in the index, or when nothing would be left for training.
    """
    images = same_images(records)
    goes_to = {name: record.split for record, name in zip(records, images, strict=True) if record.split != "train"}
    training = [(record, name) for record, name in zip(records, images, strict=True) if record.split == "train"]
    images_of: dict[str, set[str]] = defaultdict(set)
    for record, name in training:
        images_of[record.task].add(name)
    for task in _tasks_to_hold_out(images_of, tasks, seed):
        goes_to = dict.fromkeys(images_of[task], split) | goes_to
    left = [(record, name) for record, name in training if name not in goes_to]
    if not training:
        raise DataError(
            "The index has no pair of the split train, so there is nothing to train on. Correct the split of its pairs."
        )
    if not left:
        raise DataError(
            f"All {len(images_of)} task(s) would be held out and none left for training. Hold out fewer tasks, or "
            "pairs instead of tasks."
        )
    goes_to |= dict.fromkeys(_pairs_to_hold_out(left, pairs_per_task, seed), split)
    return [
        replace(record, split=goes_to.get(name, "train")) if record.split == "train" else record
        for record, name in zip(records, images, strict=True)
    ]


def same_images(records: Sequence[PairRecord]) -> list[str]:
    """A name for every record's two images: the first id, by name, of its copies (by hash) and of both directions."""
    first_id: dict[object, str] = {}
    linked: dict[str, str] = {}

    def root(name: str) -> str:
        while linked.get(name, name) != name:
            name = linked[name]
        return name

    for record in sorted(records, key=lambda record: record.id):
        for images in (frozenset((record.before, record.after)), record.sha256 or record.id):
            ends = sorted((root(record.id), root(first_id.setdefault(images, record.id))))
            linked[ends[1]] = ends[0]
    return [root(record.id) for record in records]


def held_out_tasks(records: Sequence[PairRecord]) -> set[str]:
    """Names of the tasks that have no `train` pair."""
    return {record.task for record in records} - {record.task for record in records if record.split == "train"}


def fixed_quadruplets(
    records: Sequence[PairRecord], buckets: Sequence[Cell], *, kind: TaskKind, per_task: int = 2,
    max_items: int | None = None, caption_source: str = "a", seed: int = 0,
) -> tuple[Quadruplet, ...]:  # fmt: skip
    """Analogies for validation: the same list for the same data and seed, sorted by cell size and task.

    b's pair is one of the split `val`. a's pair is another one of the task, or, on a seen task that has none of fitting
    shape, a training pair. Captions are never dropped.

    Args:
        records: all pairs of the index, every split.
        kind: `seen` tasks (they have training pairs) or `held-out` tasks.
        per_task: at most this many analogies of each task, with different b.
        max_items: at most this many in all, of as many tasks as possible.
    """
    unseen = held_out_tasks(records)
    ranked: list[tuple[int, str, int, int]] = []
    for task, positions in positions_by_task(records).items():
        if (task in unseen) != (kind == "held-out"):
            continue
        # A seeded order by id, so that adding files elsewhere does not change a task's analogies.
        pool = sorted((int(i) for i in positions), key=lambda i: uniforms(seed, "validation", records[i].id))
        couples = []
        for place, b in enumerate(pool):
            if records[b].split != "val":
                continue
            others = [*pool[place + 1 :], *pool[:place]]
            fitting = [i for i in others if aspects_match(records[i].aspect, records[b].aspect)]
            partners = [i for name in ("val", "train") for i in fitting if records[i].split == name]
            couples += [(a, b) for a in partners[:1]]  # the next held-out one after b, else a training pair
        ranked += [(rank, task, a, b) for rank, (a, b) in enumerate(couples[:per_task])]
    # Every task's first analogy comes before any task's second, so a limit leaves out as few tasks as possible.
    ranked.sort(key=lambda entry: (entry[0], uniforms(seed, "validation task", entry[1])))
    chosen = []
    for _, _, a, b in ranked[:max_items]:
        caption = caption_of(records[a], records[b], caption_source)
        chosen.append(Quadruplet(a, b, nearest_bucket(buckets, records[b].aspect), caption))
    return tuple(sorted(chosen, key=lambda quadruplet: (quadruplet.bucket, records[quadruplet.b].task)))


def batches_by_bucket(buckets: Sequence[int], batch_size: int) -> list[list[int]]:
    """Positions in batches of one bucket each, for a DataLoader's `batch_sampler`; a bucket's last may be smaller."""
    batches: list[list[int]] = []
    for bucket in sorted(set(buckets)):
        positions = [position for position, other in enumerate(buckets) if other == bucket]
        batches += [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    return batches


def _tasks_to_hold_out(images_of: Mapping[str, set[str]], wanted: int | Collection[str], seed: int) -> Collection[str]:
    """Names of tasks; of a number, tasks with exactly the same images (a reversed one) count once."""
    names = sorted(images_of)
    if isinstance(wanted, int):
        shuffled = sorted(names, key=lambda name: uniforms(seed, "hold out task", name))
        first_of: dict[frozenset[str], str] = {}
        for name in shuffled:
            first_of.setdefault(frozenset(images_of[name]), name)
        return list(first_of.values())[:wanted]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"The first tasks are {', '.join(names[:3])}."
        raise DataError(f"No task with training pairs is called {' or '.join(map(repr, unknown))}. {hint}")
    return wanted


def _pairs_to_hold_out(training: Sequence[tuple[PairRecord, str]], per_task: int, seed: int) -> set[str]:
    """Names of images (see `same_images`): so many of every task, with at least two pairs of each left."""
    uses: dict[str, Counter[str]] = defaultdict(Counter)
    names_of: dict[str, set[str]] = defaultdict(set)
    for record, name in training:
        uses[name][record.task] += 1
        names_of[record.task].add(name)
    before = Counter(record.task for record, _ in training)
    left, held = before.copy(), set[str]()
    for task in sorted(names_of):
        for name in sorted(names_of[task] - held, key=lambda name: uniforms(seed, "hold out pair", name)):
            if before[task] - left[task] >= per_task:
                break
            if all(left[other] - count >= 2 for other, count in uses[name].items()):
                held.add(name)
                left.subtract(uses[name])
    return held
