"""Files: foreign ones are read with bounds, results are written whole or not at all.

A file that a dataset, a folder or a command line names may be a pipe, a device, endless, or built to exhaust whoever
parses it. `open_regular` opens regular files only; `read_text`, `read_json` and `read_yaml` bound size and depth too.

Everything is written to a temporary file in the target's folder, flushed to the disk and moved into place in one
step; after an error, on a full disk or after an interruption the target is as before and nothing partial is left.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import yaml

from .errors import FileError, OutputError, one_line

#: Settings and configs are a page of text; PyYAML takes 0.5 s for the worst file of this size.
MAX_YAML_BYTES = 50_000
MAX_JSON_BYTES = 1_000_000
#: Captions and prompts.
MAX_TEXT_BYTES = 1_000_000
MAX_DEPTH = 50
#: Values of a YAML file, each alias counted as what it stands for.
MAX_YAML_VALUES = 5_000


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading bytes. Raises FileError for anything else."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except FileNotFoundError:
        raise FileError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise FileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    raise FileError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file.")


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
        raise FileError(f"{source} is not usable JSON: {one_line(error)}.") from error
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
        raise FileError(f"{source} is not usable YAML: {one_line(error)}.") from error
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


def write_text_atomically(path: Path, text: str) -> None:
    """Write text as UTF-8 with plain newlines, whole or not at all. Raises OutputError."""
    write_bytes_atomically(path, encode_text(text))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write bytes, whole or not at all. Raises OutputError."""
    with atomic_file(path) as file:
        file.write(content)


def encode_text(text: str) -> bytes:
    """Return UTF-8; halves of a character, as file names of other systems have them, become question marks."""
    return text.encode("utf-8", errors="replace")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which becomes `path` when the block ends well and vanishes when it does not.

    Raises OutputError when the file cannot be written.
    """
    target = Path(os.path.realpath(path))  # through a link, so that the link stays one
    # A name may have 255 bytes, and a character up to four of them.
    temporary = target.with_name(f".{target.name[:50]}.{uuid4().hex[:8]}.tmp")
    try:
        if target.is_dir():
            raise IsADirectoryError(f"{target.name} is a folder")
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. Choose an existing folder with enough free space "
            "that you may write to, and a file that no other program holds open."
        ) from error
    finally:
        with suppress(OSError):  # it is gone after a success, or was never there
            temporary.unlink()
