"""The trade-off as a plot: Preservation against Accuracy, a point per method with its intervals.

Without ratings LPIPS and CLIP direction take their place (the same trade-off, measured). matplotlib is optional.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .aggregation import Evaluation
from .errors import EvaluationError
from .summaries import Summary

#: (horizontal, vertical), the first couple that has numbers for some method is drawn; LPIPS falls to the right.
_AXES = (("preservation", "accuracy"), ("lpips", "clip_direction"))
_TITLES = {
    "preservation": "Preservation (1–10) →",
    "accuracy": "Edit accuracy (1–10) →",
    "lpips": "LPIPS(b, b̂′), lower is better →",
    "clip_direction": "CLIP direction →",
}


def draw_pareto(evaluation: Evaluation, path: Path) -> bool:
    """Save the plot; False when no couple of measures has numbers.

    Raises: EvaluationError: when matplotlib is missing.
    """
    axes = next((couple for couple in _AXES if _points(evaluation, couple)), None)
    if axes is None:
        return False
    figure, plot = _new_figure()
    for method, horizontal, vertical in _points(evaluation, axes):
        plot.errorbar(
            horizontal.mean, vertical.mean, xerr=_interval(horizontal), yerr=_interval(vertical), fmt="o", capsize=3
        )
        plot.annotate(method, (horizontal.mean, vertical.mean), textcoords="offset points", xytext=(6, 6))
    if axes[0] == "lpips":
        plot.invert_xaxis()
    plot.set_xlabel(_TITLES[axes[0]])
    plot.set_ylabel(_TITLES[axes[1]])
    plot.set_title(f"{len(evaluation.samples)} samples; top right is better")
    plot.margins(0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    return True


def _points(evaluation: Evaluation, axes: tuple[str, str]) -> list[tuple[str, Summary, Summary]]:
    measures = evaluation.measures
    points = [(method, measures[method][axes[0]], measures[method][axes[1]]) for method in evaluation.methods]
    return [(method, x, y) for method, x, y in points if x.mean is not None and y.mean is not None]


def _interval(summary: Summary) -> list[list[float]] | None:
    if summary.mean is None or summary.low is None or summary.high is None:
        return None
    return [[max(0.0, summary.mean - summary.low)], [max(0.0, summary.high - summary.mean)]]


def _new_figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure  # without pyplot: no window system, no global state
    except ImportError as error:
        raise EvaluationError(
            expected="the package matplotlib for the Pareto plot",
            got="no such package",
            remedy='Install it: pip install "lorweb[eval]", or leave the plot out with --no-plot.',
        ) from error
    figure = Figure(figsize=(6, 5))
    return figure, figure.subplots()
