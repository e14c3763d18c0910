"""From records to one number per method and metric: the mean within every task, then the mean over tasks.

Intervals are bootstrapped over tasks: resample them with replacement and take the middle 95 % of the means. With one
task there is no interval. Source: arXiv 2602.15727, Section 4.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .folder import EvaluationFolder
from .methods import common_samples, missing_images
from .metrics import METRICS, Number, read_number
from .questions import ORDERS, Judging, make_question, shown_order
from .test_set import Sample, read_not_used

#: column → field of the judge's answer.
RATINGS = {"preservation": "consistency", "accuracy": "accuracy"}
NOT_JUDGED = "not judged"
RESAMPLES = 2000


@dataclass(frozen=True)
class Summary:
    """One number of one method."""

    mean: float | None  # over tasks of the means over their samples; None if no sample has a number
    low: float | None  # 95 % interval over tasks; None with fewer than two tasks
    high: float | None
    samples: int  # how many have a number
    tasks: int
    left_out: dict[str, int]  # reason → number of samples without one


@dataclass(frozen=True)
class PositionBias:
    """How the judge's choices depend on the position of an image."""

    answers: int  # how many comparisons were answered
    first_share: float | None  # share that chose the first image; 0.5 without bias, since the order is random
    both_orders: int  # how many were answered in both orders
    agreement: float | None  # share of those with the same winner


@dataclass(frozen=True)
class Evaluation:
    """Everything in the table and in results.json."""

    reference: str  # the method that was compared with all others
    samples: int  # how many; every method has an image for each of these samples
    tasks: int
    methods: dict[str, dict[str, Summary]]  # method → metric → summary
    win_rates: dict[str, Summary]  # other method → win rate of the reference over it, in percent
    bias: PositionBias
    judge: dict[str, str] | None  # model, and wording of the prompts ("own" or "paper"); None without a judge
    missing_images: dict[str, list[str]]  # method → samples that no method is judged on
    not_used: list[str]  # what the test set could not use


def summarize(values: Iterable[tuple[str, Number]]) -> Summary:
    """Return the summary of (task, number or reason why there is none), one per sample in any order."""
    by_task: dict[str, list[float]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for task, value in values:
        if isinstance(value, str):
            left_out[value] += 1
        else:
            by_task[task].append(value)
    if not by_task:
        return Summary(None, None, None, 0, 0, dict(left_out))
    means = np.array([np.mean(by_task[task]) for task in sorted(by_task)])
    low = high = None
    if len(means) > 1:
        chosen = np.random.default_rng(0).integers(0, len(means), (RESAMPLES, len(means)))
        low, high = (float(value) for value in np.percentile(means[chosen].mean(1), (2.5, 97.5)))
    return Summary(float(means.mean()), low, high, sum(map(len, by_task.values())), len(means), dict(left_out))


def evaluate(
    folder: EvaluationFolder, methods: Sequence[str], samples: Sequence[Sample], *, reference: str
) -> Evaluation:
    """Return all summaries over the samples for which every method has an image; the latest judge counts.

    Raises EvaluationError if there are no such samples.
    """
    judging = Judging.latest(folder)
    common = common_samples(folder, methods, samples)
    summaries: dict[str, dict[str, Summary]] = {}
    for method in methods:
        numbers = {metric: [read_number(folder, method, sample, metric) for sample in common] for metric in METRICS}
        for name, key in RATINGS.items():
            numbers[name] = []
            for sample in common:
                question = judging and make_question(folder, judging, sample, [method])
                record = question and folder.answers.get(question.key)
                answer = record and record["answer"]
                numbers[name].append(float(answer[key]) if answer else record["failure"] if record else NOT_JUDGED)
        summaries[method] = {
            name: summarize(zip((sample.task for sample in common), values, strict=True))
            for name, values in numbers.items()
        }
    wins, firsts, agreements = {}, [], []
    for other in [method for method in methods if method != reference]:
        values: list[tuple[str, Number]] = []
        for sample in common:
            winners: list[str | None] = []
            failure = NOT_JUDGED
            for order in ORDERS:
                shown = shown_order(reference, other, sample.id, order)
                question = judging and make_question(folder, judging, sample, shown)
                record = question and folder.answers.get(question.key)
                if record:
                    better = record["answer"] and record["answer"]["better"]
                    winners.append(shown[better - 1] if better else None)
                    firsts += [better == 1] if better else []
                    failure = record["failure"] or failure
            if len(winners) == len(ORDERS) and None not in winners:
                agreements.append(winners[0] == winners[1])
            # One unreadable answer leaves the sample out: the other order alone would go by position.
            is_usable = winners and None not in winners
            values.append((sample.task, 100 * winners.count(reference) / len(winners) if is_usable else failure))
        summary = summarize(values)
        if summary.samples or set(summary.left_out) != {NOT_JUDGED}:
            wins[other] = summary
    return Evaluation(
        reference=reference,
        samples=len(common),
        tasks=len({sample.task for sample in common}),
        methods=summaries,
        win_rates=wins,
        bias=PositionBias(
            len(firsts), float(np.mean(firsts)) if firsts else None,
            len(agreements), float(np.mean(agreements)) if agreements else None,
        ),
        judge={"model": judging.model, "wording": "paper" if judging.is_papers else "own"} if judging else None,
        missing_images=missing_images(folder, methods, samples),
        not_used=read_not_used(folder),
    )  # fmt: skip
