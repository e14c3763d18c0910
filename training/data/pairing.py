"""Which quadruplet comes at which place of which epoch: a pure function, no state, no generator to save.

A quadruplet is (a's pair, b's pair) of one task with similar aspects. For place i of epoch e, uniform numbers are the
bits of blake2b(seed, e, i, …): the same on every worker, rank and version, and resuming needs integers only.

    P(task) ∝ count^α · mean weight,   P(b | task) ∝ weight of b,   P(a | b) uniform over the pairs that fit b

A batch has one cell size: the bucket is chosen first with its share of the probability, then b within the bucket, so
every b keeps exactly the probability above, and small buckets lose nothing at the end of an epoch.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .buckets import ASPECT_TOLERANCE, Cell, nearest_bucket
from .index import DataError, PairRecord

#: α: 0 takes every task equally often, 1 every pair. The reference lists every unordered pair of pairs once (α = 2).
TASK_EXPONENT = 0.5
#: How often a prompt is empty in training (reference).
CAPTION_DROPOUT = 0.05


@dataclass(frozen=True)
class Quadruplet:
    """One analogy: positions of a's and b's pair in the records and of the cell size in the buckets, and the prompt."""

    a: int
    b: int
    bucket: int
    caption: str


class QuadrupletDrawer:
    """Chooses quadruplets among the pairs of one split; for `caption_source` see `caption_of`.

    Attributes:
        bucket_shares: float64 [buckets], how likely each cell size is; sums to 1.
    Raises DataError when no task has two pairs of similar aspect.
    """

    def __init__(
        self, records: Sequence[PairRecord], buckets: Sequence[Cell], *, seed: int = 0, caption_source: str = "a"
    ) -> None:
        self.records, self.seed, self.caption_source = records, seed, caption_source
        self._partners: dict[int, np.ndarray] = {}
        bucket_of = np.array([nearest_bucket(buckets, record.aspect) for record in records], dtype=np.int64)
        mass = np.zeros(len(records))
        for positions in positions_by_task(records).values():
            self._partners |= partner_ranges(positions, records, bucket_of)
            weights = np.array([records[int(i)].weight for i in positions])
            share = weights * [len(self._partners[int(i)]) > 1 for i in positions]
            if share.any():
                mass[positions] = share / share.sum() * weights.mean() * len(positions) ** TASK_EXPONENT
        if not mass.any():
            raise DataError(
                f"None of the {len(records)} pair(s) to train on has a second pair of its task with a similar aspect. "
                "Give a transformation two or more before/after pairs of about the same shape."
            )
        candidates = [np.flatnonzero((bucket_of == bucket) & (mass > 0)) for bucket in range(len(buckets))]
        self._candidates = [(positions, np.cumsum(mass[positions])) for positions in candidates]
        sums = np.array([cumulative[-1] if len(cumulative) else 0.0 for _, cumulative in self._candidates])
        self.bucket_shares = sums / sums.sum()

    def draw_bucket(self, epoch: int, batch: int) -> int:
        """The cell size of a whole batch, by its number in the epoch."""
        return choose(np.cumsum(self.bucket_shares), uniforms(self.seed, "bucket", epoch, batch)[0])

    def draw(self, epoch: int, place: int, bucket: int, *, attempt: int = 0) -> Quadruplet:
        """The quadruplet at a place of an epoch; a higher attempt gives its replacement when an image is broken."""
        for_b, for_a, for_caption = uniforms(self.seed, "draw", epoch, place, bucket, attempt)[:3]
        positions, cumulative = self._candidates[bucket]
        b = int(positions[choose(cumulative, for_b)])
        partners = self._partners[b]
        partners = partners[partners != b]
        a = int(partners[int(for_a * len(partners))])
        is_dropped = for_caption < CAPTION_DROPOUT
        caption = "" if is_dropped else caption_of(self.records[a], self.records[b], self.caption_source)
        return Quadruplet(a, b, bucket, caption)


def positions_by_task(records: Sequence[PairRecord]) -> dict[str, np.ndarray]:
    """Task → positions of its pairs in the records, both in index order."""
    positions: dict[str, list[int]] = defaultdict(list)
    for position, record in enumerate(records):
        positions[record.task].append(position)
    return {task: np.array(found, dtype=np.int64) for task, found in positions.items()}


def partner_ranges(
    positions: np.ndarray, records: Sequence[PairRecord], bucket_of: np.ndarray
) -> dict[int, np.ndarray]:
    """Position → positions whose images fit its cell: same bucket, or aspect less than 15 % off (itself included).

    With the task sorted by aspect both conditions are ranges, so the result is views of one array.
    """
    aspects = np.array([records[i].aspect for i in positions])
    order = np.argsort(aspects, kind="stable")
    ordered, aspects = positions[order], aspects[order]
    buckets = bucket_of[ordered]
    low = np.minimum(np.searchsorted(buckets, buckets), np.searchsorted(aspects, aspects / ASPECT_TOLERANCE, "right"))
    high = np.maximum(
        np.searchsorted(buckets, buckets, "right"), np.searchsorted(aspects, aspects * ASPECT_TOLERANCE, "left")
    )
    return {int(ordered[k]): ordered[low[k] : high[k]] for k in range(len(ordered))}


def caption_of(a: PairRecord, b: PairRecord, source: str) -> str:
    """The prompt of a quadruplet by its source: `a` (the reference), `b`, `task` or `none`."""
    if source == "none":
        return ""
    return task_caption(b) if source == "task" else (a if source == "a" else b).caption


def missing_captions_line(records: Sequence[PairRecord], source: str) -> str:
    """What to report of training records whose prompt is empty though captions are wanted; "" when there is none."""
    without = [record.id for record in records if not record.caption]
    if not without or source in ("none", "task"):
        return ""
    return (
        f"captions: {len(without)} of {len(records)} have none (first: {without[0]}), so their prompt is empty; add "
        "text files and import again, or set text.caption_source to task (the task's name) or none"
    )


def task_caption(record: PairRecord) -> str:
    """The caption that fits every pair of the task, else the task's name as words."""
    return record.task_caption or task_caption_from_name(record.task)


def task_caption_from_name(task: str) -> str:
    """A folder name as words: `115-Colored Pencil_Filter` → `Colored Pencil Filter`."""
    return " ".join(re.sub(r"^\d+[-_. ]+", "", task).replace("_", " ").split()) or task


def all_captions(records: Sequence[PairRecord], source: str) -> tuple[str, ...]:
    """Every prompt of these records, "" included, sorted; what a text cache has to hold."""
    return tuple(sorted({"", *(caption_of(record, record, source) for record in records)}))


def uniforms(*key: int | str) -> tuple[float, ...]:
    """Eight independent numbers in [0, 1) that depend on nothing but the key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=64).digest()
    return tuple((word >> 11) / 2**53 for word in struct.unpack("<8Q", digest))


def choose(cumulative: np.ndarray, uniform: float) -> int:
    """Position chosen with the probabilities whose running sum (not necessarily to 1) is given."""
    below_total = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0.0))  # the product may round up to it
    return int(np.searchsorted(cumulative, below_total, side="right"))
