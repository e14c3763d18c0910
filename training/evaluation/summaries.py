"""Numbers of samples → one number, with how sure it is.

    number = mean over tasks of the mean over the task's samples

Intervals are bootstrapped over tasks (a task's samples stand or fall together): resample tasks with replacement, take
the middle 95 % of the means. With one task there is no interval. Source: arXiv 2602.15727, Section 4.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .samples import Sample


@dataclass(frozen=True)
class Summary:
    """One measure of one method.

    Attributes:
        mean: over tasks of the means over samples; None when no sample has a value.
        low, high: 95 % bootstrap interval over tasks; None with fewer than two tasks.
        standard_error: likewise.
        samples: how many samples have a value.
        tasks: how many tasks they belong to.
        left_out: reason → how many samples have none for it.
    """

    mean: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    samples: int
    tasks: int
    left_out: dict[str, int]


@dataclass
class SampleValues:
    """One measure of one method before averaging.

    Attributes:
        by_sample: sample → value.
        left_out: reason → how many samples have none for it.
    """

    by_sample: dict[str, float] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, sample: Sample, value: float | str) -> None:
        """Take a sample's value, or the reason why it has none."""
        if isinstance(value, str):
            self.left_out[value] += 1
        else:
            self.by_sample[sample.id] = value

    def summary(self, samples: Sequence[Sample], *, resamples: int, only: Collection[str] | None = None) -> Summary:
        """Return the summary over the samples that have a value, or over those of them in `only`."""
        ids = self.by_sample.keys() if only is None else self.by_sample.keys() & set(only)
        values = [(sample.task, self.by_sample[sample.id]) for sample in samples if sample.id in ids]
        return summarise(values, self.left_out if only is None else {}, resamples=resamples)


def summarise(
    values: Iterable[tuple[str, float]], left_out: Mapping[str, int], *, resamples: int = 2000, seed: int = 0
) -> Summary:
    """Return the summary of (task, value) couples.

    Args:
        values: one per sample that has a number.
        left_out: reason → count of those that have none.
        resamples: bootstrap samples, at least 2.
        seed: of the bootstrap.
    """
    by_task: dict[str, list[float]] = defaultdict(list)
    for task, value in values:
        by_task[task].append(value)
    means = np.array([np.mean(by_task[task]) for task in sorted(by_task)])
    count = sum(len(task_values) for task_values in by_task.values())
    reasons = {reason: number for reason, number in left_out.items() if number}
    if not len(means):
        return Summary(None, None, None, None, 0, 0, reasons)
    low = high = error = None
    if len(means) > 1:
        drawn = np.random.default_rng(seed).integers(0, len(means), (resamples, len(means)))
        resampled = means[drawn].mean(1)
        low, high = (float(value) for value in np.percentile(resampled, (2.5, 97.5)))
        error = float(resampled.std(ddof=1))
    return Summary(float(means.mean()), low, high, error, count, len(means), reasons)
