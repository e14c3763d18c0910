"""Check every pair of an index before training and list whatever is wrong, file by file.

Errors: missing, unreadable, damaged, too-large, wrong-mode, changed, odd-aspect, mismatch, duplicate (across splits).
Left out: duplicate (within a task), few-pairs, no-partner. Warnings (the pair is used): identical, small, shared.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from tqdm import tqdm

from lorweb_core.files import open_regular
from lorweb_core.images import ImageFileError, read_image, read_image_size

from .buckets import aspects_match, cell_buckets, is_odd_aspect, nearest_bucket
from .index import PairRecord, Problem, errors_among, stop_on_errors
from .pairing import partner_ranges, positions_by_task

T = TypeVar("T")
R = TypeVar("R")
#: Images whose area is less than this share of the cell's look soft when enlarged.
_SMALL_AREA = 0.5


def check_pairs(
    records: Sequence[PairRecord], *, resolution_px: int = 256, decode: bool = True, label: str = ""
) -> list[Problem]:
    """Everything that is wrong with these pairs: problems of files first, then duplicates, then tasks.

    Args:
        resolution_px: of a cell; for the warning about small images and for partners of fitting shape.
        decode: read every file in full (about 100 images a second and core) and compare its hash with the index;
            False reads the headers only.
        label: of a progress bar; "" for none.
    """
    check = partial(_problems_of_pair, resolution_px=resolution_px, decode=decode)
    found = [problem for problems in in_threads(check, records, label) for problem in problems]
    found += _duplicates(records)
    return found + task_problems(without_errors(records, found), resolution_px=resolution_px)


def usable_pairs(records: Sequence[PairRecord], *, resolution_px: int = 256) -> tuple[list[PairRecord], list[Problem]]:
    """The pairs to train with and all problems, by their headers. Raises DataError when nothing usable is left."""
    problems = check_pairs(records, resolution_px=resolution_px, decode=False)
    usable = without_errors(records, problems)
    if not usable:
        stop_on_errors(problems)
    return usable, problems


def without_errors(records: Sequence[PairRecord], problems: Iterable[Problem]) -> list[PairRecord]:
    """The records that no error is about."""
    broken = {problem.pair_id for problem in errors_among(list(problems))}
    return [record for record in records if record.id not in broken]


def task_problems(records: Sequence[PairRecord], *, resolution_px: int = 256) -> list[Problem]:
    """Tasks with fewer than two pairs, and pairs that no other pair of their task fits in shape.

    A single held-out pair counts together with the training pairs of its task, as in validation.
    """
    buckets = cell_buckets(resolution_px)
    bucket_of = np.array([nearest_bucket(buckets, record.aspect) for record in records], dtype=np.int64)
    found: list[Problem] = []
    for task, positions in positions_by_task(records).items():
        if len(positions) < 2:
            reason = "an analogy needs two pairs of the same transformation; add another or leave the task out"
            found.append(Problem(task, "few-pairs", reason, "left out", records[positions[0]].id))
            continue
        for position, partners in partner_ranges(positions, records, bucket_of).items():
            record = records[position]
            if len(partners) < 2:
                reason = f"no other pair of the task is within 15 % of its {record.width} × {record.height} shape"
                found.append(Problem(str(record.after), "no-partner", reason, "left out", record.id))
    return found


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 over the bytes of the files, one after the other; OSError when one cannot be read."""
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def in_threads(function: Callable[[T], R], items: Sequence[T], label: str = "") -> list[R]:
    """`[function(item) for item in items]` on several threads (Pillow decodes without Python's lock), in order.

    With a label a terminal shows a progress bar.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(function, items)
        return list(tqdm(results, total=len(items), desc=label, unit="pair", disable=None if label else True))


def _problems_of_pair(record: PairRecord, *, resolution_px: int, decode: bool) -> list[Problem]:
    is_identical = False

    def problem(kind: str, reason: str, severity: Literal["error", "warning"] = "error") -> Problem:
        return Problem(str(record.after), kind, reason, severity, record.id)

    try:
        sizes = [read_image_size(path) for path in record.files]
        if decode:
            for path in record.files:
                read_image(path)
            if record.sha256 and hash_files(record.files) != record.sha256:
                return [problem("changed", "its bytes differ from those in the index; import again")]
            is_identical = not record.strip and filecmp.cmp(record.before, record.after, shallow=False)
    except ImageFileError as error:
        return [Problem(str(error.path), error.kind, error.reason, pair_id=record.id)]
    except OSError as error:  # it went away while being read
        return [Problem(str(error.filename), "unreadable", error.strerror or str(error), pair_id=record.id)]
    if record.strip:
        sizes = [(sizes[0][0] // 2, sizes[0][1])] * 2
    (before_width, before_height), (width, height) = sizes
    size = f"{width} × {height}"
    if (width, height) != (record.width, record.height):
        return [problem("changed", f"{size}, but {record.width} × {record.height} in the index; import again")]
    found = []
    if is_odd_aspect(width / height):
        found.append(problem("odd-aspect", f"{size} is longer than 16:9 by more than 15 %; crop it"))
    if not aspects_match(before_width / before_height, width / height):
        found.append(problem("mismatch", f"before is {before_width} × {before_height}, after is {size}"))
    if width * height < _SMALL_AREA * resolution_px**2:
        found.append(problem("small", f"{size} has less than half the pixels of a {resolution_px} px cell", "warning"))
    if is_identical:
        found.append(problem("identical", "before and after are the same file", "warning"))
    return found


def _duplicates(records: Sequence[PairRecord]) -> list[Problem]:
    """Pairs that occur twice: left out within a task, an error across splits, a warning across tasks of one split."""
    groups: dict[str, list[PairRecord]] = defaultdict(list)
    for record in records:
        if record.sha256:
            groups[record.sha256].append(record)
    found = []
    for first, *others in groups.values():
        for other in others:
            reason = f"same images as {first.id} ({first.after})"
            if other.task != first.task and other.split == first.split:
                found.append(Problem(str(other.after), "shared", f"{reason}, of another task", "warning", other.id))
            elif other.split != first.split:
                reason += f", which is in the split {first.split}"
                found.append(Problem(str(other.after), "duplicate", reason, "error", other.id))
            else:
                found.append(Problem(str(other.after), "duplicate", reason, "left out", other.id))
    return found
