"""Pictures to look at: a row per sample, a | a′ | b | every method's b̂′ | the true b′, with names above."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lorweb_core.images import read_image

from ..data.drawing import uniforms
from .folder import EvaluationFolder, save_picture
from .samples import Sample

_GAP_PX, _LABEL_PX = 6, 18


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
    titles = ["a", "a′", "b", *methods, *(["true b′"] if has_truth else [])]
    step = cell_px + _GAP_PX
    row_px = step + _LABEL_PX
    sheet = Image.new("RGB", (len(titles) * step + _GAP_PX, _LABEL_PX + len(samples) * row_px + _GAP_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for column, title in enumerate(titles):
        _write(draw, font, title, (_GAP_PX + column * step, 2), cell_px)
    for row, sample in enumerate(samples):
        top = _LABEL_PX + row * row_px
        _write(draw, font, f"{sample.task}: {sample.id}", (_GAP_PX, top + 2), len(titles) * step)
        for column, path in enumerate(_pictures(folder, methods, sample)):
            if path is not None and path.is_file():
                _paste(sheet, read_image(path), (_GAP_PX + column * step, top + _LABEL_PX), cell_px)
    return sheet


def _pictures(folder: EvaluationFolder, methods: Sequence[str], sample: Sample) -> list[Path | None]:
    inputs = [folder.inputs(sample.id) / f"{part}.png" for part in ("a", "a_prime", "b")]
    results = [folder.picture(method, sample.id) for method in methods]
    return [*inputs, *results, folder.truth(sample.id) if sample.has_truth else None]


def _paste(sheet: Image.Image, picture: Image.Image, place: tuple[int, int], cell_px: int) -> None:
    scale = cell_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    sheet.paste(picture.resize(size, method), place)


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    text: str,
    place: tuple[int, int],
    width_px: int,
) -> None:
    """Write text, cut where its column ends; the built-in font has no characters beyond ASCII."""
    text = text.replace("′", "'").replace("×", "x").encode("ascii", "replace").decode("ascii")
    while text and draw.textlength(text, font=font) > width_px:
        text = text[:-1]
    draw.text(place, text, fill="black", font=font)


def _by_turns(samples: Sequence[Sample]) -> list[Sample]:
    """One sample of every task, then the next of every task; within a task in a drawn order that never changes."""
    by_task: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: uniforms("sheet", sample.id)):
        by_task.setdefault(sample.task, []).append(sample)
    turns = max(map(len, by_task.values()), default=0)
    return [of_task[turn] for turn in range(turns) for _, of_task in sorted(by_task.items()) if turn < len(of_task)]
