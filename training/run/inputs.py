"""Digests of the data and models of a run, so that a resumed run can report what changed in between."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..base.source import ModelSource
from ..data.checks import in_threads
from ..data.index import PairRecord

logger = logging.getLogger(__name__)
#: Section of a checkpoint → name of a pair or file → digest.
Inputs = dict[str, dict[str, str]]
_BASE_FILES = ("transformer/*", "vae/*", "scheduler/*", "text_encoder*/*", "tokenizer*/*")
_BLOCK_BYTES = 4096


def input_digests(records: Sequence[PairRecord], source: ModelSource, encoder: Path) -> Inputs:
    """Return digests of all pairs (id, split, texts and image files) and of the files of the base and the encoder."""
    base = {
        path.relative_to(folder).as_posix(): path
        for folder in (source.components, source.transformer) if folder.is_dir()
        for pattern in _BASE_FILES for path in folder.glob(pattern)
    }  # fmt: skip
    if source.transformer.is_file():
        base = {name: path for name, path in base.items() if not name.startswith("transformer/")}
        base[source.transformer.name] = source.transformer
    pairs = in_threads(_record_digest, records)
    return {
        "pairs of the data": {record.id: digest for record, digest in zip(records, pairs, strict=True)},
        "files of the base": {name: _digest([path]) for name, path in base.items() if path.is_file()},
        "files of the image encoder": {path.name: _digest([path]) for path in encoder.iterdir() if path.is_file()},
    }


def warn_of_changes(before: Mapping[str, Mapping[str, str]], now: Inputs) -> None:
    """Log a warning for each kind of input that changed since the checkpoint."""
    for kind, digests in now.items():
        earlier = before[kind]
        differing = sorted(n for n in earlier.keys() | digests.keys() if earlier.get(n) != digests.get(n))
        if differing:
            gone, new = len(earlier.keys() - digests.keys()), len(digests.keys() - earlier.keys())
            logger.warning(
                "the %s changed since the checkpoint: %d then, %d now; %d removed, %d added, %d altered: %s",
                kind, len(earlier), len(digests), gone, new, len(differing) - gone - new,
                ", ".join(differing[:3]) + (" …" if len(differing) > 3 else ""),
            )  # fmt: skip


def _record_digest(record: PairRecord) -> str:
    texts = {name: value for name, value in vars(record).items() if not isinstance(value, Path) and name != "sha256"}
    paths = [value for value in vars(record).values() if isinstance(value, Path)]
    return _digest(paths, json.dumps(texts), blocks=4)


def _digest(paths: Iterable[Path], text: str = "", *, blocks: int = 64) -> str:
    """Return a digest of a text and of files: the size and `blocks` evenly spaced blocks of each.

    Not all bytes: a base has 24 GB, and other weights or another image differ nearly everywhere.
    """
    digest = hashlib.sha256(text.encode("utf-8", errors="surrogatepass"))
    for path in paths:
        try:
            with path.open("rb") as file:
                last = max(0, file.seek(0, 2) - _BLOCK_BYTES)
                digest.update(b"%d" % (last + _BLOCK_BYTES))
                for index in range(blocks):
                    file.seek(last * index // (blocks - 1))
                    digest.update(file.read(_BLOCK_BYTES))
        except OSError as error:
            digest.update(f"unreadable: {error.strerror}".encode())
    return digest.hexdigest()[:16]
