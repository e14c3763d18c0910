"""Pairs → the reference's `control/` + `target/` folders, for trainers that read that layout.

One analogy per unordered pair of a task's pairs, the earlier one as a; its caption is a's. Panels share b's aspect
(a's pictures are center-cropped to it, not stretched) and the smallest of the three sizes, without enlarging.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lorweb_core.errors import OutputError
from lorweb_core.files import write_text_atomically
from lorweb_core.images import ImageFileError

from .buckets import Cell, aspects_match
from .images import fit_cell, load_pair
from .importers.extraction import safe_name
from .importers.reference import METADATA_NAME
from .index import PairRecord, Problem
from .pairing import caption_of, positions_by_task, uniforms

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class ExportOptions:
    """How analogies are chosen and stored.

    Attributes:
        per_task: at most this many analogies of a task, chosen by the seed; None for all.
        caption_source: whose caption is stored, see `DrawSettings`; the reference stores a's.
        suffix: `.jpg` (quality 95, as the reference) or `.png`.
        seed: of the choice.
    """

    per_task: int | None = None
    caption_source: str = "a"
    suffix: str = ".jpg"
    seed: int = 0


def export_reference(
    records: Sequence[PairRecord], folder: Path, options: ExportOptions, *, show_progress: bool = False
) -> tuple[int, list[Problem]]:
    """Write every analogy of these pairs; the metadata file comes last.

    Returns: how many were written, and pairs whose pictures are broken (their analogies are left out).
    Raises: OutputError: when the folder cannot be written.
    """
    entries: list[dict[str, object]] = []
    problems: dict[str, Problem] = {}
    couples = list(choose_couples(records, options))
    for number, (a, b) in enumerate(tqdm(couples, desc="exporting", unit="analogy", disable=not show_progress)):
        record_a, record_b = records[a], records[b]
        name = safe_name(f"analogy_{Path(record_a.id).name}_{Path(record_b.id).name}")[:90] + f"_{number:06d}"
        try:
            strip, target = _draw(record_a, record_b)
        except ImageFileError as error:
            problems[str(error.path)] = Problem(str(error.path), error.kind, error.reason)
            continue
        caption = caption_of(record_a, record_b, options.caption_source)
        _save(folder, name, strip, target, caption, options.suffix)
        entries.append(_metadata(name, caption, record_a, record_b, options.suffix))
    write_text_atomically(folder / METADATA_NAME, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
    return len(entries), list(problems.values())


def choose_couples(records: Sequence[PairRecord], options: ExportOptions) -> list[tuple[int, int]]:
    """Positions (a, b), a before b in the index: every couple of a task and of similar aspect, or some of them."""
    chosen: list[tuple[int, int]] = []
    for task, positions in positions_by_task(records).items():
        couples = [(int(a), int(b)) for place, b in enumerate(positions) for a in positions[:place]]
        couples = [(a, b) for a, b in couples if aspects_match(records[a].aspect, records[b].aspect)]
        if options.per_task is not None and len(couples) > options.per_task:
            couples.sort(key=lambda couple: uniforms(options.seed, "export", task, *couple))
            couples = sorted(couples[: options.per_task])
        chosen += couples
    return chosen


def _draw(record_a: PairRecord, record_b: PairRecord) -> tuple[Image.Image, Image.Image]:
    """The control strip a | a' | b and the target b'."""
    a, a_prime = load_pair(record_a, at_least_px=None)
    b, b_prime = load_pair(record_b, at_least_px=None)
    shrink = min(1.0, *(min(p.width / b_prime.width, p.height / b_prime.height) for p in (a, a_prime, b)))
    panel = Cell(max(1, round(b_prime.width * shrink)), max(1, round(b_prime.height * shrink)))
    panels = np.concatenate([fit_cell(picture, panel) for picture in (a, a_prime, b)], axis=1)
    return Image.fromarray(panels), b_prime


def _save(folder: Path, name: str, strip: Image.Image, target: Image.Image, caption: str, suffix: str) -> None:
    try:
        for subfolder, picture in (("control", strip), ("target", target)):
            (folder / subfolder).mkdir(parents=True, exist_ok=True)
            picture.save(folder / subfolder / (name + suffix), quality=_JPEG_QUALITY)
    except OSError as error:
        raise OutputError(
            expected=f"to be able to write pictures into {folder}",
            got=error.strerror or str(error),
            remedy="Choose another folder, on a disk with enough space that you may write to.",
        ) from error
    write_text_atomically(folder / "target" / f"{name}.txt", caption)


def _metadata(name: str, caption: str, a: PairRecord, b: PairRecord, suffix: str) -> dict[str, object]:
    return {
        "analogy_id": name,
        "edit_prompt": caption,
        "category": b.task,
        "direction": "forward",
        "control_path": f"control/{name}{suffix}",
        "target_path": f"target/{name}{suffix}",
        "pair_A": a.id,
        "pair_C": b.id,
    }
