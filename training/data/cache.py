"""Tensors on disk that are expensive to make again: text and image embeddings, latents.

    cache = TensorCache("cache", {"kind": "text", "model": model_id, "weights": weights_hash, "max_tokens": 512})
    for caption in cache.missing(captions): cache.put(text_key(caption), encode(caption))
    cache.flush()

`<folder>/<kind>/<hash of the fingerprint>/shard-<hash>.safetensors`, up to 256 tensors each, written whole or not at
all and never changed, so processes may read and write side by side. Every tensor has a checksum: a cut-off shard is
found on opening, a flipped bit on reading; the bad file is set aside as `.bad`, the good tensors are kept, and the
lost ones count as missing, so that the next run makes exactly those again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorweb_core.errors import LoRWeBError, OutputError
from lorweb_core.files import DTYPE_NAMES, parse_json, write_safetensors_atomically, write_text_atomically
from lorweb_core.header import TensorEntry, read_header

logger = logging.getLogger(__name__)

SHARD_ENTRIES = 256
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_HEADER_LENGTH_BYTES = 8
_LEFTOVER_AGE_SECONDS = 3600


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: its shard, first byte within the file, entry of the header and checksum."""

    shard: Path
    offset: int
    entry: TensorEntry
    crc32: int


class TensorCache:
    """A mapping from keys to CPU tensors, kept on disk.

    Args:
        folder: of all caches.
        fingerprint: everything that the tensors depend on besides their key (`kind`, model id and weights' hash,
            resolution, dtype, crop rule, code version); another fingerprint is another cache.
        shard_entries: tensors per file; that many are written without asking.
    Raises: OutputError: when the folder cannot be written.
    """

    def __init__(
        self, folder: str | Path, fingerprint: Mapping[str, Any], *, shard_entries: int = SHARD_ENTRIES
    ) -> None:
        text = json.dumps(dict(fingerprint), sort_keys=True, indent=2, ensure_ascii=False, default=str)
        name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.folder = Path(folder) / str(fingerprint.get("kind", "tensors")) / name
        self.shard_entries = shard_entries
        self._places: dict[str, _Place] = {}
        self._shards: set[Path] = set()
        self._pending: dict[str, Tensor] = {}
        self._create_folder(text)
        self.refresh()

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self._pending or key in self._places

    def keys(self) -> set[str]:
        """Every key that `get` is expected to find."""
        return set(self._places) | set(self._pending)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not held, each once, in their order."""
        return [key for key in dict.fromkeys(keys) if key not in self]

    def get(self, key: str) -> Tensor | None:
        """The tensor of a key, or None when it is not held, or was found corrupt (then its shard is repaired)."""
        if key in self._pending:
            return self._pending[key]
        for _ in range(2):  # another process may have repaired the shard since it was indexed
            place = self._places.get(key)
            if place is None:
                return None
            data = _read_bytes(place)
            if data is None:
                self.refresh()
                continue
            if _checksum(key, place.entry, data) == place.crc32:
                return _as_tensor(data, place.entry)
            logger.warning("corrupt entry %s in %s: it has to be made again", key, place.shard)
            with suppress(OutputError):
                self._repair_shard(place.shard)
        return None

    def put(self, key: str, tensor: Tensor) -> None:
        """Hold a copy of a tensor; it is on disk after `flush`, or when a shard is full.

        Raises: OutputError: when a full shard cannot be written; what is pending stays pending.
        """
        self._pending[key] = tensor.detach().to("cpu", copy=True).contiguous()
        if len(self._pending) >= self.shard_entries:
            self.flush()

    def flush(self) -> None:
        """Write everything pending.

        Raises: OutputError: when it cannot be written; it stays pending and no partial file is left.
        """
        if self._pending:
            self._index_shard(self._write_shard(self._pending))
            self._pending = {}

    def refresh(self) -> None:
        """Look for shards of other processes and forget those that are gone; cut-off ones are set aside."""
        present = set(self.folder.glob("shard-*.safetensors"))
        gone = self._shards - present
        self._places = {key: place for key, place in self._places.items() if place.shard not in gone}
        self._shards -= gone
        for shard in sorted(present - self._shards):
            self._index_shard(shard)

    def verify(self) -> list[str]:
        """Read every tensor on disk and return the keys whose checksum is wrong; changes nothing."""
        return [key for key, place in self._places.items() if not _is_intact(key, place)]

    def repair(self) -> list[str]:
        """Verify, keep what is good, set damaged shards aside as `.bad`, remove old temporary files.

        Returns: the keys that were lost and have to be made again.
        Raises: OutputError: when the folder cannot be written.
        """
        lost = self.verify()
        for shard in {self._places[key].shard for key in lost}:
            self._repair_shard(shard)
        for leftover in self.folder.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > _LEFTOVER_AGE_SECONDS:
                    leftover.unlink()
        return [key for key in lost if key not in self]

    def _create_folder(self, fingerprint: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                expected=f"to be able to create the cache folder {self.folder}",
                got=error.strerror or str(error),
                remedy="Choose another cache folder, on a disk with enough space that you may write to.",
            ) from error
        if not (self.folder / "fingerprint.json").exists():
            write_text_atomically(self.folder / "fingerprint.json", fingerprint + "\n")

    def _index_shard(self, shard: Path) -> None:
        try:
            header = read_header(shard)
            checksums = parse_json(header.metadata.get("crc32", "{}"), shard.name)
        except LoRWeBError as error:
            _set_aside(shard, str(error))
            return
        if not isinstance(checksums, dict) or set(checksums) != set(header.entries):
            _set_aside(shard, "its list of checksums does not match its tensors")
            return
        start = _HEADER_LENGTH_BYTES + len(header.raw)
        for key, entry in header.entries.items():
            self._places[key] = _Place(shard, start + entry.start, entry, checksums[key])
        self._shards.add(shard)

    def _repair_shard(self, shard: Path) -> None:
        """Copy the good tensors of a shard to a new one, set the old one aside, forget the bad ones."""
        own = {key: place for key, place in self._places.items() if place.shard == shard}
        intact: dict[str, Tensor] = {}
        for key, place in own.items():
            data = _read_bytes(place)
            if data is not None and _checksum(key, place.entry, data) == place.crc32:
                intact[key] = _as_tensor(data, place.entry)
        if len(intact) == len(own):
            return
        replacement = self._write_shard(intact) if intact else None
        for key in own:
            del self._places[key]
        self._shards.discard(shard)
        _set_aside(shard, f"{len(own) - len(intact)} of its {len(own)} tensors are corrupt")
        if replacement is not None:
            self._index_shard(replacement)

    def _write_shard(self, tensors: Mapping[str, Tensor]) -> Path:
        checksums = {key: _checksum_of(key, tensor) for key, tensor in tensors.items()}
        content = json.dumps(sorted(checksums.items()))
        shard = self.folder / f"shard-{hashlib.blake2b(content.encode(), digest_size=12).hexdigest()}.safetensors"
        write_safetensors_atomically(shard, tensors, {"crc32": json.dumps(checksums, ensure_ascii=False)})
        return shard


def text_key(text: str) -> str:
    """A key for a text of any length."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_intact(key: str, place: _Place) -> bool:
    data = _read_bytes(place)
    return data is not None and _checksum(key, place.entry, data) == place.crc32


def _read_bytes(place: _Place) -> bytearray | None:
    """The tensor's bytes; None when the file is gone or shorter than it was."""
    try:
        with place.shard.open("rb", buffering=0) as file:
            file.seek(place.offset)
            data = bytearray(place.entry.end - place.entry.start)
            return data if file.readinto(data) == len(data) else None
    except OSError:
        return None


def _checksum(key: str, entry: TensorEntry, data: bytearray | memoryview) -> int:
    """crc32 over name, dtype, shape and bytes, so that a damaged header is noticed as well."""
    return zlib.crc32(data, zlib.crc32(repr((key, entry.dtype, entry.shape)).encode()))


def _checksum_of(key: str, tensor: Tensor) -> int:
    entry = TensorEntry(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)
    return _checksum(key, entry, tensor.reshape(-1).view(torch.uint8).numpy().data)


def _as_tensor(data: bytearray, entry: TensorEntry) -> Tensor:
    dtype = _DTYPES[entry.dtype]
    return torch.frombuffer(data, dtype=dtype).reshape(entry.shape) if data else torch.empty(entry.shape, dtype=dtype)


def _set_aside(shard: Path, reason: str) -> None:
    logger.warning("%s is set aside as .bad: %s", shard, reason)
    with suppress(OSError):
        shard.replace(shard.with_suffix(".safetensors.bad"))
