"""Stage 3: from records to one number per method and measure, with how sure it is.

    number = mean over tasks of the mean over the task's samples

Intervals are bootstrapped over tasks (a task's samples stand or fall together): resample tasks with replacement, take
the middle 95 % of the means. With one task there is no interval. Source: arXiv 2602.15727, Section 4.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import EvaluationError
from .folder import EvaluationFolder
from .generation import common_samples, missing_pictures, picture_hash
from .measuring import MEASURES
from .pairwise import PositionBias, couple_key, position_bias, wins_by_sample
from .records import Record
from .samples import Sample

RATINGS = {"preservation": "consistency", "accuracy": "accuracy"}
INVALID = "the judge's reply could not be read"
STALE = "the picture has changed since; run judge again"
NOT_ASKED = "not judged"
NOT_MEASURED = "not measured; run judge"


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


@dataclass(frozen=True)
class JudgeChoice:
    """Whose answers count.

    Attributes:
        model: id of the judge.
        prompts: kind → hash of the wording.
        source: `own words` or `paper`.
    """

    model: str
    prompts: dict[str, str]
    source: str


@dataclass(frozen=True)
class Evaluation:
    """Everything the tables show.

    Attributes:
        methods: in order.
        reference: whose win rates are given.
        samples: compared samples; every method has a picture for each.
        missing: method → samples without a picture, which nobody is judged on.
        measures: method → measure → summary.
        wins: method → summary of the reference's win rate against it, in percent.
        judge: None when there are no answers.
        bias: of the comparisons.
    """

    methods: tuple[str, ...]
    reference: str
    samples: tuple[Sample, ...]
    missing: dict[str, list[str]]
    measures: dict[str, dict[str, Summary]]
    wins: dict[str, Summary]
    judge: JudgeChoice | None
    bias: PositionBias


def summarise(
    values: Iterable[tuple[str, float]], left_out: Mapping[str, int], *, resamples: int = 2000, seed: int = 0
) -> Summary:
    """Return the summary of (task, value) couples.

    Args:
        values: one per sample that has a number.
        left_out: reason → count of those that have none.
        resamples: bootstrap samples.
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


def evaluate(
    folder: EvaluationFolder,
    methods: Sequence[str],
    samples: Sequence[Sample],
    *,
    reference: str,
    judge: str | None = None,
    resamples: int = 2000,
) -> Evaluation:
    """Return all summaries over the samples that every method has.

    Args:
        folder: with measurements, ratings and comparisons.
        methods: which to compare.
        samples: of the folder.
        reference: the method whose win rates are wanted.
        judge: model id; may be None when only one judge was asked.
        resamples: of the bootstrap.
    Raises: EvaluationError: when methods have no sample in common, or several judges answered and none is named.
    """
    common = common_samples(folder, methods, samples)
    choice = _choose_judge(folder, judge)
    measures = {
        method: _numbers(folder, method, common, resamples) | _ratings(folder, choice, method, common, resamples)
        for method in methods
    }
    others = [method for method in methods if method != reference]
    wins, bias = _comparisons(folder, choice, others, reference, common, resamples)
    return Evaluation(
        methods=tuple(methods),
        reference=reference,
        samples=tuple(common),
        missing={name: ids for name, ids in missing_pictures(folder, methods, samples).items() if ids},
        measures=measures,
        wins=wins,
        judge=choice,
        bias=bias,
    )


def _numbers(folder: EvaluationFolder, method: str, samples: Sequence[Sample], resamples: int) -> dict[str, Summary]:
    summaries = {}
    for measure in MEASURES:
        values, left_out = [], Counter[str]()
        for sample in samples:
            record = folder.measurements.find(method, sample.id)
            if record is None or record["picture_sha256"] != picture_hash(folder, method, sample.id):
                left_out[NOT_MEASURED] += 1
            elif record["numbers"][measure] is None:
                left_out[record["reasons"][measure]] += 1
            else:
                values.append((sample.task, record["numbers"][measure]))
        summaries[measure] = summarise(values, left_out, resamples=resamples)
    return summaries


def _ratings(
    folder: EvaluationFolder, choice: JudgeChoice | None, method: str, samples: Sequence[Sample], resamples: int
) -> dict[str, Summary]:
    values: dict[str, list[tuple[str, float]]] = {name: [] for name in RATINGS}
    left_out = Counter[str]()
    for sample in samples:
        record = None
        if choice is not None and "rating" in choice.prompts:
            record = folder.ratings.find(choice.model, choice.prompts["rating"], method, sample.id)
        if record is None:
            left_out[NOT_ASKED] += 1
        elif record["picture_sha256"] != picture_hash(folder, method, sample.id):
            left_out[STALE] += 1
        elif record["rating"] is None:
            left_out[INVALID] += 1
        else:
            for name, key in RATINGS.items():
                values[name].append((sample.task, float(record["rating"][key])))
    return {name: summarise(values[name], left_out, resamples=resamples) for name in RATINGS}


def _comparisons(
    folder: EvaluationFolder,
    choice: JudgeChoice | None,
    methods: Sequence[str],
    reference: str,
    samples: Sequence[Sample],
    resamples: int,
) -> tuple[dict[str, Summary], PositionBias]:
    """Method → the reference's win rate against it, where the judge was asked, and the judge's bias."""
    wanted = None if choice is None else (choice.model, choice.prompts.get("comparison"))
    of_judge = [r for r in folder.comparisons if (r["model"], r["prompt_sha256"]) == wanted]
    wins, counted = {}, []
    for method in methods:
        of_couple = [record for record in of_judge if record["methods"] == couple_key(reference, method)]
        current = [record for record in of_couple if _has_current_pictures(folder, record)]
        counted += current
        if of_couple:
            wins[method] = _win_rate(current, reference, samples, resamples)
    return wins, position_bias(counted)


def _win_rate(records: Sequence[Record], reference: str, samples: Sequence[Sample], resamples: int) -> Summary:
    """The reference's wins in the comparisons of one couple."""
    asked = {record["sample"] for record in records}
    wins = wins_by_sample(records, reference)
    left_out = Counter[str]()
    for sample in samples:
        if sample.id not in wins:
            left_out[INVALID if sample.id in asked else NOT_ASKED] += 1
    values = [(sample.task, 100 * wins[sample.id]) for sample in samples if sample.id in wins]
    return summarise(values, left_out, resamples=resamples)


def _choose_judge(folder: EvaluationFolder, wanted: str | None) -> JudgeChoice | None:
    """The judge whose answers count; of several wordings of one judge the last used."""
    records = {"rating": list(folder.ratings), "comparison": list(folder.comparisons)}
    models = list(dict.fromkeys(record["model"] for kind in records.values() for record in kind))
    if not models and wanted is None:
        return None
    if (wanted is None and len(models) > 1) or (wanted is not None and wanted not in models):
        raise EvaluationError(
            expected=f"the name of one judge that was asked: {', '.join(models) or 'none was'}",
            got=wanted or f"{len(models)} of them",
            remedy="Name it with --judge; answers of different judges are never mixed.",
        )
    model = wanted or models[0]
    last = {
        kind: next((r for r in reversed(of_kind) if r["model"] == model), None) for kind, of_kind in records.items()
    }
    prompts = {kind: record["prompt_sha256"] for kind, record in last.items() if record is not None}
    sources = {record["prompt_source"] for record in last.values() if record is not None}
    return JudgeChoice(model, prompts, "paper" if sources == {"paper"} else "own words")


def _has_current_pictures(folder: EvaluationFolder, record: Record) -> bool:
    hashes = [picture_hash(folder, method, record["sample"]) for method in record["shown"]]
    return hashes == record["pictures_sha256"]
