"""The pair index: every before/after pair of a data set, one JSON object a line.

`{"id": …, "task": …, "before": …, "after": …, "caption": …, "split": …, "width": …, "height": …, "sha256": …}`; paths
are relative to the index file's folder, so the folder may move as a whole. The reference's `control/` + `target/`
layout has triplets instead of pairs and its own index of the same kind (`TripletIndex`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, dataclass, fields
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Generic, Literal, TypeVar

from typing_extensions import Self

from lorweb_core.errors import FileError, LoRWeBError, printable
from lorweb_core.files import parse_json, read_text, write_text_atomically

# What is wrong with a data set, one line per file: where, which kind, why.
#
# An `error` is a broken file: its pair is left out, or the reason to stop. `left out` is an intact pair
# that training has
# no use for, such as the only one of a task. A `warning` only informs.


OnBadData = Literal["skip", "stop"]
_SHOWN_IN_MESSAGES = 3


class DataError(LoRWeBError):
    """A data set, pair index or its settings cannot be used as they are."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one file (or one task).

    Attributes:
        file: the picture, text file or task that it is about, as a path or name a person can open.
        kind: one word to filter by, for example `missing`, `damaged`, `duplicate`, `few-pairs`.
        reason: one sentence without a full stop.
        severity: `error` or `left out` (not used for training), or `warning` (used).
        pair_id: id of the pair that is affected, "" when there is none (yet).
    """

    file: str
    kind: str
    reason: str
    severity: Literal["error", "left out", "warning"] = "error"
    pair_id: str = ""

    def __str__(self) -> str:
        return printable(f"{self.severity}: {self.file}: {self.kind}: {self.reason}")


def errors_among(problems: Sequence[Problem]) -> list[Problem]:
    """The problems that make a pair unusable, in their order."""
    return [problem for problem in problems if problem.severity != "warning"]


def as_text(problems: Sequence[Problem]) -> str:
    """Every problem on a line of its own, then the count of each kind; "" when there is none."""
    if not problems:
        return ""
    kinds = Counter(f"{problem.kind} ({problem.severity})" for problem in problems)
    summary = ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items()))
    return "\n".join([*map(str, problems), f"{len(problems)} problem(s): {summary}"])


def as_json(problems: Sequence[Problem], **facts: object) -> str:
    """The facts and, under `problems`, every problem as an object; for other programs, in ASCII for every terminal."""
    return json.dumps({**facts, "problems": [asdict(problem) for problem in problems]}, indent=2)


def stop_if_wanted(problems: Sequence[Problem], on_bad_data: OnBadData) -> None:
    """Do nothing for `skip`; for `stop`, refuse data that contain any error.

    Raises: DataError: names the first three and how many more.
    """
    errors = errors_among(problems)
    if not errors or on_bad_data == "skip":
        return
    shown = "; ".join(f"{problem.file} ({problem.kind}: {problem.reason})" for problem in errors[:_SHOWN_IN_MESSAGES])
    more = len(errors) - _SHOWN_IN_MESSAGES
    raise DataError(
        expected="every picture of the data set to be usable (on_bad_data is `stop`)",
        got=f"{len(errors)} problem(s): {shown}{f' and {more} more' if more > 0 else ''}",
        remedy="Repair or remove these files (`python -m training.prepare check` lists all), or set on_bad_data: skip.",
    )


SPLITS = ("train", "val", "test")
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "Path": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}
_SHOWN_MISTAKES = 3
#: After so many the file is taken for something else and not read on.
_MAX_MISTAKES = 1_000
_MAX_BYTES = 1_000_000_000


@dataclass(frozen=True)
class PairRecord:
    """One before/after pair.

    Attributes:
        id: unique in the index, for example `watercolor/0001`.
        task: the transformation that its pairs share.
        before: picture file (absolute in memory, relative to the index on disk).
        after: picture file; the same file as `before` when `strip`.
        caption: edit instruction of this pair; "" when there is none.
        split: `train`, `val` or `test`; a task without `train` pairs is a held-out task.
        width: of one picture in pixels, upright (EXIF rotation applied); of half the strip when `strip`.
        height: likewise.
        sha256: over the bytes of before, then after (of the strip once); "" when unknown.
        weight: factor on how often this pair is drawn.
        strip: both pictures are the halves of one file, before on the left.
        task_caption: caption that fits every pair of the task; "" to use the task's name.
    """

    id: str
    task: str
    before: Path
    after: Path
    width: int
    height: int
    caption: str = ""
    split: str = "train"
    sha256: str = ""
    weight: float = 1.0
    strip: bool = False
    task_caption: str = ""

    @property
    def aspect(self) -> float:
        """Width ÷ height."""
        return self.width / self.height

    @property
    def content_key(self) -> str:
        """Names the pictures for caches: `sha256` (paths where the index has none), sizes and times as they are now."""
        files = (self.before,) if self.strip else (self.before, self.after)
        facts: list[object] = [self.sha256 or [os.fspath(path.absolute()) for path in files]]
        for path in files:
            with suppress(OSError):
                found = path.stat()
                facts.append((found.st_size, found.st_mtime_ns))
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()

    @property
    def before_key(self) -> str:
        """Names the before picture by content, for caches of what encoders make of it."""
        return f"{self.content_key}.before"

    @property
    def after_key(self) -> str:
        """Names the after picture by content, for caches of what encoders make of it."""
        return f"{self.content_key}.after"


@dataclass(frozen=True)
class TripletRecord:
    """One ready-made analogy in the reference's layout.

    Attributes:
        id: unique in the index; the file stem.
        task: its category.
        control: horizontal strip a | a' | b.
        target: picture b'.
        width: of the target in pixels, upright.
        height: likewise.
        caption: as stored beside the target (in the reference's sets: the instruction of pair a).
        split: `train`, `val` or `test`.
        sha256: over the bytes of control, then target; "" when unknown.
        pair_a: name of a's pair, shared by all triplets that it is part of; "" when unknown.
        pair_b: likewise of b's pair.
    """

    id: str
    task: str
    control: Path
    target: Path
    width: int
    height: int
    caption: str = ""
    split: str = "train"
    sha256: str = ""
    pair_a: str = ""
    pair_b: str = ""


RecordT = TypeVar("RecordT", PairRecord, TripletRecord)


class Index(Generic[RecordT]):
    """Records of one type and the file they live in (see `PairIndex`, `TripletIndex`)."""

    record_type: ClassVar[type]

    def __init__(self, records: Iterable[RecordT]) -> None:
        self.records: tuple[RecordT, ...] = tuple(records)

    def __len__(self) -> int:
        return len(self.records)

    def without(self, ids: Collection[str]) -> Self:
        """An index of the records whose id is not among these."""
        return type(self)(record for record in self.records if record.id not in ids)

    @classmethod
    def read_index(cls, path: str | Path) -> Self:
        """The records of an index file, paths made absolute.

        Raises: DataError: every unreadable line at once; a missing or empty file; an id that occurs twice.
        """
        path = Path(path).absolute()
        records, mistakes = [], []
        for number, line in enumerate(_read_lines(path), start=1):
            try:
                records.append(_parse_record(line, cls.record_type, path.parent))
            except ValueError as error:
                mistakes.append(f"line {number}: {error}")
                if len(mistakes) == _MAX_MISTAKES:
                    break
        mistakes += [f"id {name!r} occurs {n} times" for name, n in Counter(r.id for r in records).items() if n > 1]
        if mistakes or not records:
            raise _unusable_index(path, mistakes)
        return cls(records)

    def write_index(self, path: str | Path) -> None:
        """Write one line per record, paths relative to the index where possible; the file appears whole or not at all.

        Raises: OutputError: when the place cannot be written.
        """
        path = Path(path).absolute()
        lines = [_dump(_as_json(record, path.parent)) for record in self.records]
        write_text_atomically(path, "".join(f"{line}\n" for line in lines))


class PairIndex(Index[PairRecord]):
    """All pairs of a data set, in file order."""

    record_type = PairRecord


class TripletIndex(Index[TripletRecord]):
    """All ready-made analogies of a data set in the reference's layout, in file order."""

    record_type = TripletRecord


def open_index(path: str | Path) -> PairIndex | TripletIndex:
    """Read whichever of the two kinds of index the file is.

    Raises: DataError: as `read_index`.
    """
    first_line = next(iter(_read_lines(Path(path).absolute())), "")
    return (TripletIndex if '"control"' in first_line else PairIndex).read_index(path)


def _read_lines(path: Path) -> list[str]:
    try:
        return [line for line in read_text(path, _MAX_BYTES).split("\n") if line.strip()]
    except FileError as error:
        raise DataError(
            f"{error} A pair index is made with `python -m training.prepare`; correct the path or make one."
        ) from error


def _unusable_index(path: Path, mistakes: Sequence[str]) -> DataError:
    more = len(mistakes) - _SHOWN_MISTAKES
    shown = "; ".join(mistakes[:_SHOWN_MISTAKES]) + (f"; and {more} more" if more > 0 else "")
    return DataError(
        f"{path} has {shown or 'no record at all'}. Import the images again with `python -m training.prepare`, or "
        "correct these lines."
    )


def _parse_record(line: str, record_type: type, folder: Path) -> Any:  # noqa: ANN401 (one of the record types)
    try:
        values = parse_json(line, "it")
    except FileError as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    known = {item.name: item for item in fields(record_type)}
    mistakes = [_unknown_field(name, known) for name in islice(values, 20) if name not in known]
    mistakes += [text for item in known.values() if (text := _field_mistake(item, values))]
    if mistakes:
        raise ValueError(", ".join(mistakes))
    paths = {name: Path(os.path.normpath(folder / values[name])) for name, item in known.items() if item.type == "Path"}
    return record_type(**{**values, **paths})


def _unknown_field(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown field {name!r:.80}" + (f" (did you mean {near[0]!r}?)" if near else "")


def _field_mistake(item: Field[Any], values: dict[str, Any]) -> str:
    if item.name not in values:
        return f"field {item.name!r} is missing" if item.default is MISSING else ""
    value: Any = values[item.name]
    wanted = str(item.type)
    has_type = isinstance(value, _JSON_TYPES[wanted]) and (wanted == "bool" or not isinstance(value, bool))
    if not has_type:
        return f"{item.name} is {value!r:.80}, not of type {wanted}"
    if item.name in ("width", "height") and value < 1:
        return f"{item.name} is {value}, not at least 1"
    if item.name == "weight" and not 0 <= value < float("inf"):
        return f"weight is {value}, not a finite number of at least 0"
    if item.name == "split" and value not in SPLITS:
        return f"split is {value!r:.80}, not one of {', '.join(SPLITS)}"
    return ""


def _as_json(record: PairRecord | TripletRecord, folder: Path) -> dict[str, Any]:
    return {name: _portable(v, folder) if isinstance(v, Path) else v for name, v in vars(record).items()}


def _dump(values: dict[str, Any]) -> str:
    line = json.dumps(values, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a file name that is no UTF-8; escaped, it is read back as it was
        return json.dumps(values)
    return line


def _portable(path: Path, folder: Path) -> str:
    """Relative to the index with forward slashes; absolute where no relative path exists (another drive)."""
    try:
        return str(PurePosixPath(*Path(os.path.relpath(path.absolute(), folder)).parts))
    except ValueError:
        return path.absolute().as_posix()
