"""Real image files for the data tests: smooth, all different, each recognizable by its mean color."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.checks import hash_files
from training.data.index import PairRecord


def paint(seed: int, *, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A soft color gradient with a bright disc; different for every seed."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    corners = rng.integers(30, 200, (3, 3))
    pixels = corners[0] + x[..., None] * (corners[1] - corners[0]) + y[..., None] * (corners[2] - corners[0]) / 2
    center = rng.uniform(0.2, 0.6, 2)
    pixels[(x - center[0]) ** 2 + (y - center[1]) ** 2 < 0.02] = 240
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_pair(folder: Path, stem: str, seed: int, *, size: tuple[int, int] = (64, 64)) -> tuple[Path, Path]:
    """`<stem>_before.png` and, negative, `<stem>_after.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    before, after = folder / f"{stem}_before.png", folder / f"{stem}_after.png"
    image = paint(seed, size=size)
    image.save(before)
    Image.fromarray(255 - np.asarray(image)).save(after)
    return before, after


def write_tasks(root: Path, sizes: Mapping[str, list[tuple[int, int]]]) -> list[PairRecord]:
    """A folder per task with one pair per size, and the records of their index."""
    records = []
    for task_number, (task, task_sizes) in enumerate(sizes.items()):
        for number, size in enumerate(task_sizes):
            before, after = write_pair(root / task, f"{number:04d}", 1000 * task_number + number, size=size)
            records.append(record_of(task, f"{number:04d}", before, after, size))
    return records


def record_of(task: str, stem: str, before: Path, after: Path, size: tuple[int, int]) -> PairRecord:
    """The index record of a written pair, with a caption of its own."""
    return PairRecord(
        id=f"{task}/{stem}",
        task=task,
        before=before,
        after=after,
        width=size[0],
        height=size[1],
        caption=f"do {task} on {stem}",
        sha256=hash_files((before, after)),
    )


def pair_at(task: str, number: int, *, width: int = 64, height: int = 64, **fields: object) -> PairRecord:
    """A record without files, for tests that open none."""
    name = f"{number:04d}"
    return PairRecord(
        **{
            "id": f"{task}/{name}",
            "task": task,
            "before": Path(f"/nowhere/{task}/{name}_before.png"),
            "after": Path(f"/nowhere/{task}/{name}_after.png"),
            "width": width,
            "height": height,
            "caption": f"do {task} on {name}",
            **fields,
        }
    )


def truncate(path: Path, *, keep: float = 0.5) -> None:
    """Cut the end of a file off, as an interrupted copy does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
