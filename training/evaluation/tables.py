"""An evaluation as Markdown in the paper's column order, and as JSON.

The paper's rows stand below ours only when the judge was asked in the paper's own words; with any other wording the
scores mean something else, and the table says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .aggregation import Evaluation
from .judge_choice import SOURCES
from .notes import OPTIONAL_MEASURES, escape, notes
from .paper_rows import paper_table
from .summaries import Summary

#: measure → (column title, decimals); the paper's four first, in its order, then its win rates, then ours.
_PAPER_COLUMNS = {
    "preservation": ("Pres. ↑", 2),
    "accuracy": ("Acc. ↑", 2),
    "lpips": ("LPIPS ↓", 3),
    "clip_direction": ("CLIP dir. ↑", 3),
}
_OWN_COLUMNS = {"psnr": ("PSNR(b′) dB ↑", 2), "ssim": ("SSIM(b′) ↑", 3)}
_ALL_COLUMNS = _PAPER_COLUMNS | _OWN_COLUMNS


def as_markdown(evaluation: Evaluation) -> str:
    """Return the table with its notes."""
    lines = [*_table(evaluation), "", *(f"- {note}" for note in notes(evaluation)), *_common_table(evaluation)]
    if evaluation.judge is not None and evaluation.judge.source == SOURCES["paper"]:
        lines += ["", "The paper's rows:", "", *paper_table()]
    return "\n".join(lines) + "\n"


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return everything the table shows, and more, as JSON-ready values."""
    reference = evaluation.references[0]
    return {
        "samples": len(evaluation.samples),
        "tasks": len({sample.task for sample in evaluation.samples}),
        "reference": reference,
        "methods": _plain(evaluation.measures),
        "win_rates_of_reference": _plain(evaluation.wins).get(reference, {}),
        "position_bias": asdict(evaluation.bias),
        "missing_pictures": evaluation.missing,
        "judge": None if evaluation.judge is None else asdict(evaluation.judge),
        "notes": notes(evaluation),
        "references": list(evaluation.references),
        "methods_on_common_samples": _plain(evaluation.common),
        "win_rates": _plain(evaluation.wins),
        "couples": {key: asdict(couple) for key, couple in evaluation.couples.items()},
        "made_by": evaluation.made_by,
        "not_in_test_set": evaluation.set_losses,
    }


def _table(evaluation: Evaluation) -> list[str]:
    own = [name for name in OPTIONAL_MEASURES if _has_numbers(evaluation, name)]
    against = _win_columns(evaluation)
    titles = [title for title, _ in _PAPER_COLUMNS.values()] + [f"vs {escape(method)} %" for method in against]
    titles += [_OWN_COLUMNS[name][0] for name in own]
    rows = {}
    for method in evaluation.methods:
        cells = {name: _measure_cell(evaluation, method, name) for name in _ALL_COLUMNS}
        wins = [_win_cell(evaluation, method, other) for other in against]
        rows[method] = [cells[name] for name in _PAPER_COLUMNS] + wins + [cells[name] for name in own]
    return _markdown_table(titles, rows)


def _common_table(evaluation: Evaluation) -> list[str]:
    """The measures that some methods lack for some samples, over the samples for which none lacks them."""
    differing = [name for name in _ALL_COLUMNS if _differs(evaluation, name)]
    if not differing:
        return []
    rows = {method: [_common_cell(evaluation, method, name) for name in differing] for method in evaluation.methods}
    title = "On the samples for which every method that has numbers has one (without them each method chooses its own):"
    return ["", title, "", *_markdown_table([_ALL_COLUMNS[name][0] for name in differing], rows)]


def _markdown_table(titles: list[str], rows: Mapping[str, list[str]]) -> list[str]:
    lines = ["| method | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(titles)]
    return lines + [f"| {escape(method)} | " + " | ".join(cells) + " |" for method, cells in rows.items()]


def _win_columns(evaluation: Evaluation) -> list[str]:
    """One reference: everything it was compared with, in its own row. Several: a column each, as in the paper."""
    if len(evaluation.references) == 1:
        return [m for m in evaluation.methods if m in evaluation.wins.get(evaluation.references[0], {})]
    return [reference for reference in evaluation.references if reference in evaluation.wins]


def _win_cell(evaluation: Evaluation, method: str, other: str) -> str:
    if len(evaluation.references) == 1 and method != evaluation.references[0]:
        return ""
    summary = evaluation.wins.get(method, {}).get(other)
    return "" if summary is None else _counted_cell(evaluation, summary, 1)


def _measure_cell(evaluation: Evaluation, method: str, measure: str) -> str:
    return _counted_cell(evaluation, evaluation.measures[method][measure], _ALL_COLUMNS[measure][1])


def _counted_cell(evaluation: Evaluation, summary: Summary, decimals: int) -> str:
    """A cell, with the number of samples where it is not all of them."""
    is_partial = 0 < summary.samples < len(evaluation.samples)
    return _cell(summary, decimals) + (f" (n {summary.samples})" if is_partial else "")


def _common_cell(evaluation: Evaluation, method: str, measure: str) -> str:
    if not evaluation.measures[method][measure].samples:
        return "null"
    summary = evaluation.common[method][measure]
    return f"{_cell(summary, _ALL_COLUMNS[measure][1])} (n {summary.samples})"


def _cell(summary: Summary, decimals: int) -> str:
    if summary.mean is None:
        return "null"
    text = f"{summary.mean:.{decimals}f}"
    if summary.low is not None and summary.high is not None:
        text += f" ± {(summary.high - summary.low) / 2:.{decimals}f}"
    return text


def _has_numbers(evaluation: Evaluation, measure: str) -> bool:
    return any(evaluation.measures[method][measure].samples for method in evaluation.methods)


def _differs(evaluation: Evaluation, measure: str) -> bool:
    """Whether a method's own samples are more than those of all methods with numbers."""
    return any(
        evaluation.measures[method][measure].samples > evaluation.common[method][measure].samples
        for method in evaluation.methods
    )


def _plain(summaries: Mapping[str, Mapping[str, Summary]]) -> dict[str, dict[str, Any]]:
    return {first: {name: asdict(summary) for name, summary in of.items()} for first, of in summaries.items()}
