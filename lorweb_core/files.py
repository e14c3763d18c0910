"""Files: foreign ones are read with bounds, results are written whole or not at all.

A file that a dataset, a folder or a command line names may be a pipe, a device, endless, or built to exhaust whoever
parses it. `open_regular` opens regular files only; `read_text`, `read_json` and `read_yaml` bound size and depth too.

Everything is written to a temporary file in the target's folder, flushed to the disk and moved into place in one
step; after a mistake, a full disk or an interruption the target is as it was before and nothing partial is left.
A .safetensors file is an 8-byte header length, a JSON header, then the tensors' bytes; it is written here tensor by
tensor, since the library's own writer wants all of them contiguous in memory at once (twice the file).
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import torch
import yaml
from torch import Tensor

from .errors import FileError, OutputError, RangeError

#: Settings and configs are a page of text; PyYAML takes 0.5 s for the worst file of this size.
MAX_YAML_BYTES = 50_000
MAX_JSON_BYTES = 1_000_000
#: Captions and prompts.
MAX_TEXT_BYTES = 1_000_000
MAX_DEPTH = 50
#: Values of a YAML file, each alias counted as what it stands for.
MAX_YAML_VALUES = 5_000

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


def require_regular_file(path: Path) -> None:
    """Raise a FileError unless `path` is, or links to, an existing regular file: nothing else may be opened."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise FileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise FileError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file.")


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading bytes. Raises FileError when it is missing, unreadable or something else."""
    require_regular_file(path)
    try:
        return path.open("rb")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes. Raises FileError."""
    with open_regular(path) as file:
        try:
            content = file.read(limit + 1)
        except OSError as error:
            raise FileError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > limit:
        raise FileError(f"{path} has more than {limit:,} bytes, the most that is read of such a file.")
    return content


def read_text(path: Path, limit: int) -> str:
    """Return the UTF-8 text, with or without a byte order mark, of a regular file of at most `limit` bytes.

    Raises: FileError.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start:,}).") from error


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:  # noqa: ANN401 (whatever the file holds)
    """Return what a JSON file holds. Raises FileError."""
    return parse_json(read_text(path, limit), str(path))


def parse_json(text: str, source: str) -> Any:  # noqa: ANN401
    """Return what JSON text holds; `source` names it in messages.

    Raises: FileError: for text that is no JSON, is nested deeper than `MAX_DEPTH`, or has integers beyond 64 bits.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for numbers of more than 4,300 digits
        raise FileError(f"{source} is not usable JSON: {_one_line(error)}.") from error
    _require_plain(value, source)
    return value


def read_yaml(path: Path, limit: int = MAX_YAML_BYTES) -> Any:  # noqa: ANN401
    """Return what a YAML file holds; None when it is empty. Raises FileError."""
    return parse_yaml(read_text(path, limit), str(path))


def parse_yaml(text: str, source: str) -> Any:  # noqa: ANN401
    """Return what YAML text holds, read with the safe loader; `source` names it in messages.

    Raises: FileError: for text that is no YAML, is nested deeper than `MAX_DEPTH`, has more than `MAX_YAML_VALUES`
        values with aliases written out, or integers beyond 64 bits.
    """
    try:
        value = yaml.load(text, _BoundedLoader)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # All but YAMLError: the safe loader's constructors, for a month 99, `!!bool maybe`, `!!int ''` and the like.
        raise FileError(f"{source} is not usable YAML: {_one_line(error)}.") from error
    _require_plain(value, source)
    return value


class _BoundedLoader(yaml.SafeLoader):
    """A safe loader that stops at depth and size before anything is built of the nodes.

    Aliases are counted as what they stand for: some lines that each refer nine times to the line before would
    otherwise become 9^n values in merge keys, copies and messages.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._values = 0
        self._values_of: dict[yaml.Node | None, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        before = self._values
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and node not in self._values_of:
            raise yaml.YAMLError("a value that contains itself")
        self._values += self._values_of[node] if is_alias else 1
        self._values_of.setdefault(node, self._values - before)
        if self._values > MAX_YAML_VALUES:
            raise yaml.YAMLError(f"more than {MAX_YAML_VALUES:,} values with aliases written out")
        return node


def _require_plain(value: object, source: str) -> None:
    """Raise a FileError for nesting that others would recurse into, and integers that others would print."""
    level = [value]
    for _ in range(MAX_DEPTH):
        if any(type(item) is int and abs(item) >= 2**64 for item in level):
            raise FileError(f"{source} has an integer of more than 64 bits.")
        containers = [item for item in level if isinstance(item, (list, dict, set, tuple))]
        level = [part for item in containers for part in item]
        level += [part for item in containers if isinstance(item, dict) for part in item.values()]
        if not level:
            return
    raise FileError(f"{source} is nested more than {MAX_DEPTH} deep.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


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
