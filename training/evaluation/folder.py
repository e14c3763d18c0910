"""Where an evaluation keeps what: one folder, small JSONL files, pictures beside them.

samples.jsonl          test analogies            inputs/<sample>/a.png a_prime.png b.png prompt.txt
generated.jsonl        which method has what     truth/<sample>.png              true b′, where there is one
measurements.jsonl     numbers per picture       pictures/<method>/<sample>.png  every method's b̂′
ratings.jsonl, comparisons.jsonl, answers.jsonl  what the judge said             results/  tables, plot, sheets
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
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

    @cached_property
    def samples(self) -> RecordFile:
        """Test analogies by id."""
        return RecordFile(self.root / "samples.jsonl", ("sample",))

    @cached_property
    def generated(self) -> RecordFile:
        """Status of every method's picture."""
        return RecordFile(self.root / "generated.jsonl", ("method", "sample"))

    @cached_property
    def measurements(self) -> RecordFile:
        """Numbers of every picture."""
        return RecordFile(self.root / "measurements.jsonl", ("method", "sample"))

    @cached_property
    def ratings(self) -> RecordFile:
        """Preservation and Accuracy of every picture, by judge."""
        return RecordFile(self.root / "ratings.jsonl", ("model", "prompt_sha256", "method", "sample"))

    @cached_property
    def comparisons(self) -> RecordFile:
        """Which of two pictures is better, by judge and order."""
        key = ("model", "prompt_sha256", "methods", "sample", "order")
        return RecordFile(self.root / "comparisons.jsonl", key)

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
