"""A .safetensors file: its header is checked, its tensors are read one by one, and it is written whole or not at all.

Layout: 8 bytes header length (little endian), that many bytes of JSON {name: {dtype, shape, data_offsets}}, then the
data. The safetensors library checks all of it; this module recognizes a pickle, a web page or a pointer file saved
under the wrong name. It writes tensor by tensor, since the library's own writer wants all of them contiguous in memory
at once (twice the file).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError, OutputError, RangeError, printable
from .files import atomic_file, encode_text, open_regular

#: Names of number types in the header; source: the safetensors format's specification.
_DTYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
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
    """One tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]


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
    entries = {name: TensorEntry(entry["dtype"], tuple(entry["shape"])) for name, entry in content.items()}
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


@contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """Give the open file, to read tensors of a checked header. Raises CheckpointError when it changed meanwhile."""
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} changed while it was read ({error}). Load it again.") from error


def write_safetensors_atomically(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write tensors and header strings as a .safetensors file, whole or not at all.

    Args:
        path: target; an existing file is replaced in one step.
        tensors: name → tensor; views are made contiguous one at a time while writing.
        metadata: header strings.
        dtype: cast every tensor to it; None keeps each as it is.
        on_progress: called after each tensor with (tensors done, tensors in all); may raise to stop.
    Raises: OutputError: when the file cannot be written, or numbers are NaN or infinite. RangeError: when numbers
        leave the dtype's range.
    """
    # Wide numbers first keep every tensor aligned to its own size.
    ordered = sorted(tensors, key=lambda name: -(dtype or tensors[name].dtype).itemsize)
    entries = {name: (tensors[name].shape, dtype or tensors[name].dtype) for name in ordered}
    stream_safetensors(path, entries, (tensors[name] for name in ordered), metadata, on_progress=on_progress)


def stream_safetensors(
    path: Path,
    entries: Mapping[str, tuple[Sequence[int], torch.dtype]],
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a .safetensors file whose tensors are made while it is written, so that it may exceed the memory left.

    `entries` holds (shape, dtype) by name, in the order in which `tensors` gives them; each is cast to its dtype.
    Otherwise as `write_safetensors_atomically`.
    """
    content: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (shape, dtype) in entries.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        content[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    header = encode_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")))
    header += b" " * (-len(header) % 8)
    with atomic_file(path) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for done, ((name, (shape, dtype)), tensor) in enumerate(zip(entries.items(), tensors, strict=True), start=1):
            assert tuple(tensor.shape) == tuple(shape), name
            stored = tensor.detach().to("cpu", dtype)
            _require_finite(name, stored, original=tensor.detach())
            file.write(stored.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            if on_progress is not None:
                on_progress(done, len(entries))


def _require_finite(name: str, stored: Tensor, *, original: Tensor) -> None:
    """Raise the error that fits the cause: numbers never were finite, or the file's dtype cannot hold them."""
    if not stored.is_floating_point() or bool((stored.float() if stored.itemsize == 1 else stored).isfinite().all()):
        return
    numbers = original.double()
    count = int((~numbers.isfinite()).sum())
    if count:
        raise OutputError(
            f"{count} of {numbers.numel()} numbers of {name} already were NaN or infinite before saving. The training "
            "diverged, a computation overflowed or a file that was read is damaged."
        )
    is_narrow = torch.finfo(stored.dtype).max < torch.finfo(torch.bfloat16).max
    raise RangeError(
        f"The numbers of {name} reach {float(numbers.abs().max()):.3g}, beyond the range of {stored.dtype}. "
        + ("Write the file as bf16 or fp32." if is_narrow else "Scale them down; no wider type can be written here.")
    )
