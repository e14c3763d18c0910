"""The files of one evaluation, and the JSONL records from which an interrupted command continues.

samples.jsonl, set.json   the test set              inputs/<sample>/a.png a_prime.png b.png prompt.txt
generated.jsonl           images of every method    truth/<sample>.png             the true b′, if it is known
measurements.jsonl        metrics of every image    images/<method>/<sample>.png   the b′ of every method
answers.jsonl, judge.json replies of judges; the latest judge and its prompts
                                                    results/                       written by `aggregate`
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from lorweb_core.errors import LoRWeBError, OutputError
from lorweb_core.files import open_regular, write_bytes_atomically

from ..data.importers.extraction import safe_name

logger = logging.getLogger(__name__)
Record = dict[str, Any]
#: Larger model files are identified by size and modification time: hashing 24 GB takes longer than it can save.
_HASHED_UP_TO_BYTES = 64 * 2**20


class EvaluationError(LoRWeBError):
    """A test set, the images of a method or an evaluation folder cannot be used."""


class Records:
    """JSON objects by the values of their fields `key`, one a line; the last record of a key counts.

    A line that is not a record, such as the half-written last line of a killed process, is ignored: its work is redone.
    """

    def __init__(self, path: Path, *key: str) -> None:
        self.path, self._key = path, key
        self._records: dict[tuple[Any, ...], Record] = {}
        data = b""
        try:
            if path.exists():
                with open_regular(path) as file:
                    data = file.read()
        except OSError as error:
            raise self._unusable(error) from error
        self._ends_within_line = bool(data) and not data.endswith(b"\n")
        ignored = 0
        for line in filter(None, map(bytes.strip, data.removeprefix(codecs.BOM_UTF8).split(b"\n"))):
            if not (line.startswith(b"{") and line.endswith(b"}")):  # an exception of json for every line is slow
                ignored += 1
                continue
            try:
                record = json.loads(line)
                self._records[tuple(record[name] for name in key)] = record
            except (ValueError, RecursionError, KeyError, TypeError):
                ignored += 1
        if ignored:
            logger.warning("%s: ignored %d incomplete line(s); their work is redone", path, ignored)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def get(self, *key: object) -> Record | None:
        """The record of a key, or None."""
        return self._records.get(key)

    def append(self, record: Record) -> None:
        """Add a record and flush it to the disk. Raises OutputError if the file cannot be written."""
        line = json.dumps(record, allow_nan=False).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write((b"\n" if self._ends_within_line else b"") + line + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unusable(error) from error
        self._ends_within_line = False
        self._records[tuple(record[name] for name in self._key)] = record

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(
            f"Cannot read or write {self.path}: {error.strerror or error}. "
            "Free some space or choose another folder, then run the same command again."
        )


class EvaluationFolder:
    """The folder of one evaluation; see the module for its files."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, root / "results"
        self.samples = Records(root / "samples.jsonl", "sample")
        self.generated = Records(root / "generated.jsonl", "method", "sample")
        self.measurements = Records(root / "measurements.jsonl", "method", "sample", "metric")
        self.answers = Records(root / "answers.jsonl", "key")
        self._hashes: dict[tuple[Path, int, int], str] = {}

    def inputs(self, sample: str) -> Path:
        """Folder with a, a′, b and the prompt of a sample, in the layout of `training.sample --triplets`."""
        return self.root / "inputs" / sample

    def triplet(self, sample: str) -> list[Path]:
        """The files of a, a′ and b."""
        return [self.inputs(sample) / name for name in ("a.png", "a_prime.png", "b.png")]

    def truth(self, sample: str) -> Path:
        """The true b′ of a sample; only some sets have it."""
        return self.root / "truth" / f"{sample}.png"

    def image(self, method: str, sample: str) -> Path:
        """The b′ that a method generated."""
        return self.root / "images" / safe_name(method) / f"{sample}.png"

    def sha256(self, path: Path) -> str | None:
        """Hash of a file, read again only if its size or time changes; None if there is no such file."""
        try:
            status = path.stat()
            key = (path, status.st_size, status.st_mtime_ns)
            if key not in self._hashes:
                self._hashes[key] = file_sha256(path)
        except OSError:
            return None
        return self._hashes[key]

    def image_sha256(self, method: str, sample: str) -> str | None:
        """Hash of a method's image; None if there is none, or if the file has changed since it was brought in."""
        record = self.generated.get(method, sample)
        sha256 = None if record is None else record["sha256"]
        return sha256 if sha256 and sha256 == self.sha256(self.image(method, sample)) else None


def write_file(path: Path, content: str | Image.Image) -> None:
    """Write text, or an image as PNG, whole or not at all; folders are created. Raises OutputError."""
    if isinstance(content, Image.Image):
        png = io.BytesIO()
        content.save(png, format="PNG")
        data = png.getvalue()
    else:
        data = content.encode("utf-8", "replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"Cannot create the folder {path.parent}: {error.strerror or error}.") from error
    write_bytes_atomically(path, data)


def write_json(path: Path, value: object) -> None:
    """Write readable JSON, whole or not at all. Raises OutputError."""
    write_file(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_key(model: str | Path | None) -> str | None:
    """Return a name for a model file or folder that changes with its content; a Hugging Face id stays as it is."""
    path = Path(model or "")
    if model is None or not path.exists():
        return None if model is None else str(model)
    if path.is_file():
        status = path.stat()
        is_small = status.st_size <= _HASHED_UP_TO_BYTES
        return file_sha256(path) if is_small else f"{status.st_size}:{status.st_mtime_ns}"
    names = [file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file()]
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return fingerprint([(name.as_posix(), model_key(path / name)) for name in shown])


def fingerprint(*values: object) -> str:
    """Return 16 hex digits that identify JSON-like values."""
    text = json.dumps(values, sort_keys=True, default=os.fspath)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
