"""Tensors on disk that are expensive to compute: text and image embeddings.

    cache = TensorCache("cache", {"kind": "text", "model": file_facts(folder, "text_encoder*/*"), "max_tokens": 512})
    if cache.missing([text_key(caption)]): cache.put(text_key(caption), encode(caption))
    cache.flush()

`<folder>/<kind>/<hash of the fingerprint>/shard-<hash>.safetensors`, up to 256 tensors each, written whole or not at
all and never changed, so processes may read and write side by side. A cut-off shard is found on opening, a flipped bit
by the checksum that every tensor has; the shard is set aside as `.bad` and its tensors count as missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorweb_core.errors import LoRWeBError, OutputError
from lorweb_core.files import parse_json, write_text_atomically
from lorweb_core.safetensors_file import write_safetensors_atomically

logger = logging.getLogger(__name__)

SHARD_ENTRIES = 256


class TensorCache:
    """A mapping from keys to CPU tensors, kept on disk.

    Args:
        fingerprint: everything that the tensors depend on besides their key (`kind`, model files, resolution, dtype,
            crop rule); another fingerprint is another cache.
        shard_entries: tensors per file; so many pending ones are written without `flush`.
    Raises OutputError when the folder cannot be written.
    """

    def __init__(
        self, folder: str | Path, fingerprint: Mapping[str, Any], *, shard_entries: int = SHARD_ENTRIES
    ) -> None:
        text = json.dumps(dict(fingerprint), sort_keys=True, indent=2, ensure_ascii=False, default=str)
        self.folder = Path(folder) / str(fingerprint.get("kind", "tensors")) / text_key(text)
        self.shard_entries = shard_entries
        self._held: dict[str, tuple[Path, int]] = {}  # key → shard and checksum
        self._pending: dict[str, Tensor] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"The cache folder {self.folder} cannot be created: {error.strerror or error}. Choose another one in "
                "data.cache, on a disk with enough space that you may write to."
            ) from error
        if not (self.folder / "fingerprint.json").exists():
            write_text_atomically(self.folder / "fingerprint.json", text + "\n")
        self.refresh()

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self._pending or key in self._held

    def keys(self) -> Set[str]:
        """Every key that `get` is expected to find."""
        return self._held.keys() | self._pending.keys()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys that are not held, each once, in their order."""
        return [key for key in dict.fromkeys(keys) if key not in self]

    def get(self, key: str) -> Tensor | None:
        """The tensor of a key, or None when it is not held, or was found corrupt (then its shard is set aside)."""
        if key in self._pending:
            return self._pending[key]
        if key not in self._held:
            return None
        shard, checksum = self._held[key]
        try:
            with safe_open(shard, framework="pt") as file:
                tensor: Tensor = file.get_tensor(key).clone()  # out of the file's mapping
            if _checksum(key, tensor) == checksum:
                return tensor
            self._set_aside(shard, f"its entry {key} is corrupt")
        except FileNotFoundError:  # another process set it aside, and may have made its tensors anew
            self.refresh()
            return self.get(key)
        except (OSError, SafetensorError) as error:
            self._set_aside(shard, str(error))
        return None

    def put(self, key: str, tensor: Tensor) -> None:
        """Hold a copy of a tensor; it is on disk after `flush`, or when a shard is full (see `flush` for errors)."""
        self._pending[key] = tensor.detach().to("cpu", copy=True).contiguous()
        if len(self._pending) >= self.shard_entries:
            self.flush()

    def flush(self) -> None:
        """Write everything pending; OutputError when that fails: it stays pending and no partial file is left."""
        if not self._pending:
            return
        checksums = {key: _checksum(key, tensor) for key, tensor in self._pending.items()}
        shard = self.folder / f"shard-{text_key(json.dumps(sorted(checksums.items())))}.safetensors"
        write_safetensors_atomically(shard, self._pending, {"crc32": json.dumps(checksums, ensure_ascii=False)})
        self._held |= {key: (shard, checksum) for key, checksum in checksums.items()}
        self._pending = {}

    def refresh(self) -> None:
        """Look for shards of other processes and forget those that are gone; cut-off ones are set aside."""
        present = set(self.folder.glob("shard-*.safetensors"))
        self._held = {key: place for key, place in self._held.items() if place[0] in present}
        for shard in sorted(present - {shard for shard, _ in self._held.values()}):
            try:
                with safe_open(shard, framework="pt") as file:
                    checksums = parse_json((file.metadata() or {}).get("crc32", "{}"), shard.name)
                    names = set(file.keys())
            except (OSError, SafetensorError, LoRWeBError) as error:
                self._set_aside(shard, str(error))
                continue
            if not isinstance(checksums, dict) or checksums.keys() != names:
                self._set_aside(shard, "its list of checksums does not match its tensors")
                continue
            self._held |= {key: (shard, checksum) for key, checksum in checksums.items()}

    def _set_aside(self, shard: Path, reason: str) -> None:
        logger.warning("%s is set aside as .bad, its tensors have to be made again: %s", shard, reason)
        with suppress(OSError):
            shard.replace(shard.with_suffix(".safetensors.bad"))
        self._held = {key: place for key, place in self._held.items() if place[0] != shard}


def text_key(text: str) -> str:
    """A key for a text of any length."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_facts(folder: Path, *patterns: str) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change in ns of a model's files: a fingerprint that notices when they are exchanged."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _checksum(key: str, tensor: Tensor) -> int:
    """crc32 over name, dtype, shape and bytes, so that a damaged header is noticed as well."""
    facts = repr((key, str(tensor.dtype), tuple(tensor.shape))).encode()
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(facts))
