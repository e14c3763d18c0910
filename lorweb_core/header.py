"""The header of a .safetensors file: what tensors it holds, checked before a byte of them is read.

Layout: 8 bytes header length (little endian), that many bytes of JSON {name: {dtype, shape, data_offsets}}, then the
data, without gaps. The library checks the same but says less; here every mistake gets a message for people, and a
pickle, a web page or a pointer file saved under the wrong name is told apart. Source: the safetensors specification.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError, printable
from .files import DTYPE_NAMES

#: The library's own bound; a full-size basis has 0.3 MB.
MAX_HEADER_BYTES = 100_000_000
#: More than any model has; a bound on the work a hostile header can cause.
MAX_DIMENSIONS = 16

_ITEM_BYTES = {name: dtype.itemsize for dtype, name in DTYPE_NAMES.items()}
_GET_AGAIN = "The file is damaged or was cut off; download or copy it again and compare its size."
_KNOWN_STARTS = {
    b"PK\x03\x04": "a PyTorch pickle (zip) file",
    b"\x80\x02": "a PyTorch pickle file",
    b"\x80\x03": "a Python pickle file",
    b"\x80\x04": "a Python pickle file",
    b"\x80\x05": "a Python pickle file",
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<!": "a web page",
    b"<html": "a web page",
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header describes it: number type, shape, first byte and end within the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        entries: tensor name → its entry, in the file's order.
        metadata: the header's strings.
        raw: the header's bytes as stored (for hashing).
    """

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    raw: bytes


def read_header(path: Path) -> Header:
    """Return the checked header of a .safetensors file.

    Raises: CheckpointError: when the file is missing, of another kind, cut off, or its header contradicts itself.
    """
    raw, data_bytes = _read_header_bytes(path)
    content = _parse_json(raw, path.name)
    odd = [name for name in content if printable(name) != name]
    if odd:
        raise _damaged(path.name, "names of tensors", f"{_shorten(odd[0])}, with control characters")
    metadata = content.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path.name, "__metadata__ that maps names to strings", _shorten(metadata))
    entries = {name: _parse_entry(name, value, path.name) for name, value in content.items()}
    _require_gapless(entries, data_bytes, path.name)
    return Header(entries=entries, metadata=metadata, raw=raw)


def _read_header_bytes(path: Path) -> tuple[bytes, int]:
    """Return the header's bytes and how many bytes of data follow."""
    if path.is_dir():
        raise CheckpointError(
            expected="a .safetensors file", got=f"the folder {path}", remedy="Name the .safetensors file inside it."
        )
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(24)
            _require_safetensors(path, start, size)
            length = int.from_bytes(start[:8], "little")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(
                    expected=f"a header that fits into {path.name} ({size:,} bytes)",
                    got=f"one said to be {length:,} bytes long",
                    remedy="It is no .safetensors file or is cut off; download or copy it again.",
                )
            file.seek(8)
            return file.read(length), size - 8 - length
    except OSError as error:
        raise CheckpointError(
            expected=f"a readable .safetensors file at {path}",
            got=error.strerror or str(error),
            remedy="Check the path and the file's permissions.",
        ) from error


def _require_safetensors(path: Path, start: bytes, size: int) -> None:
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return  # a header of 640 bytes, for one, begins like a pickle: 80 02
    other_kind = next((kind for magic, kind in _KNOWN_STARTS.items() if start.lower().startswith(magic.lower())), None)
    if size <= 8:
        other_kind = "an empty file" if size == 0 else f"a file of {size} bytes"
    if other_kind is None:
        return
    is_pickle = "pickle" in other_kind
    raise CheckpointError(
        expected=f"{path.name} to be a .safetensors file",
        got=other_kind,
        remedy="Pickles can run code and are never opened here; get the .safetensors file instead."
        if is_pickle
        else "Download the .safetensors file itself again.",
    )


def _parse_json(raw: bytes, file_name: str) -> dict[str, Any]:
    repeated: list[str] = []

    def keep_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(pairs)
        if len(unique) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated.extend(name for name, count in counts.items() if count > 1)
        return unique

    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=keep_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(file_name, "a header of JSON text", f"text that is none ({_shorten(error)})") from error
    if repeated:
        raise _damaged(file_name, "each tensor once in the header", f"{', '.join(repeated[:3])} more than once")
    if not isinstance(content, dict):
        raise _damaged(file_name, "a header that maps names to tensors", type(content).__name__)
    return content


def _parse_entry(name: str, value: object, file_name: str) -> TensorEntry:
    if not isinstance(value, dict):
        raise _damaged(file_name, f"dtype, shape and data_offsets of {name}", _shorten(value))
    dtype: Any = value.get("dtype")
    shape: Any = value.get("shape")
    offsets: Any = value.get("data_offsets")
    is_well_formed = isinstance(dtype, str) and _are_counts(shape) and _are_counts(offsets) and len(offsets) == 2
    if not is_well_formed or offsets[0] > offsets[1]:
        raise _damaged(file_name, f"dtype, shape and data_offsets of {name}", _shorten(value))
    entry = TensorEntry(dtype, tuple(shape), *offsets)
    wanted = math.prod(entry.shape) * _ITEM_BYTES.get(entry.dtype, 0)
    if entry.dtype in _ITEM_BYTES and entry.end - entry.start != wanted:
        raise _damaged(
            file_name,
            f"{wanted:,} bytes for {name} ({entry.dtype} {list(entry.shape)})",
            f"a header that gives it {entry.end - entry.start:,}",
        )
    return entry


def _are_counts(value: object) -> bool:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return False
    return all(type(item) is int and 0 <= item < 2**63 for item in value)


def _require_gapless(entries: Mapping[str, TensorEntry], data_bytes: int, file_name: str) -> None:
    """Raise unless the tensors' bytes follow each other from the first to the last byte of the file."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            kind = "overlaps the tensor before it" if entry.start < end else "leaves a gap before it"
            raise _damaged(file_name, "tensors that follow each other", f"{name}, which {kind}")
        end = entry.end
    if end != data_bytes:
        raise _damaged(file_name, f"{end:,} bytes of tensors, as its header says", f"{data_bytes:,}")


def _damaged(file_name: str, expected: str, got: str) -> CheckpointError:
    return CheckpointError(expected=f"{file_name} to have {expected}", got=got, remedy=_GET_AGAIN)


def _shorten(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
