"""Pair sensitivity (the paper's Fig. 7): the same b and prompt under k different pairs of one task.

    spread = mean distance between the k results of one b, two by two

Zero means that a method looks at the prompt alone. A spread is no merit by itself: pairs of one task show the same
edit in different forms, so it is read next to accuracy. Distances: root mean square of pixels, and LPIPS if loaded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from torch import Tensor

from lorweb_core.images import from_pil, read_image

from .errors import EvaluationError
from .folder import EvaluationFolder
from .generation import common_samples, missing_pictures
from .measuring import Meter
from .metrics import NoNumber, to_size
from .notes import escape, missing_note
from .samples import Sample
from .summaries import Summary, summarise

DISTANCES = {"rms": "RMS of pixels", "lpips": "LPIPS"}
_MIN_PAIRS = 2


@dataclass(frozen=True)
class Sensitivity:
    """How much methods look at the pair.

    Attributes:
        spreads: method → distance → summary over tasks of the spread of every b.
        pairs: how many pairs the compared b have, as `4` or `2–4`.
        missing: method → samples without a picture, which are left out for all methods.
    """

    spreads: dict[str, dict[str, Summary]]
    pairs: str
    missing: dict[str, list[str]]


def measure_spreads(
    folder: EvaluationFolder, meter: Meter, methods: Sequence[str], samples: Sequence[Sample]
) -> Sensitivity:
    """Return the spreads over the samples that every method has.

    Raises: EvaluationError: when no b has several pairs under one prompt.
    """
    groups = _groups(common_samples(folder, methods, samples))
    if not groups:
        raise EvaluationError(
            expected="samples that share task, b and prompt and differ in their pair",
            got="none",
            remedy="Make such a set: `generate --pairs-per-b 4`.",
        )
    counts = sorted({len(group) for group in groups})
    return Sensitivity(
        spreads={method: _spreads_of(folder, meter, method, groups) for method in methods},
        pairs="–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))),
        missing={name: ids for name, ids in missing_pictures(folder, methods, samples).items() if ids},
    )


def as_markdown(sensitivity: Sensitivity) -> str:
    """Return the table with its notes."""
    spreads = sensitivity.spreads
    lines = ["| method | " + " | ".join(DISTANCES.values()) + " |", "|---|" + "---:|" * len(DISTANCES)]
    for method, summaries in spreads.items():
        cells = ["null" if s.mean is None else f"{s.mean:.4f}" for s in (summaries[name] for name in DISTANCES)]
        lines.append(f"| {escape(method)} | " + " | ".join(cells) + " |")
    first = next(iter(spreads.values()))["rms"]
    pairs = sensitivity.pairs
    lines += ["", f"- {first.samples} pictures b in {first.tasks} task(s), {pairs} pairs each, one prompt per task."]
    lines += [f"- {missing_note(sensitivity.missing)}"] if sensitivity.missing else []
    reasons = {reason for summaries in spreads.values() for s in summaries.values() for reason in s.left_out}
    return "\n".join([*lines, *(f"- Left out: {reason}." for reason in sorted(reasons))]) + "\n"


def as_json(spreads: Mapping[str, Mapping[str, Summary]]) -> dict[str, Any]:
    """Return the spreads as JSON-ready values."""
    return {method: {name: asdict(s) for name, s in summaries.items()} for method, summaries in spreads.items()}


def _groups(samples: Sequence[Sample]) -> list[list[Sample]]:
    groups: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.task, sample.b, sample.prompt].append(sample)
    return [group for group in groups.values() if len({sample.pair for sample in group}) >= _MIN_PAIRS]


def _spreads_of(
    folder: EvaluationFolder, meter: Meter, method: str, groups: Sequence[Sequence[Sample]]
) -> dict[str, Summary]:
    values: dict[str, list[tuple[str, float]]] = {name: [] for name in DISTANCES}
    left_out: dict[str, Counter[str]] = {name: Counter() for name in DISTANCES}
    for group in groups:
        size = read_image(folder.inputs(group[0].id) / "b.png").size
        results = [from_pil(to_size(read_image(folder.picture(method, s.id)), size)) for s in group]
        for name in DISTANCES:
            distances = [_distance(meter, name, first, second) for first, second in combinations(results, 2)]
            numbers = [distance for distance in distances if not isinstance(distance, NoNumber)]
            if numbers:
                values[name].append((group[0].task, sum(numbers) / len(numbers)))
            left_out[name].update(d.reason for d in distances[:1] if isinstance(d, NoNumber))
    return {name: summarise(values[name], left_out[name]) for name in DISTANCES}


def _distance(meter: Meter, name: str, first: Tensor, second: Tensor) -> float | NoNumber:
    if name == "rms":
        return float((first - second).square().mean().sqrt())
    return meter.distance(first, second)
