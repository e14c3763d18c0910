"""Held-out pairs and held-out tasks, and the fixed analogies on which a run is validated.

A pair outside the split `train` is never drawn for training. A task without any `train` pair is a held-out task:
its transformation itself is new. Both choices depend on names and seed only, not on the order of files.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from .buckets import Cell, aspects_match, nearest_bucket
from .index import DataError, PairRecord, TripletRecord
from .pairing import Quadruplet, caption_of, positions_by_task, uniforms

TaskKind = Literal["seen", "held-out"]


def hold_out(
    records: Sequence[PairRecord],
    *,
    tasks: int | Collection[str] = 0,
    pairs_per_task: int = 0,
    split: str = "val",
    seed: int = 0,
) -> list[PairRecord]:
    """The same records with some `train` pairs moved to another split.

    Pairs of the same two pictures stay together, so nothing held out is trained on in the opposite direction or under
    another name: a reversed task goes with its forward one (as one of `tasks`), and a `train` pair whose pictures the
    index has in another split goes there.

    Args:
        records: all pairs that can be used; those of other splits keep theirs.
        tasks: names of the tasks to hold out whole, or how many to choose.
        pairs_per_task: how many pairs of every other task to hold out; a task keeps at least two for training.
        split: where they go, `val` or `test`.
        seed: of the choice.
    Raises: DataError: for a task that is not in the index, or when nothing would be left for training.
    """
    pictures = same_pictures(records)
    goes_to = {name: record.split for record, name in zip(records, pictures, strict=True) if record.split != "train"}
    training = [(record, name) for record, name in zip(records, pictures, strict=True) if record.split == "train"]
    pictures_of: dict[str, set[str]] = defaultdict(set)
    for record, name in training:
        pictures_of[record.task].add(name)
    for task in tasks_to_hold_out(pictures_of, tasks, seed):
        goes_to = dict.fromkeys(pictures_of[task], split) | goes_to
    left = [(record, name) for record, name in training if name not in goes_to]
    if not left:
        raise DataError(
            expected="some tasks to be left for training",
            got=f"all {len(pictures_of)} task(s) held out",
            remedy="Hold out fewer tasks, or pairs instead of tasks.",
        )
    goes_to |= dict.fromkeys(_pairs_to_hold_out(left, pairs_per_task, seed), split)
    return [
        replace(record, split=goes_to.get(name, "train")) if record.split == "train" else record
        for record, name in zip(records, pictures, strict=True)
    ]


def same_pictures(records: Sequence[PairRecord]) -> list[str]:
    """A name for every record's two pictures: the same for copies (by hash) and for both directions (by path).

    Returns: the first id, in alphabetical order, among the records of the same pictures.
    """
    first_id: dict[object, str] = {}
    linked: dict[str, str] = {}

    def root(name: str) -> str:
        while linked.get(name, name) != name:
            name = linked[name]
        return name

    for record in sorted(records, key=lambda record: record.id):
        for pictures in (frozenset((record.before, record.after)), record.sha256 or record.id):
            ends = sorted((root(record.id), root(first_id.setdefault(pictures, record.id))))
            linked[ends[1]] = ends[0]
    return [root(record.id) for record in records]


def held_out_tasks(records: Sequence[PairRecord] | Sequence[TripletRecord]) -> set[str]:
    """Names of the tasks that have no `train` pair (or triplet)."""
    return {record.task for record in records} - {record.task for record in records if record.split == "train"}


def fixed_quadruplets(
    records: Sequence[PairRecord],
    buckets: Sequence[Cell],
    *,
    kind: TaskKind,
    split: str = "val",
    per_task: int = 2,
    max_items: int | None = None,
    caption_source: str = "a",
    seed: int = 0,
) -> tuple[Quadruplet, ...]:
    """Analogies for validation: the same list for the same data and seed, sorted by cell size and task.

    b's pair is always held out. a's pair is another held-out pair of the task, or, on a seen task that has none of
    fitting shape, a training pair. Captions are never dropped.

    Args:
        records: all pairs of the index, every split.
        buckets: cell sizes, see `buckets.cell_buckets`.
        kind: `seen` tasks (they have training pairs) or `held-out` tasks.
        split: whose pairs serve as b.
        per_task: at most this many analogies of each task, with different b.
        max_items: at most this many in all, of as many tasks as possible.
        caption_source: see `DrawSettings`.
        seed: of the choice.
    Returns: positions in `records`; empty when the data have no such pairs.
    """
    unseen = held_out_tasks(records)
    ranked: list[tuple[int, str, int, int]] = []
    for task, positions in positions_by_task(records).items():
        if (task in unseen) != (kind == "held-out"):
            continue
        pool = _in_drawn_order([int(i) for i in positions], records, seed)
        couples = [(_partner(b, pool, records, split), b) for b in pool if records[b].split == split]
        fitting = [(a, b) for a, b in couples if a is not None][:per_task]
        ranked += [(rank, task, a, b) for rank, (a, b) in enumerate(fitting)]
    # Every task's first analogy comes before any task's second, so a limit leaves out as few tasks as possible.
    ranked.sort(key=lambda entry: (entry[0], uniforms(seed, "validation task", entry[1])))
    chosen = [_fixed(records, buckets, a, b, caption_source) for _, _, a, b in ranked[:max_items]]
    return tuple(sorted(chosen, key=lambda quadruplet: (quadruplet.bucket, records[quadruplet.b].task)))


def _fixed(records: Sequence[PairRecord], buckets: Sequence[Cell], a: int, b: int, caption_source: str) -> Quadruplet:
    caption = caption_of(records[a], records[b], caption_source)
    return Quadruplet(a, b, nearest_bucket(buckets, records[b].aspect), caption)


def batches_by_bucket(buckets: Sequence[int], batch_size: int) -> list[list[int]]:
    """Positions in batches of one cell size each, smallest bucket first; usable as a DataLoader's `batch_sampler`.

    Args:
        buckets: the bucket of every item, for example `[q.bucket for q in quadruplets]`.
        batch_size: the last batch of each bucket may be smaller.
    """
    batches: list[list[int]] = []
    for bucket in sorted(set(buckets)):
        positions = [position for position, other in enumerate(buckets) if other == bucket]
        batches += [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    return batches


def tasks_to_hold_out(pictures_of: Mapping[str, set[str]], wanted: int | Collection[str], seed: int) -> Collection[str]:
    """Names of tasks; of a number, tasks with exactly the same pictures (a reversed one) count once."""
    names = sorted(pictures_of)
    if isinstance(wanted, int):
        drawn = sorted(names, key=lambda name: uniforms(seed, "hold out task", name))
        first_of: dict[frozenset[str], str] = {}
        for name in drawn:
            first_of.setdefault(frozenset(pictures_of[name]), name)
        return list(first_of.values())[:wanted]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        raise DataError(
            expected="names of tasks that have training pairs",
            got=", ".join(repr(name) for name in unknown),
            remedy=f"Did you mean {near[0]!r}?" if near else f"The first tasks are {', '.join(names[:3])}.",
        )
    return wanted


def _pairs_to_hold_out(training: Sequence[tuple[PairRecord, str]], per_task: int, seed: int) -> set[str]:
    """Names of pictures (see `same_pictures`): so many of every task, with at least two pairs of each left."""
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


def _in_drawn_order(positions: Sequence[int], records: Sequence[PairRecord], seed: int) -> list[int]:
    """A seeded order by id, so that adding files elsewhere does not change a task's analogies."""
    return sorted(positions, key=lambda i: uniforms(seed, "validation", records[i].id))


def _partner(b: int, pool: Sequence[int], records: Sequence[PairRecord], split: str) -> int | None:
    """a's pair for b: the next held-out one after b in the drawn order, else a training pair; None when none fits."""
    start = pool.index(b) + 1
    others = [*pool[start:], *pool[: start - 1]]
    fitting = [i for i in others if aspects_match(records[i].aspect, records[b].aspect)]
    wanted = (split, "train")
    ranked = [i for name in wanted for i in fitting if records[i].split == name]
    return ranked[0] if ranked else None
