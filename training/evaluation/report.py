"""An evaluation as a Markdown table in the paper's column order, as a plot, and as sheets of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorweb_core.images import read_image

from ..base.sheets import contact_sheet
from ..data.pairing import uniforms
from .aggregation import NOT_JUDGED, Evaluation, Summary
from .folder import EvaluationError, EvaluationFolder, write_file
from .metrics import NOT_MEASURED
from .test_set import Sample

#: metric → (column head, decimals); win rates come after the paper's four.
_PAPER_COLUMNS = {
    "preservation": ("Pres. ↑", 2),
    "accuracy": ("Acc. ↑", 2),
    "lpips": ("LPIPS ↓", 3),
    "clip_direction": ("CLIP dir. ↑", 3),
}
_OWN_COLUMNS = {"gmsd": ("GMSD ↓", 3), "psnr": ("PSNR(b′) dB ↑", 2), "ssim": ("SSIM(b′) ↑", 3)}
_COLUMNS = _PAPER_COLUMNS | _OWN_COLUMNS
#: The paper's Tables 1 and S2: Pres., Acc., LPIPS, CLIP dir., and win rates of the row over the four baselines.
_PAPER_HEADS = ("vs LoRA %", "vs Edit-Transfer %", "vs VisualCloze %", "vs RelationAdapter %")
PAPER_ROWS: dict[str, tuple[float, ...]] = {
    "LoRWeB, 32 × rank 4": (7.87, 5.94, 0.31, 0.21, 57.9, 70.4, 68.1, 58.5),
    "32 × rank 16": (8.13, 4.92, 0.20, 0.11, 51.8, 63.9, 62.4, 49.6),
    "8 × rank 16": (7.82, 5.49, 0.29, 0.19, 59.9, 73.1, 67.0, 56.7),
    "16 × rank 4": (7.74, 5.95, 0.31, 0.23, 60.4, 70.5, 68.5, 56.6),
    "64 × rank 4": (7.80, 5.48, 0.27, 0.19, 56.5, 67.7, 66.3, 52.6),
    "tanh instead of softmax": (7.94, 4.49, 0.18, 0.09, 48.2, 58.3, 51.8, 42.1),
    "encoder sees the grid only": (7.90, 5.75, 0.28, 0.20, 61.9, 73.3, 68.2, 53.9),
    "SigLIP2": (7.83, 5.82, 0.31, 0.21, 59.0, 71.7, 71.5, 55.5),
    "SigLIP2 + grid only": (7.85, 5.71, 0.29, 0.20, 59.5, 73.8, 66.8, 58.3),
    "one LoRA, rank 128": (7.99, 5.70, 0.27, 0.20),
    "one LoRA, rank 256": (7.88, 5.48, 0.26, 0.18),
    "VisualCloze": (5.24, 4.93, 0.53, 0.21),
    "RelationAdapter": (7.01, 5.93, 0.43, 0.22),
    "Edit-Transfer": (7.38, 4.79, 0.31, 0.04),
}
OWN_WORDING_NOTE = "Prompts in this project's own words: scores and win rates do not compare with the paper's."
_AXES = (("preservation", "accuracy"), ("lpips", "clip_direction"))
_SHOWN = 3


def as_markdown(evaluation: Evaluation) -> str:
    """Return the table, what a reader must know about it, and the paper's rows if its wording was used."""
    own = [name for name in _OWN_COLUMNS if any(found[name].samples for found in evaluation.methods.values())]
    heads = [head for head, _ in _PAPER_COLUMNS.values()]
    heads += [f"vs {_escape(method)} %" for method in evaluation.win_rates]
    heads += [_COLUMNS[name][0] for name in own]
    rows = {}
    for method, summaries in evaluation.methods.items():
        wins = evaluation.win_rates.values() if method == evaluation.reference else [None] * len(evaluation.win_rates)
        rows[method] = [
            *(_cell(evaluation, summaries[name], decimals) for name, (_, decimals) in _PAPER_COLUMNS.items()),
            *(_cell(evaluation, summary, 1) for summary in wins),
            *(_cell(evaluation, summaries[name], _COLUMNS[name][1]) for name in own),
        ]
    notes = [
        f"{evaluation.samples} samples in {evaluation.tasks} tasks; means within a task first, then over tasks; "
        "± is half the 95 % bootstrap interval over tasks."
    ]
    if evaluation.judge:
        is_papers, bias = evaluation.judge["wording"] == "paper", evaluation.bias
        notes += [f"Judge: {evaluation.judge['model']}.", "The paper's prompts." if is_papers else OWN_WORDING_NOTE]
        if bias.first_share is not None:
            note = f"Position bias: the first image was chosen in {bias.first_share:.0%} of {bias.answers} answers"
            if bias.agreement is not None:
                note += f", the same image in both orders in {bias.agreement:.0%} of {bias.both_orders}"
            notes.append(f"{note}.")
    for method, samples in evaluation.missing_images.items():
        names = ", ".join(samples[:_SHOWN])
        notes.append(f"Compared without {len(samples)} samples for which {method} has no image (first {names}).")
    notes += [f"Not in the test set: {line}." for line in evaluation.not_used]
    for method, summaries in evaluation.methods.items():
        shown = {name: summaries[name] for name in (*_PAPER_COLUMNS, *own)}
        named = {_COLUMNS[name][0].rstrip(" ↑↓"): summary for name, summary in shown.items()}
        if method == evaluation.reference:
            named |= {f"vs {other}": summary for other, summary in evaluation.win_rates.items()}
        for name, summary in named.items():
            for reason, count in summary.left_out.items():
                if summary.samples or reason not in (NOT_MEASURED, NOT_JUDGED):  # else the column is null for all
                    notes.append(f"{method}, {name}: {count} without a number ({reason}).")
    lines = [*_table("method", heads, rows), "", *(f"- {note}" for note in notes)]
    if evaluation.judge and evaluation.judge["wording"] == "paper":
        heads = [*(head for head, _ in _PAPER_COLUMNS.values()), *_PAPER_HEADS]
        cells = {
            model: [f"{number:.{2 if column < 4 else 1}f}" for column, number in enumerate(numbers)]
            for model, numbers in PAPER_ROWS.items()
        }
        padded = {model: row + [""] * (len(heads) - len(row)) for model, row in cells.items()}
        lines += ["", "The paper's numbers (they compare only on its test set, with its judge):", ""]
        lines += _table("model", heads, padded)
    return "\n".join(lines) + "\n"


def draw_pareto(evaluation: Evaluation, path: Path) -> bool:
    """Plot Preservation against Accuracy, without ratings LPIPS against CLIP direction; False if there are neither.

    Raises EvaluationError if matplotlib is missing.
    """
    across, up = _AXES[0] if any(found["accuracy"].samples for found in evaluation.methods.values()) else _AXES[1]
    points = {method: (found[across], found[up]) for method, found in evaluation.methods.items()}
    points = {method: (x, y) for method, (x, y) in points.items() if x.samples and y.samples}
    if not points:
        return False
    try:
        from matplotlib.figure import Figure  # without pyplot: no window system, no global state
    except ImportError as error:
        raise EvaluationError('The plot needs matplotlib: pip install "lorweb[eval]", or use --no-plot.') from error
    figure = Figure(figsize=(6, 5))
    plot = figure.subplots()
    for method, summaries in points.items():
        middle = [summary.mean or 0.0 for summary in summaries]
        errors = [
            None if s.low is None or s.high is None else [[max(0.0, m - s.low)], [max(0.0, s.high - m)]]
            for s, m in zip(summaries, middle, strict=True)
        ]
        plot.errorbar(middle[0], middle[1], xerr=errors[0], yerr=errors[1], fmt="o", capsize=3)
        plot.annotate(method, (middle[0], middle[1]), textcoords="offset points", xytext=(6, 6))
    if across == "lpips":
        plot.invert_xaxis()
    plot.set(xlabel=_COLUMNS[across][0], ylabel=_COLUMNS[up][0], title="top right is better")
    plot.margins(0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return True


def write_sheets(
    folder: EvaluationFolder, methods: Sequence[str], samples: Sequence[Sample], *, rows: int, sheets: int,
    cell_px: int = 192,
) -> None:  # fmt: skip
    """Write up to `sheets` images with a row per sample: a, a′, b, b′ of every method, the true b′.

    Tasks take turns, so that every task is shown before any is shown twice. Sheets of an earlier run are removed.
    """
    for old in folder.results.glob("sheet-[0-9][0-9].png"):
        old.unlink()
    turns: dict[str, int] = {}
    ordered = []
    for sample in sorted(samples, key=lambda sample: uniforms("sheet", sample.id)):
        turns[sample.task] = turns.get(sample.task, 0) + 1
        ordered.append((turns[sample.task], sample.task, sample))
    chosen = [sample for *_, sample in sorted(ordered, key=lambda item: item[:2])]
    heads = ["a", "a′", "b", *methods, *(["true b′"] if any(sample.truth for sample in samples) else [])]
    for number in range(min(sheets, -(-len(chosen) // rows))):
        lines = []
        for sample in chosen[number * rows : (number + 1) * rows]:
            made = [folder.image(method, sample.id) for method in methods]
            paths = [*folder.triplet(sample.id), *made, folder.truth(sample.id)]
            images = [read_image(path) if path.is_file() else None for path in paths[: len(heads)]]
            lines.append((f"{sample.task}: {sample.id}", images))
        write_file(folder.results / f"sheet-{number + 1:02d}.png", contact_sheet(heads, lines, cell_px=cell_px))


def _table(first: str, heads: Sequence[str], rows: dict[str, list[str]]) -> list[str]:
    lines = [f"| {first} | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    return lines + [f"| {_escape(name)} | " + " | ".join(cells) + " |" for name, cells in rows.items()]


def _cell(evaluation: Evaluation, summary: Summary | None, decimals: int) -> str:
    """The mean, half the interval, and the number of samples if it is not all of them."""
    if summary is None or summary.mean is None:
        return "" if summary is None else "null"
    text = f"{summary.mean:.{decimals}f}"
    if summary.low is not None and summary.high is not None:
        text += f" ± {(summary.high - summary.low) / 2:.{decimals}f}"
    return text + (f" (n {summary.samples})" if summary.samples < evaluation.samples else "")


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
