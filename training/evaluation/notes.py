"""What a reader of a table has to know: what was compared, by whom, and every number that is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from .aggregation import RATINGS, Couple, Evaluation
from .judge_choice import SOURCES
from .summaries import Summary

#: Measures whose columns appear only when they have numbers.
OPTIONAL_MEASURES = ("psnr", "ssim")
OWN_WORDS_NOTE = (
    "The judge was asked in this project's own words, not the paper's: Preservation, Accuracy and win rates compare "
    "the methods of this table with each other, and **not with the paper's numbers**."
)
PAPER_WORDS_NOTE = (
    "The judge was asked with the wording declared to be the paper's (`--paper-prompts`). The paper's rows compare "
    "only if judge, test set and picture sizes are the paper's too."
)
_SHOWN_SAMPLES = 3


def notes(evaluation: Evaluation) -> list[str]:
    """Return the notes, most important first."""
    tasks = len({sample.task for sample in evaluation.samples})
    lines = [
        f"{len(evaluation.samples)} samples in {tasks} task(s); means within a task first, then over tasks; "
        + ("± is half the 95 % bootstrap interval over tasks." if tasks > 1 else "one task, so no intervals.")
    ]
    if evaluation.missing:
        lines.append(missing_note(evaluation.missing))
    lines += [f"Not in the test set: {loss}." for loss in evaluation.set_losses]
    lines += _judge_notes(evaluation)
    lines += [_couple_note(key, couple) for key, couple in evaluation.couples.items()]
    lines += _left_out_notes(evaluation)
    lines += _weights_notes(evaluation)
    if any(measures["psnr"].samples for measures in evaluation.measures.values()):
        lines.append("PSNR is at most 58.9 dB, the rounding of 8-bit pictures.")
    return lines


def escape(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def missing_note(missing: Mapping[str, Sequence[str]]) -> str:
    """Return the words about samples that are left out since a method has no picture for them."""
    parts = [f"{method} lacks {len(ids)} (first {', '.join(ids[:_SHOWN_SAMPLES])})" for method, ids in missing.items()]
    return (
        "Compared on the common set only, since pictures are missing: " + "; ".join(parts) + ". `generate` with the "
        "method brings in what is there by then; `--without NAME` leaves a method out."
    )


def _judge_notes(evaluation: Evaluation) -> list[str]:
    judge, bias = evaluation.judge, evaluation.bias
    if judge is None:
        return ["No judge was asked: Preservation, Accuracy and win rates are null."]
    hashes = ", ".join(f"{kind} {digest}" for kind, digest in judge.prompts.items())
    is_paper = judge.source == SOURCES["paper"]
    lines = [PAPER_WORDS_NOTE if is_paper else OWN_WORDS_NOTE, f"Judge {judge.model}; wording {hashes}."]
    if judge.others:
        others = "; ".join(f"{kind} {', '.join(digests)}" for kind, digests in judge.others.items())
        lines.append(
            f"This judge was also asked in other words, whose answers are not counted ({others}): without `--wording` "
            "the newest wording with the most answers counts."
        )
    if bias.first_share is not None:
        text = f"Position bias: the judge chose the first picture in {bias.first_share:.0%} of {bias.answers} answers"
        if bias.agreement is not None:
            text += f"; asked both ways it named the same winner in {bias.agreement:.0%} of {bias.both_orders} couples"
        lines.append(f"{text}.")
    return lines


def _couple_note(key: str, couple: Couple) -> str:
    """How two methods were compared; samples that do not count are told even when there are none unreadable."""
    if not couple.in_one_order:
        mode = f"both orders, a disagreement is half a win each; {couple.in_both_orders} samples"
    elif not couple.in_both_orders:
        mode = f"one order, drawn at random; {couple.in_one_order} samples"
    else:
        mode = (
            f"{couple.in_both_orders} samples in both orders, a disagreement is half a win each, and "
            f"{couple.in_one_order} in one drawn at random (`judge --both-orders` asks the rest)"
        )
    reasons = "; ".join(f"{reason}: {count}" for reason, count in couple.left_out.items())
    return f"Compared {key}: {mode}. Left out: {reasons or 'none'}."


def _left_out_notes(evaluation: Evaluation) -> list[str]:
    """Every reason for a missing number, with how many samples of which methods it concerns."""
    concerned: dict[tuple[str, str], Counter[str]] = {}
    for method in evaluation.methods:
        for measure, summary in evaluation.measures[method].items():
            if _is_told_elsewhere(evaluation, measure, summary):
                continue
            for reason, count in summary.left_out.items():
                concerned.setdefault((measure, reason), Counter())[method] += count
    return [
        f"{measure} left out, {reason}: " + ", ".join(f"{method} {count}" for method, count in counts.items()) + "."
        for (measure, reason), counts in concerned.items()
    ]


def _is_told_elsewhere(evaluation: Evaluation, measure: str, summary: Summary) -> bool:
    """Columns that are not shown, and the missing judge, which has a note of its own."""
    return (measure in OPTIONAL_MEASURES and not summary.samples) or (measure in RATINGS and evaluation.judge is None)


def _weights_notes(evaluation: Evaluation) -> list[str]:
    lines = []
    for measure, names in evaluation.made_by.items():
        if len(names) == 1:
            lines.append(f"{measure} by {names[0]}.")
        else:
            lines.append(
                f"**{measure} mixes numbers by different weights** ({', '.join(names)}), which do not compare: run "
                "`judge` again with one of them."
            )
    return lines
