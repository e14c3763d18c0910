"""Write the pairs that the demo's basis is trained on, as PNG files with a pair index that `training.train` reads.

A task is one seen edit with its parameter (frame-azure); its pairs are new pictures each. Kinds are drawn by
`KIND_WEIGHTS`, however many parameters they have. Held-out kinds, hues and amounts never occur.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from training.data.index import PairIndex, PairRecord

from .scenes import IMAGE_PX, TRAINED_KINDS, Edit, apply_edit, draw, edits_of, to_image

INDEX_NAME = "pairs.jsonl"
#: How often a kind is drawn against 1: more for those learned slowly, or whose change is faint (grey).
KIND_WEIGHTS = {"outline": 2.5, "shape": 2.0, "grey": 2.0, "ground": 1.5, "invert": 1.5}


def training_edits() -> tuple[Edit, ...]:
    """Return the edits that basis and encoder may see."""
    return edits_of(kinds=TRAINED_KINDS, is_held_out=False)


def write_dataset(folder: Path, *, pairs_per_edit: int, seed: int) -> Path:
    """Write pictures and index below `folder` and return the index file.

    Args:
        folder: made when missing; files of an earlier call are replaced.
        pairs_per_edit: pictures of every edit.
        seed: of the pictures.
    """
    edits = training_edits()
    tasks_of_kind = Counter(edit.kind for edit in edits)
    rng = np.random.default_rng(seed)
    records = []
    for edit in edits:
        (folder / edit.name).mkdir(parents=True, exist_ok=True)
        for number in range(pairs_per_edit):
            weight = KIND_WEIGHTS.get(edit.kind, 1.0) / tasks_of_kind[edit.kind]
            records.append(_write_pair(folder, edit, number, rng, weight=weight))
    index = folder / INDEX_NAME
    PairIndex(records).write_index(index)
    return index


def _write_pair(folder: Path, edit: Edit, number: int, rng: np.random.Generator, *, weight: float) -> PairRecord:
    scene = draw(edit, rng)
    paths = [folder / edit.name / f"{number:03d}_{side}.png" for side in ("before", "after")]
    for path, pixels in zip(paths, (scene.pixels, apply_edit(scene, edit)), strict=True):
        to_image(pixels).save(path)
    return PairRecord(
        id=f"{edit.name}/{number:03d}",
        task=edit.name,
        before=paths[0],
        after=paths[1],
        width=IMAGE_PX,
        height=IMAGE_PX,
        sha256=hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest(),
        weight=weight,
    )
