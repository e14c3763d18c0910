"""One JSON object a line, added as work is done: what an interrupted stage goes on from.

Reading never changes the file: lines that are no usable record (the half-written end of a killed process) are counted
and left out, so their work is done again. The first append puts the file in order before it adds to it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorweb_core.errors import OutputError
from lorweb_core.files import parse_json, read_bytes, write_text_atomically

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_MAX_BYTES = 1_000_000_000


class RecordFile:
    """Records by key; of several with one key the last counts.

    Args:
        path: the file; it and its folder are made by the first append.
        key: names of the fields that tell records apart.
        needed: names of further fields without which a record is of no use.

    Attributes:
        unreadable: how many lines were left out.
    """

    def __init__(self, path: Path, key: tuple[str, ...], needed: tuple[str, ...] = ()) -> None:
        self.path, self.key, self.needed = path, key, needed
        self._records: dict[tuple[Any, ...], Record] = {}
        self.unreadable = 0
        self._is_in_order = self._read()

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def find(self, *key: object) -> Record | None:
        """The record of a key, or None."""
        return self._records.get(key)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is on the disk when this returns.

        Raises: OutputError: when the file cannot be written.
        """
        if not self._is_in_order:
            write_text_atomically(self.path, "".join(_line(kept) for kept in self._records.values()))
            self._is_in_order = True
        kept = dict(record)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(_line(kept).encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unusable(error) from error
        self._records[self._key_of(kept)] = kept

    def _read(self) -> bool:
        """Fill the records; False when the file must be put in order before anything is added."""
        if not self.path.exists():
            return True
        data = read_bytes(self.path, _MAX_BYTES)
        for line in data.split(b"\n"):
            if not line.strip():
                continue
            record = _parse(line) if line.startswith(b"{") else None
            if (
                record is None
                or not all(name in record for name in (*self.key, *self.needed))
                or any(isinstance(record[name], list | dict) for name in self.key)
            ):
                self.unreadable += 1
                continue
            self._records[self._key_of(record)] = record
        if self.unreadable:
            logger.warning(
                "%s: %d half-written or damaged line(s) left out; their work is done again", self.path, self.unreadable
            )
        return not self.unreadable and (not data or data.endswith(b"\n"))

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(
            expected=f"to be able to read and add to {self.path}",
            got=error.strerror or str(error),
            remedy="Make room or choose another folder, then run the same command again.",
        )

    def _key_of(self, record: Record) -> tuple[Any, ...]:
        return tuple(record[name] for name in self.key)


def _parse(line: bytes) -> Record | None:
    try:
        record = parse_json(line.decode("utf-8"), "record")
    except ValueError:  # FileError among them
        return None
    return record if isinstance(record, dict) else None


def _line(record: Record) -> str:
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:  # half a character, as broken replies hold: UTF-8 has none, JSON's \\u escapes do
        return json.dumps(record, allow_nan=False) + "\n"
    return line
