"""Real image files for the data tests: smooth, all different, each recognizable by its mean color."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.checks import hash_files
from training.data.importers.building import build_pairs
from training.data.importers.folders import find_pairs
from training.data.index import PairRecord, write_pairs


def paint(seed, *, size=(64, 64)):
    """A soft color gradient with a bright disc; different for every seed."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    corners = rng.integers(30, 200, (3, 3))
    pixels = corners[0] + x[..., None] * (corners[1] - corners[0]) + y[..., None] * (corners[2] - corners[0]) / 2
    center = rng.uniform(0.2, 0.6, 2)
    pixels[(x - center[0]) ** 2 + (y - center[1]) ** 2 < 0.02] = 240
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_pair(folder, stem, seed, *, size=(64, 64)):
    """`<stem>_before.png` and, negative, `<stem>_after.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    before, after = folder / f"{stem}_before.png", folder / f"{stem}_after.png"
    image = paint(seed, size=size)
    image.save(before)
    Image.fromarray(255 - np.asarray(image)).save(after)
    return before, after


def write_tasks(root, sizes):
    """A folder per task with one pair per size, and the records of their index."""
    records = []
    for task_number, (task, task_sizes) in enumerate(sizes.items()):
        for number, size in enumerate(task_sizes):
            files = write_pair(root / task, f"{number:04d}", 1000 * task_number + number, size=size)
            records.append(record_of(task, number, *files, size))
    return records


def record_of(task, name, before, after, size=(64, 64)):
    """The index record of a written pair."""
    fields = {"before": before, "after": after, "sha256": hash_files((before, after))}
    return pair_at(task, name, width=size[0], height=size[1], **fields)


def pair_at(task, name, *, width=64, height=64, **fields):
    """A record, by default of files that do not exist, for tests that open none; `name` may be a number."""
    name = name if isinstance(name, str) else f"{name:04d}"
    folder = Path("/nowhere") / task
    defaults = {
        "before": folder / f"{name}_before.png",
        "after": folder / f"{name}_after.png",
        "caption": f"do {task} on {name}",
    }
    return PairRecord(id=f"{task}/{name}", task=task, width=width, height=height, **defaults | fields)


def index_folder(images, index):
    """Write the index of a folder of pairs, as `prepare folders` does; return its path."""
    records, _ = build_pairs(find_pairs(images).candidates)
    write_pairs(index, records)
    return index


def truncate(path, *, keep=0.5):
    """Cut the end of a file off, as an interrupted copy does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def encoded(seed, kind="JPEG"):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    paint(seed).save(buffer, kind)
    return buffer.getvalue()


def write_shard(path, members):
    """A tar file, compressed if it is named so, of file name → bytes."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
