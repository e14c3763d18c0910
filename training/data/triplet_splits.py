"""Held-out triplets: ready-made analogies that are kept for validation.

A triplet has two pairs, a's and b's. Nothing that is answered in validation is trained on: where b's pair is held out,
every triplet with that pair, as a or as b, leaves the training split. Which pairs a triplet is made of is known from
the layout's metadata; without it only equal pictures b′ are found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from .checks import hash_files
from .importers.folders import REVERSED_SUFFIX
from .index import DataError, TripletRecord
from .pairing import uniforms
from .splits import tasks_to_hold_out


def hold_out_triplets(
    records: Sequence[TripletRecord],
    *,
    tasks: int | Collection[str] = 0,
    triplets_per_task: int = 0,
    split: str = "val",
    seed: int = 0,
) -> list[TripletRecord]:
    """The same records with some `train` triplets moved to another split.

    Args:
        records: all triplets that can be used; those of other splits keep theirs.
        tasks: names of the tasks to hold out whole, or how many to choose.
        triplets_per_task: at least so many of every other task, in whole pairs b; a task keeps at least one triplet.
        split: where they go, `val` or `test`.
        seed: of the choice.
    Raises: DataError: for a task that is not in the index, or when nothing would be left for training. OSError: when
        a picture b' that has to be compared cannot be read.
    """
    pairs = [_known_pairs(record) or _by_content(record) for record in records]
    goes_to = {own[0]: record.split for record, own in zip(records, pairs, strict=True) if record.split != "train"}
    training = [(record.task, own) for record, own in zip(records, pairs, strict=True) if record.split == "train"]
    pairs_of: dict[str, set[str]] = defaultdict(set)
    for task, own in training:
        pairs_of[task] |= set(own)
    for task in tasks_to_hold_out(pairs_of, tasks, seed):
        goes_to = dict.fromkeys(pairs_of[task], split) | goes_to
    left = [(task, own) for task, own in training if not any(name in goes_to for name in own)]
    if not left:
        raise DataError(
            expected="some triplets to be left for training",
            got=f"all of {len(pairs_of)} task(s) held out, together with those that share their pictures",
            remedy="Hold out fewer tasks, or triplets instead of tasks.",
        )
    goes_to |= dict.fromkeys(_answers_to_hold_out(left, triplets_per_task, seed), split)
    return [
        replace(record, split=next((goes_to[name] for name in own if name in goes_to), "train"))
        if record.split == "train"
        else record
        for record, own in zip(records, pairs, strict=True)
    ]


def without_known_pairs(records: Iterable[TripletRecord]) -> list[TripletRecord]:
    """The triplets that do not say which pairs they are made of, so that only pictures b' can be compared."""
    return [record for record in records if not _known_pairs(record)]


def validation_triplets(
    records: Sequence[TripletRecord], *, is_held_out_task: bool, max_items: int | None = None, split: str = "val"
) -> list[TripletRecord]:
    """Triplets to validate on: the same list for the same records, in index order.

    Triplets whose b is known to be trained on are left out, unless there are no others.

    Args:
        records: all triplets of the index, every split.
        is_held_out_task: of tasks without training triplets, else of tasks with some.
        max_items: at most this many, of as many tasks as possible.
        split: whose triplets.
    """
    training = [record for record in records if record.split == "train"]
    seen_tasks = {record.task for record in training}
    trained_on = {name for record in training for name in _known_pairs(record)}
    chosen = [r for r in records if r.split == split and (r.task not in seen_tasks) == is_held_out_task]
    chosen = [record for record in chosen if not trained_on & set(_known_pairs(record)[:1])] or chosen
    rank: Counter[str] = Counter()
    ranked = []
    for position, record in enumerate(chosen):
        ranked.append((rank[record.task], position))
        rank[record.task] += 1
    return [chosen[position] for position in sorted(position for _, position in sorted(ranked)[:max_items])]


def _known_pairs(record: TripletRecord) -> tuple[str, ...]:
    """Names of b's and a's pair, the same for both directions of a pair; () when the index does not say."""
    if not record.pair_b:
        return ()
    names = (name if "/" in name else f"{record.task}/{name}" for name in (record.pair_b, record.pair_a) if name)
    return tuple(name.removesuffix(REVERSED_SUFFIX) for name in names)


def _by_content(record: TripletRecord) -> tuple[str, ...]:
    return (f"b' {hash_files((record.target,))}",)


def _answers_to_hold_out(training: Sequence[tuple[str, tuple[str, ...]]], per_task: int, seed: int) -> set[str]:
    """Names of pairs b: their triplets are at least `per_task` of every task, as far as one is left of each.

    Args:
        training: task and pairs (b's first) of every triplet.
    """
    with_pair: dict[str, set[int]] = defaultdict(set)
    answers_of: dict[str, set[str]] = defaultdict(set)
    for position, (task, own) in enumerate(training):
        answers_of[task].add(own[0])
        for name in own:
            with_pair[name].add(position)
    before = Counter(task for task, _ in training)
    left, held, gone = before.copy(), set[str](), set[int]()
    for task in sorted(answers_of):
        for name in sorted(answers_of[task] - held, key=lambda name: uniforms(seed, "hold out triplet", name)):
            if before[task] - left[task] >= per_task:
                break
            moved = Counter(training[position][0] for position in with_pair[name] - gone)
            if all(left[other] - count >= 1 for other, count in moved.items()):
                held.add(name)
                gone |= with_pair[name]
                left.subtract(moved)
    return held
