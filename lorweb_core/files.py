"""Result files: whole or not at all.

Everything is written to a temporary file in the target's folder, flushed to the disk and moved into place in one
step; after a mistake, a full disk or an interruption the target is as it was before and nothing partial is left.
A .safetensors file is an 8-byte header length, a JSON header, then the tensors' bytes; it is written here tensor by
tensor, since the library's own writer wants all of them contiguous in memory at once (twice the file).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import torch
from torch import Tensor

from .errors import OutputError, RangeError

#: Names of number types in the header; source: the safetensors format's specification.
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class DeferredTensor:
    """A tensor that is made only when it is written, so that a file may be larger than the memory left.

    Attributes:
        shape, dtype: what `make` will return.
        make: called once.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    def numel(self) -> int:
        """Return how many numbers it will have."""
        return math.prod(self.shape)


def write_safetensors_atomically(
    path: Path,
    tensors: Mapping[str, Tensor | DeferredTensor],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write tensors and header strings as a .safetensors file, whole or not at all.

    Args:
        path: target; an existing file is replaced in one step.
        tensors: name → tensor; views are made contiguous, and deferred ones made, one at a time while writing, in the
            mapping's order within one dtype.
        metadata: header strings.
        dtype: cast every tensor to it; None keeps each as it is.
        on_progress: called after each tensor with (tensors done, tensors in all); may raise to stop.
    Raises: OutputError: when the file cannot be written, or numbers are NaN or infinite. RangeError: when numbers
        leave the dtype's range.
    """
    # Wide numbers first keep every tensor aligned to its own size.
    ordered = sorted(tensors, key=lambda name: -(dtype or tensors[name].dtype).itemsize)
    header = _encode_header({name: tensors[name] for name in ordered}, metadata, dtype)
    with _atomic_file(path) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for done, name in enumerate(ordered, start=1):
            entry = tensors[name]
            tensor = entry.make() if isinstance(entry, DeferredTensor) else entry
            file.write(_contiguous_bytes(tensor, dtype, name))
            if on_progress is not None:
                on_progress(done, len(ordered))


def write_text_atomically(path: Path, text: str) -> None:
    """Write text as UTF-8 with plain newlines, whole or not at all.

    Raises: OutputError: when the file cannot be written.
    """
    write_bytes_atomically(path, _encode_text(text))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write bytes, whole or not at all.

    Raises: OutputError: when the file cannot be written.
    """
    with _atomic_file(path) as file:
        file.write(content)


def require_writable(path: Path) -> None:
    """Raise an OutputError unless a file can be made beside `path` and become it; for before long work."""
    target = Path(os.path.realpath(path))
    temporary = _temporary_beside(target)
    try:
        _open_new(temporary, target).close()
        temporary.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error


def _temporary_beside(target: Path) -> Path:
    # A name may have 255 bytes, and a character up to four of them.
    return target.with_name(f".{target.name[:50]}.{uuid4().hex[:8]}.tmp")


def _open_new(temporary: Path, target: Path) -> BinaryIO:
    if target.is_dir():
        raise IsADirectoryError(f"{target.name} is a folder")
    return temporary.open("xb")


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        expected=f"to be able to write {path}",
        got=error.strerror or str(error),
        remedy="Choose an existing folder with enough free space that you may write to, and a file no other "
        "program holds open.",
    )


@contextmanager
def _atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which becomes `path` when the block ends well and vanishes when it does not."""
    target = Path(os.path.realpath(path))  # through a link, so that the link stays one
    temporary = _temporary_beside(target)
    try:
        with _open_new(temporary, target) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # it is gone after a success, or was never there
            temporary.unlink()


def _encode_header(
    tensors: Mapping[str, Tensor | DeferredTensor], metadata: Mapping[str, str], dtype: torch.dtype | None
) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        stored = dtype or tensor.dtype
        start, end = end, end + tensor.numel() * stored.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[stored], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = _encode_text(json.dumps(entries, ensure_ascii=False, separators=(",", ":")))
    return header + b" " * (-len(header) % 8)


def _encode_text(text: str) -> bytes:
    """Return UTF-8; halves of a character, as file names of other systems have them, become question marks."""
    return text.encode("utf-8", errors="replace")


def _is_finite(tensor: Tensor) -> bool:
    numbers = tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor
    return not tensor.is_floating_point() or bool(torch.isfinite(numbers).all())


def _not_finite(tensor: Tensor, dtype: torch.dtype, name: str) -> OutputError:
    """Return the refusal that fits the cause: numbers that never were finite, or that the file's dtype cannot hold."""
    numbers = tensor.detach().double()
    if not bool(torch.isfinite(numbers).all()):
        return OutputError(
            expected=f"finite numbers in {name}",
            got=f"{int((~torch.isfinite(numbers)).sum())} of {numbers.numel()} NaN or infinite",
            remedy="They were so before writing: what made them diverged, overflowed or read a damaged file.",
        )
    is_narrow = torch.finfo(dtype).max < torch.finfo(torch.bfloat16).max
    return RangeError(
        expected=f"numbers of {name} within the range of {dtype}",
        got=f"a largest magnitude of {float(numbers.abs().max()):.3g}",
        remedy="Write the file as bf16 or fp32." if is_narrow else "Scale them down; no wider type is to be had here.",
    )


def _contiguous_bytes(tensor: Tensor, dtype: torch.dtype | None, name: str) -> memoryview:
    """Return the tensor's bytes in file order; a view when it already is contiguous in the right dtype."""
    cast = tensor.detach().to("cpu", dtype or tensor.dtype)
    if not _is_finite(cast):
        raise _not_finite(tensor, cast.dtype, name)
    flat = cast.contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
