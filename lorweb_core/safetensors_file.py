"""The header of a .safetensors file: which tensors it holds, without reading one.

Layout: 8 bytes header length (little endian), that many bytes of JSON {name: {dtype, shape, data_offsets}}, then the
data. The safetensors library checks all of it; this module recognizes a pickle, a web page or a pointer file saved
under the wrong name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .errors import CheckpointError, printable
from .files import open_regular

_KNOWN_STARTS = {
    b"pk\x03\x04": "a PyTorch pickle (zip)",
    b"\x80\x02": "a PyTorch pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"gguf": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<!": "a web page",
    b"<html": "a web page",
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header describes it; `start` and `end` are byte offsets within the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header: tensor name → entry in the file's order, the metadata strings, and the raw bytes (to hash)."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    raw: bytes


def read_header(path: Path) -> Header:
    """Return the checked header of a .safetensors file.

    Raises FileError when the file is missing, unreadable or not a regular file; CheckpointError when it is of another
    kind, truncated, or its header contradicts itself.
    """
    with open_regular(path) as file:
        start = file.read(24)
        try:
            with safe_open(str(path), framework="pt"):  # checks header, offsets, sizes and the file's length
                file.seek(8)
                raw = file.read(int.from_bytes(start[:8], "little"))
            content = json.loads(raw)
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise CheckpointError(_describe_failure(path.name, start, error)) from error
    unreadable = next((name for name in content if printable(name) != name), None)
    if unreadable is not None:
        raise CheckpointError(
            f"The tensor name {unreadable[:80]!r} in {path.name} has control characters. "
            "The file is damaged or was made to mislead; do not use it."
        )
    metadata = content.pop("__metadata__", None) or {}
    entries = {
        name: TensorEntry(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        for name, entry in content.items()
    }
    return Header(entries, metadata, raw)


def _describe_failure(name: str, start: bytes, error: Exception) -> str:
    kind = next((kind for magic, kind in _KNOWN_STARTS.items() if start.lower().startswith(magic)), None)
    if not start or kind is None or start[8:9] == b"{":  # the length of a 640-byte header, 80 02, looks like a pickle
        reason = str(error) if start else "it is empty"
        return (
            f"{name} is not a whole .safetensors file: {reason}. It is damaged, was cut off or is something else; "
            "download or copy it again and compare its size."
        )
    if "pickle" in kind:
        return f"{name} is {kind}. Pickles can run code and are never opened here; get the .safetensors file instead."
    return f"{name} is {kind}. Download the .safetensors file itself again."
