"""Stage 3: from records to one number per method and measure (see `summaries`), and to win rates.

Every method is averaged over its own samples with a number. Methods may lack numbers for different samples (a result
equal to b has no direction, a reply may be unreadable), so each measure is also averaged over the samples for which
every method that has numbers at all has one: only these compare without a choice of samples in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .folder import EvaluationFolder
from .generation import common_samples, missing_pictures, picture_hash
from .judge_choice import JudgeChoice, choose_judge
from .measuring import MEASURES, made_by, read_number
from .pairwise import ORDERS, PositionBias, couple_key, is_current_comparison, position_bias, wins_by_sample
from .rating import is_current_rating
from .records import Record
from .samples import Sample, read_losses
from .summaries import SampleValues, Summary

RATINGS = {"preservation": "consistency", "accuracy": "accuracy"}
INVALID = "the judge's reply could not be read"
REFUSED = "the judge refused the question"
STALE = "the pictures have changed since; run judge again"
NOT_ASKED = "not judged"


@dataclass(frozen=True)
class Couple:
    """How two methods were compared.

    Attributes:
        in_one_order: samples that count with an answer in the drawn order alone.
        in_both_orders: samples that count with an answer in each order.
        left_out: reason → samples that do not count.
    """

    in_one_order: int
    in_both_orders: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class Evaluation:
    """Everything the tables show.

    Attributes:
        methods: in order.
        references: the methods that all others were compared with.
        samples: compared samples; every method has a picture for each.
        missing: method → samples without a picture, which nobody is judged on.
        measures: method → measure → summary over the method's samples with a number.
        common: likewise, over the samples for which every method with numbers has one.
        wins: method → reference, and reference → method, → summary of the first one's win rate, in percent.
        couples: key of two methods → how they were compared.
        judge: None when there are no answers.
        bias: of the comparisons.
        made_by: measure → which weights made its numbers; several are a mistake that the table shows.
        set_losses: what the test set could not use (see `sets`).
    """

    methods: tuple[str, ...]
    references: tuple[str, ...]
    samples: tuple[Sample, ...]
    missing: dict[str, list[str]]
    measures: dict[str, dict[str, Summary]]
    common: dict[str, dict[str, Summary]]
    wins: dict[str, dict[str, Summary]]
    couples: dict[str, Couple]
    judge: JudgeChoice | None
    bias: PositionBias
    made_by: dict[str, list[str]]
    set_losses: list[str] = field(default_factory=list)


def evaluate(
    folder: EvaluationFolder,
    methods: Sequence[str],
    samples: Sequence[Sample],
    *,
    reference: str | Sequence[str],
    judge: str | None = None,
    wording: str | None = None,
    resamples: int = 2000,
) -> Evaluation:
    """Return all summaries over the samples that every method has.

    Args:
        folder: with measurements, ratings and comparisons.
        methods: which to compare.
        samples: of the folder.
        reference: the method, or methods, that all others are compared with.
        judge: model id; may be None when only one judge was asked.
        wording: see `choose_judge`.
        resamples: of the bootstrap, at least 2.
    Raises: EvaluationError: when methods have no sample in common, or it is not clear whose answers count.
    """
    references = (reference,) if isinstance(reference, str) else tuple(reference)
    common = common_samples(folder, methods, samples)
    couples = list(dict.fromkeys((r, m) for r in references for m in methods if m != r))
    choice = choose_judge(folder, judge, wording, needed=_questions(methods, couples, common))
    values = {method: _numbers(folder, method, common) | _ratings(folder, choice, method, common) for method in methods}
    own, shared = _summaries(values, common, resamples)
    compared = _comparisons(folder, choice, couples, common)
    wins, modes = _win_rates(compared, couples, common, resamples)
    return Evaluation(
        methods=tuple(methods),
        references=references,
        samples=tuple(common),
        missing={name: ids for name, ids in missing_pictures(folder, methods, samples).items() if ids},
        measures=own,
        common=shared,
        wins=wins,
        couples=modes,
        judge=choice,
        bias=position_bias([record for found in compared.values() for record in found]),
        made_by=made_by(folder, methods, common),
        set_losses=read_losses(folder),
    )


Values = dict[str, SampleValues]


def _questions(
    methods: Sequence[str], couples: Sequence[tuple[str, str]], samples: Sequence[Sample]
) -> dict[str, set[tuple[str, ...]]]:
    """Kind → everything that a judge has to be asked for a whole table."""
    return {
        "rating": {(method, sample.id) for method in methods for sample in samples},
        "comparison": {(couple_key(*couple), sample.id) for couple in couples for sample in samples},
    }


def _numbers(folder: EvaluationFolder, method: str, samples: Sequence[Sample]) -> Values:
    values = {measure: SampleValues() for measure in MEASURES}
    for sample in samples:
        record, digest = folder.measurements.find(method, sample.id), picture_hash(folder, method, sample.id)
        for measure in MEASURES:
            values[measure].add(sample, read_number(record, measure, digest, sample))
    return values


def _ratings(folder: EvaluationFolder, choice: JudgeChoice | None, method: str, samples: Sequence[Sample]) -> Values:
    values = {name: SampleValues() for name in RATINGS}
    prompt = None if choice is None else choice.prompts.get("rating")
    for sample in samples:
        record = None
        if choice is not None and prompt is not None:
            record = folder.ratings.find(choice.model, prompt, method, sample.id)
        for name, key in RATINGS.items():
            if record is None:
                values[name].add(sample, NOT_ASKED)
            elif not is_current_rating(folder, record, sample):
                values[name].add(sample, STALE)
            elif record["rating"] is None:
                values[name].add(sample, _why_invalid(record))
            else:
                values[name].add(sample, float(record["rating"][key]))
    return values


def _summaries(
    values: Mapping[str, Values], samples: Sequence[Sample], resamples: int
) -> tuple[dict[str, dict[str, Summary]], dict[str, dict[str, Summary]]]:
    """Per method and measure: over its own samples, and over those of all methods that have any."""
    own: dict[str, dict[str, Summary]] = {method: {} for method in values}
    shared: dict[str, dict[str, Summary]] = {method: {} for method in values}
    for measure in (*MEASURES, *RATINGS):
        with_numbers = [set(of[measure].by_sample) for of in values.values() if of[measure].by_sample]
        ids = set.intersection(*with_numbers) if with_numbers else set()
        for method, of_method in values.items():
            own[method][measure] = of_method[measure].summary(samples, resamples=resamples)
            shared[method][measure] = of_method[measure].summary(samples, resamples=resamples, only=ids)
    return own, shared


def _comparisons(
    folder: EvaluationFolder, choice: JudgeChoice | None, couples: Sequence[tuple[str, str]], samples: Sequence[Sample]
) -> dict[str, list[Record]]:
    """Key of two methods → the comparisons that count: of this judge and wording, of these samples, up to date."""
    wanted = None if choice is None else (choice.model, choice.prompts.get("comparison"))
    by_id = {sample.id: sample for sample in samples}
    found: dict[str, list[Record]] = {couple_key(*couple): [] for couple in couples}
    for record in folder.comparisons:
        sample = by_id.get(record["sample"])
        is_counted = (record["model"], record["prompt_sha256"]) == wanted and record["methods"] in found
        if is_counted and sample is not None and is_current_comparison(folder, record, sample):
            found[record["methods"]].append(record)
    return found


def _win_rates(
    compared: Mapping[str, Sequence[Record]],
    couples: Sequence[tuple[str, str]],
    samples: Sequence[Sample],
    resamples: int,
) -> tuple[dict[str, dict[str, Summary]], dict[str, Couple]]:
    """Both methods' win rates over each other, where the judge was asked, and how each couple was compared."""
    rates: dict[str, dict[str, Summary]] = {}
    modes = {}
    for first, second in couples:
        key = couple_key(first, second)
        if not compared[key]:
            continue
        for winner, other in ((first, second), (second, first)):
            values = _wins(compared[key], winner, samples)
            rates.setdefault(winner, {})[other] = values.summary(samples, resamples=resamples)
        orders = Counter(record["sample"] for record in compared[key])
        both = sum(orders[sample] == len(ORDERS) for sample in values.by_sample)
        modes[key] = Couple(len(values.by_sample) - both, both, dict(values.left_out))
    return rates, modes


def _wins(records: Sequence[Record], winner: str, samples: Sequence[Sample]) -> SampleValues:
    """A method's wins over another in percent, by sample."""
    unread = {record["sample"]: _why_invalid(record) for record in records if record["better"] is None}
    wins = wins_by_sample(records, winner)
    values = SampleValues()
    for sample in samples:
        values.add(sample, 100 * wins[sample.id] if sample.id in wins else unread.get(sample.id, NOT_ASKED))
    return values


def _why_invalid(record: Record) -> str:
    return INVALID if record.get("refused") is None else REFUSED
