"""Pictures to look at: a row per sample, a | a′ | b | every method's b̂′ | the true b′, with names above."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lorweb_core.images import read_image

from ..data.drawing import uniforms
from ..previews import contact_sheet
from .folder import EvaluationFolder, save_picture
from .samples import Sample


def write_sheets(
    folder: EvaluationFolder,
    methods: Sequence[str],
    samples: Sequence[Sample],
    *,
    rows: int = 8,
    sheets: int = 4,
    cell_px: int = 192,
) -> list[Path]:
    """Write up to `sheets` pictures of `rows` samples each, tasks taking turns, and return the files.

    Sheets of an earlier run are removed: they would show other methods than the table beside them.

    Raises: OutputError: when they cannot be written.
    """
    for old in folder.results.glob("sheet-*.png"):
        if re.fullmatch(r"sheet-\d{2,}", old.stem):
            old.unlink()
    chosen = _by_turns(samples)[: rows * sheets]
    paths = []
    for number, start in enumerate(range(0, len(chosen), rows), start=1):
        path = folder.results / f"sheet-{number:02d}.png"
        save_picture(_sheet(folder, methods, chosen[start : start + rows], cell_px), path)
        paths.append(path)
    return paths


def _sheet(folder: EvaluationFolder, methods: Sequence[str], samples: Sequence[Sample], cell_px: int) -> Image.Image:
    has_truth = any(sample.has_truth for sample in samples)
    columns = ["a", "a'", "b", *methods, *(["true b'"] if has_truth else [])]
    rows = []
    for sample in samples:
        paths = [folder.inputs(sample.id) / f"{part}.png" for part in ("a", "a_prime", "b")]
        paths += [folder.picture(method, sample.id) for method in methods]
        paths += [folder.truth(sample.id)] if sample.has_truth else []
        images = [read_image(path) if path.is_file() else None for path in paths]
        rows.append((f"{sample.task}: {sample.id}", images))
    return contact_sheet(columns, rows, cell_px=cell_px)


def _by_turns(samples: Sequence[Sample]) -> list[Sample]:
    """One sample of every task, then the next of every task; within a task in a drawn order that never changes."""
    by_task: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: uniforms("sheet", sample.id)):
        by_task.setdefault(sample.task, []).append(sample)
    turns = max(map(len, by_task.values()), default=0)
    return [of_task[turn] for turn in range(turns) for _, of_task in sorted(by_task.items()) if turn < len(of_task)]
