"""Stage 1: every method's picture for every sample, in one place and one format.

A method is anything with a name, `fingerprint(sample)` (None: it has no picture) and `draw(sample)`. A picture whose
fingerprint is recorded is not made again. Baselines that every table needs to be read: copying b, copying a′.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps
from tqdm import tqdm

from lorweb_core.images import ImageFileError, read_image

from .errors import EvaluationError
from .folder import EvaluationFolder, fingerprint, save_picture
from .records import Record
from .samples import Sample

logger = logging.getLogger(__name__)
BASELINES = ("copy-b", "copy-a-prime")
_SHOWN = 3


class Method(Protocol):
    """What can answer samples."""

    @property
    def name(self) -> str:
        """As it appears in the tables."""

    def fingerprint(self, sample: Sample) -> str | None:
        """Name what the sample's picture is made of; None when the method has none."""

    def draw(self, sample: Sample) -> Image.Image:
        """Return b̂′ in any size; ImageFileError when it cannot be had."""


@dataclass(frozen=True)
class Baseline:
    """Copying b (does nothing) or a′ (ignores b)."""

    name: str
    folder: EvaluationFolder

    def fingerprint(self, sample: Sample) -> str | None:
        """Name the copied picture."""
        return fingerprint(self.name, sample.inputs)

    def draw(self, sample: Sample) -> Image.Image:
        """Return the copy in b's size."""
        b = read_image(self.folder.inputs(sample.id) / "b.png")
        return ImageOps.fit(read_image(self._path(sample)), b.size, method=Image.Resampling.LANCZOS)

    def _path(self, sample: Sample) -> Path:
        return self.folder.inputs(sample.id) / ("b.png" if self.name == "copy-b" else "a_prime.png")


@dataclass
class DrawnMethod:
    """A model that draws.

    Attributes:
        name: as it appears in the tables.
        settings: everything that changes its pictures; part of the fingerprint.
        load: called once, when the first picture is really needed; gives sample → picture.
    """

    name: str
    settings: tuple[object, ...]
    load: Callable[[], Callable[[Sample], Image.Image]]
    _draw: Callable[[Sample], Image.Image] | None = field(default=None, repr=False)

    def fingerprint(self, sample: Sample) -> str | None:
        """Name model, settings, prompt and pictures."""
        return fingerprint(self.settings, sample.prompt, sample.inputs)

    def draw(self, sample: Sample) -> Image.Image:
        """Return the model's picture."""
        if self._draw is None:
            self._draw = self.load()
        return self._draw(sample)


def generate(folder: EvaluationFolder, method: Method, samples: Sequence[Sample]) -> None:
    """Bring a method's pictures into the folder; what is there and unchanged is kept, missing ones are listed."""
    for sample in tqdm(samples, desc=method.name, unit="picture", disable=None):
        name = method.fingerprint(sample)
        found = folder.generated.find(method.name, sample.id)
        if _is_current(folder, found, name):
            continue
        record = {"method": method.name, "sample": sample.id, "task": sample.task, "source": name}
        folder.generated.append({**record, **_make(folder, method, sample, has_picture=name is not None)})
    _report(folder, method, samples)


def known_methods(folder: EvaluationFolder) -> list[str]:
    """Return the names of the methods that were brought in, in the order they came."""
    return list(dict.fromkeys(record["method"] for record in folder.generated))


def methods_of(folder: EvaluationFolder, wanted: Sequence[str] = (), *, without: Sequence[str] = ()) -> list[str]:
    """Return the names of the methods that were brought in, in the order they came.

    Args:
        folder: the evaluation.
        wanted: only these; () for all.
        without: not these.
    Raises: EvaluationError: when none is left, or a named one is not among them.
    """
    names = known_methods(folder)
    unknown = [name for name in (*wanted, *without) if name not in names]
    chosen = [name for name in names if (not wanted or name in wanted) and name not in without]
    if unknown or not chosen:
        raise EvaluationError(
            expected=f"methods of the evaluation in {folder.root}" + (f": {', '.join(names)}" if names else ""),
            got=", ".join(unknown) or "none at all",
            remedy="Correct the name, or add the method with `python -m training.evaluate generate`.",
        )
    return chosen


def missing_pictures(
    folder: EvaluationFolder, methods: Sequence[str], samples: Sequence[Sample]
) -> dict[str, list[str]]:
    """Return method → ids of the samples for which it has no usable picture."""
    return {
        method: [sample.id for sample in samples if picture_hash(folder, method, sample.id) is None]
        for method in methods
    }


def picture_hash(folder: EvaluationFolder, method: str, sample: str) -> str | None:
    """Return the hash of the pixels of a method's picture; None when there is none, or the file is damaged."""
    record = folder.generated.find(method, sample)
    if record is None or record["status"] != "ok":
        return None
    content = folder.content(folder.picture(method, sample))
    if content is None or record.get("file_sha256", content) != content:
        return None
    return record.get("picture_sha256")


def common_samples(folder: EvaluationFolder, methods: Sequence[str], samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples for which every method has a picture.

    Raises: EvaluationError: when there is none.
    """
    missing = missing_pictures(folder, methods, samples)
    absent = {sample for ids in missing.values() for sample in ids}
    common = [sample for sample in samples if sample.id not in absent]
    if not common:
        counts = ", ".join(f"{method} lacks {len(ids)} of {len(samples)}" for method, ids in missing.items() if ids)
        raise EvaluationError(
            expected="at least one sample for which every method has a picture",
            got=counts,
            remedy="Name the methods to compare with --methods, or make the missing pictures.",
        )
    return common


def _is_current(folder: EvaluationFolder, found: Record | None, name: str | None) -> bool:
    if found is None or found["source"] != name or found["status"] == "broken":
        return False
    is_there = "file_sha256" in found and picture_hash(folder, found["method"], found["sample"]) is not None
    return found["status"] == "missing" or is_there


def _make(folder: EvaluationFolder, method: Method, sample: Sample, *, has_picture: bool) -> Record:
    if not has_picture:
        return {"status": "missing", "reason": "no picture of this name"}
    try:
        picture = method.draw(sample).convert("RGB")
    except ImageFileError as error:
        return {"status": "broken", "reason": f"{error.path}: {error.kind}: {error.reason}"}
    path = folder.picture(method.name, sample.id)
    digest = save_picture(picture, path)
    return {
        "status": "ok", "picture_sha256": digest, "width": picture.width, "height": picture.height,
        "file_sha256": folder.content(path),
    }  # fmt: skip


def _report(folder: EvaluationFolder, method: Method, samples: Sequence[Sample]) -> None:
    records = [folder.generated.find(method.name, sample.id) or {"status": "missing"} for sample in samples]
    counts = Counter(record["status"] for record in records)
    lacking = [sample.id for sample, record in zip(samples, records, strict=True) if record["status"] != "ok"]
    if lacking:
        logger.warning(
            "%s: %d of %d pictures missing, %d unusable, first: %s", method.name, counts["missing"], len(samples),
            counts["broken"], ", ".join(lacking[:_SHOWN]),
        )  # fmt: skip
