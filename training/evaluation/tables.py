"""An evaluation as Markdown in the paper's column order, and as JSON.

The paper's rows stand below ours only when the judge was asked in the paper's own words; with any other wording the
scores mean something else, and the table says so. Source of the rows: arXiv 2602.15727, Tables 1 and S2.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from .aggregation import RATINGS, Evaluation, Summary

#: measure → (column title, decimals); the paper's four first, in its order, then its win rates, then ours.
_PAPER_COLUMNS = {
    "preservation": ("Pres. ↑", 2),
    "accuracy": ("Acc. ↑", 2),
    "lpips": ("LPIPS ↓", 3),
    "clip_direction": ("CLIP dir. ↑", 3),
}
_OWN_COLUMNS = {"psnr": ("PSNR(b′) dB ↑", 2), "ssim": ("SSIM(b′) ↑", 3)}
#: model → Preservation, Accuracy, LPIPS, CLIP direction as the paper prints them.
PAPER_ROWS = {
    "LoRWeB, 32 × rank 4": (7.87, 5.94, 0.31, 0.21),
    "one LoRA, equal capacity": (7.99, 5.70, 0.27, 0.20),
    "one LoRA, larger": (7.88, 5.48, 0.26, 0.18),
    "VisualCloze": (5.24, 4.93, 0.53, 0.21),
    "RelationAdapter": (7.01, 5.93, 0.43, 0.22),
    "Edit-Transfer": (7.38, 4.79, 0.31, 0.04),
}
OWN_WORDS_NOTE = (
    "The judge was asked in this project's own words, not the paper's: Preservation, Accuracy and win rates compare "
    "the methods of this table with each other, and **not with the paper's numbers**."
)
PAPER_WORDS_NOTE = (
    "The judge was asked with the wording declared to be the paper's (`--paper-prompts`). The paper's rows compare "
    "only if judge, test set and picture sizes are the paper's too."
)
_SHOWN_SAMPLES = 3


def as_markdown(evaluation: Evaluation) -> str:
    """Return the table with its notes."""
    lines = [*_table(evaluation), "", *(f"- {note}" for note in notes(evaluation))]
    if evaluation.judge is not None and evaluation.judge.source == "paper":
        lines += ["", "The paper's rows:", "", *_paper_table()]
    return "\n".join(lines) + "\n"


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return everything the table shows, and more, as JSON-ready values."""
    return {
        "samples": len(evaluation.samples),
        "tasks": len({sample.task for sample in evaluation.samples}),
        "reference": evaluation.reference,
        "methods": {
            method: {name: asdict(summary) for name, summary in evaluation.measures[method].items()}
            for method in evaluation.methods
        },
        "win_rates_of_reference": {method: asdict(summary) for method, summary in evaluation.wins.items()},
        "position_bias": asdict(evaluation.bias),
        "missing_pictures": evaluation.missing,
        "judge": None if evaluation.judge is None else asdict(evaluation.judge),
        "notes": notes(evaluation),
    }


def notes(evaluation: Evaluation) -> list[str]:
    """Return what a reader of the numbers has to know, most important first."""
    tasks = len({sample.task for sample in evaluation.samples})
    lines = [
        f"{len(evaluation.samples)} samples in {tasks} task(s); means within a task first, then over tasks; "
        + ("± is half the 95 % bootstrap interval over tasks." if tasks > 1 else "one task, so no intervals.")
    ]
    if evaluation.missing:
        lines.append(_missing_note(evaluation))
    lines += _judge_notes(evaluation)
    lines += _left_out_notes(evaluation)
    if any(summary.samples for measures in evaluation.measures.values() for summary in [measures["psnr"]]):
        lines.append("PSNR is at most 58.9 dB, the rounding of 8-bit pictures.")
    return lines


def _table(evaluation: Evaluation) -> list[str]:
    against = [method for method in evaluation.methods if method in evaluation.wins]
    own = {
        name: column
        for name, column in _OWN_COLUMNS.items()
        if any(evaluation.measures[method][name].samples for method in evaluation.methods)
    }
    columns = _PAPER_COLUMNS | own
    titles = [title for title, _ in _PAPER_COLUMNS.values()] + [f"vs {method} %" for method in against]
    titles += [title for title, _ in own.values()]
    lines = ["| method | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(titles)]
    for method in evaluation.methods:
        cells = {name: _cell(evaluation.measures[method][name], columns[name][1]) for name in columns}
        wins = [_cell(evaluation.wins[other], 1) if method == evaluation.reference else "" for other in against]
        row = [cells[name] for name in _PAPER_COLUMNS] + wins + [cells[name] for name in own]
        lines.append(f"| {_escape(method)} | " + " | ".join(row) + " |")
    return lines


def _paper_table() -> list[str]:
    titles = [title for title, _ in _PAPER_COLUMNS.values()]
    lines = ["| model | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(titles)]
    return lines + [f"| {model} | " + " | ".join(f"{n:.2f}" for n in row) + " |" for model, row in PAPER_ROWS.items()]


def _cell(summary: Summary, decimals: int) -> str:
    if summary.mean is None:
        return "null"
    text = f"{summary.mean:.{decimals}f}"
    if summary.low is not None and summary.high is not None:
        text += f" ± {(summary.high - summary.low) / 2:.{decimals}f}"
    return text


def _missing_note(evaluation: Evaluation) -> str:
    parts = [
        f"{method} lacks {len(ids)} (first {', '.join(ids[:_SHOWN_SAMPLES])})"
        for method, ids in evaluation.missing.items()
    ]
    return "Compared on the common set only, since pictures are missing: " + "; ".join(parts) + "."


def _judge_notes(evaluation: Evaluation) -> list[str]:
    judge, bias = evaluation.judge, evaluation.bias
    if judge is None:
        return ["No judge was asked: Preservation, Accuracy and win rates are null."]
    hashes = ", ".join(f"{kind} {digest}" for kind, digest in judge.prompts.items())
    lines = [PAPER_WORDS_NOTE if judge.source == "paper" else OWN_WORDS_NOTE, f"Judge {judge.model}; wording {hashes}."]
    if bias.first_share is not None:
        text = f"Position bias: the judge chose the first picture in {bias.first_share:.0%} of {bias.answers} answers"
        if bias.agreement is not None:
            text += f"; asked both ways it named the same winner in {bias.agreement:.0%} of {bias.both_orders} couples"
        lines.append(text + (". Order drawn at random." if bias.agreement is None else ", else half a win each."))
    return lines


def _left_out_notes(evaluation: Evaluation) -> list[str]:
    """Every reason for a missing number, with how many samples of which methods it concerns."""
    concerned: dict[tuple[str, str], Counter[str]] = {}
    for method in evaluation.methods:
        for measure, summary in evaluation.measures[method].items():
            if _is_told_elsewhere(evaluation, measure, summary):
                continue
            for reason, count in summary.left_out.items():
                concerned.setdefault((measure, reason), Counter())[method] += count
    for method, summary in evaluation.wins.items():
        for reason, count in summary.left_out.items():
            concerned.setdefault((f"win rate against {method}", reason), Counter())[evaluation.reference] += count
    return [
        f"{measure} left out, {reason}: " + ", ".join(f"{method} {count}" for method, count in counts.items()) + "."
        for (measure, reason), counts in concerned.items()
    ]


def _is_told_elsewhere(evaluation: Evaluation, measure: str, summary: Summary) -> bool:
    """Columns that are not shown, and the missing judge, which has a note of its own."""
    return (measure in _OWN_COLUMNS and not summary.samples) or (measure in RATINGS and evaluation.judge is None)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
