"""Where an evaluation keeps what: one folder, small JSONL files, pictures beside them.

samples.jsonl          test analogies            inputs/<sample>/a.png a_prime.png b.png prompt.txt
set.json               what the set could not use
generated.jsonl        which method has what     truth/<sample>.png              true b′, where there is one
measurements.jsonl     numbers per picture       pictures/<method>/<sample>.png  every method's b̂′
ratings.jsonl, comparisons.jsonl, answers.jsonl  what the judge said             results/  tables, plot, sheets
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from uuid import uuid4

from PIL import Image

from lorweb_core.errors import OutputError

from ..data.importers.extraction import safe_name
from .records import RecordFile


@dataclass(frozen=True)
class EvaluationFolder:
    """The files of one evaluation."""

    root: Path
    _contents: dict[tuple[Path, int, int], str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def set_facts(self) -> Path:
        """What is known of the set beside its samples."""
        return self.root / "set.json"

    def content(self, path: Path) -> str | None:
        """The sha256 of a file, read once as long as its size and time stay; None when there is no such file."""
        if not path.is_file():
            return None
        try:
            facts = path.stat()
            key = (path, facts.st_size, facts.st_mtime_ns)
            if key not in self._contents:
                self._contents[key] = file_hash(path)
        except OSError:
            return None
        return self._contents[key]

    @cached_property
    def samples(self) -> RecordFile:
        """Test analogies by id."""
        return RecordFile(
            self.root / "samples.jsonl", ("sample",), ("status", "task", "prompt", "pair", "b", "has_truth")
        )

    @cached_property
    def generated(self) -> RecordFile:
        """Status of every method's picture."""
        return RecordFile(self.root / "generated.jsonl", ("method", "sample"), ("status", "source"))

    @cached_property
    def measurements(self) -> RecordFile:
        """Numbers of every picture."""
        return RecordFile(
            self.root / "measurements.jsonl", ("method", "sample"), ("numbers", "reasons", "picture_sha256")
        )

    @cached_property
    def ratings(self) -> RecordFile:
        """Preservation and Accuracy of every picture, by judge."""
        key, needed = ("model", "prompt_sha256", "method", "sample"), ("rating", "picture_sha256", "prompt_source")
        return RecordFile(self.root / "ratings.jsonl", key, needed)

    @cached_property
    def comparisons(self) -> RecordFile:
        """Which of two pictures is better, by judge and order."""
        key = ("model", "prompt_sha256", "methods", "sample", "order")
        return RecordFile(self.root / "comparisons.jsonl", key, ("shown", "better", "pictures_sha256", "prompt_source"))

    def inputs(self, sample: str) -> Path:
        """Folder of a sample's a, a′, b and prompt, as `training.sample --triplets` reads it."""
        return self.root / "inputs" / sample

    def truth(self, sample: str) -> Path:
        """The true b′; missing where the set has none."""
        return self.root / "truth" / f"{sample}.png"

    def picture(self, method: str, sample: str) -> Path:
        """A method's b̂′."""
        return self.root / "pictures" / method_folder(method) / f"{sample}.png"

    @property
    def results(self) -> Path:
        """Folder of tables, plot and sheets."""
        return self.root / "results"


def method_folder(method: str) -> str:
    """Return the name of a method's folder; different methods may have the same (see `methods.require_distinct`)."""
    return safe_name(method)


def save_picture(picture: Image.Image, path: Path) -> str:
    """Write a picture as PNG, whole or not at all, and return the sha256 of its pixels.

    Raises: OutputError: when it cannot be written.
    """
    temporary = path.with_name(f".{uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            expected=f"to be able to write {path}",
            got=error.strerror or str(error),
            remedy="Make room or choose another folder, then run the same command again.",
        ) from error
    return pixel_hash(picture)


def pixel_hash(picture: Image.Image) -> str:
    """Return the sha256 of a picture's size and RGB pixels: the same for every way to store them."""
    rgb = picture.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fingerprint(*parts: object) -> str:
    """Return a short name for settings and contents: 16 hex digits over their JSON."""
    text = json.dumps(parts, sort_keys=True, default=os.fspath)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
