"""The pair index: every before/after pair of a data set, one JSON object a line.

`{"id": …, "task": …, "before": …, "after": …, "caption": …, "split": …, "width": …, "height": …, "sha256": …}`; paths
are relative to the index file's folder, so the folder may move as a whole.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lorweb_core.errors import FileError, LoRWeBError, printable
from lorweb_core.files import parse_json, read_text, write_text_atomically

SPLITS = ("train", "val", "test")
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "Path": (str,), "int": (int,), "float": (int, float), "bool": (bool,),
}  # fmt: skip
_SHOWN_PROBLEMS = 3
#: After so many the file is taken for something else and not read on.
_MAX_PROBLEMS = 1_000
_MAX_BYTES = 1_000_000_000


class DataError(LoRWeBError):
    """A data set, pair index or its settings cannot be used as they are."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one file (or one task).

    A pair with an `error` (broken) or `left out` (intact, but of no use, such as the only pair of a task) is not used
    for training; one with a `warning` is.
    """

    file: str  # the image, text file or task, as a path or name a person can open
    kind: str  # one word to filter by, such as `missing`, `damaged`, `duplicate`, `few-pairs`
    reason: str  # one sentence without a full stop
    severity: Literal["error", "left out", "warning"] = "error"
    pair_id: str = ""  # of the affected pair, if any

    def __str__(self) -> str:
        return printable(f"{self.severity}: {self.file}: {self.kind}: {self.reason}")


def errors_among(problems: Sequence[Problem]) -> list[Problem]:
    """The problems that make a pair unusable, in their order."""
    return [problem for problem in problems if problem.severity != "warning"]


def as_text(problems: Sequence[Problem]) -> str:
    """One line per problem, then the count of each kind; "" when there is none."""
    if not problems:
        return ""
    kinds = Counter(f"{problem.kind} ({problem.severity})" for problem in problems)
    summary = ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items()))
    return "\n".join([*map(str, problems), f"{len(problems)} problem(s): {summary}"])


def stop_on_errors(problems: Sequence[Problem]) -> None:
    """Raise DataError with the first three errors if there are any."""
    errors = errors_among(problems)
    if not errors:
        return
    shown = "; ".join(f"{problem.file} ({problem.kind}: {problem.reason})" for problem in errors[:_SHOWN_PROBLEMS])
    more = len(errors) - _SHOWN_PROBLEMS
    raise DataError(
        f"The data set has {len(errors)} problem(s): {shown}{f' and {more} more' if more > 0 else ''}. Repair or "
        "remove these files; `python -m training.prepare check`, or an import without --on-bad-data stop, lists all."
    )


@dataclass(frozen=True)
class PairRecord:
    """One before/after pair."""

    id: str  # unique in the index, such as `watercolor/0001`
    task: str  # the transformation that its pairs share
    before: Path  # image files: absolute in memory, relative to the index on disk; the same file when `strip`
    after: Path
    width: int  # of one image in pixels, upright (EXIF rotation applied); of half the strip when `strip`
    height: int
    caption: str = ""  # edit instruction of this pair; "" when there is none
    split: str = "train"  # train, val or test; a task without train pairs is a held-out task
    sha256: str = ""  # over the bytes of `files`; "" when unknown
    weight: float = 1.0  # factor on how often this pair is chosen
    strip: bool = False  # both images are the halves of one file, before on the left
    task_caption: str = ""  # caption that fits every pair of the task; "" to use the task's name

    @property
    def aspect(self) -> float:
        """Width ÷ height."""
        return self.width / self.height

    @property
    def files(self) -> tuple[Path, ...]:
        """Before and after, or the one strip."""
        return (self.before,) if self.strip else (self.before, self.after)

    @property
    def content_key(self) -> str:
        """Names the images for caches: `sha256` (paths where the index has none), sizes and times as they are now."""
        facts: list[object] = [self.sha256 or [os.fspath(path.absolute()) for path in self.files]]
        for path in self.files:
            with suppress(OSError):
                found = path.stat()
                facts.append((found.st_size, found.st_mtime_ns))
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()

    @property
    def before_key(self) -> str:
        """Names the before image in caches."""
        return f"{self.content_key}.before"

    @property
    def after_key(self) -> str:
        """Names the after image in caches."""
        return f"{self.content_key}.after"


def read_pairs(path: str | Path) -> tuple[PairRecord, ...]:
    """The records of an index file, paths made absolute. Raises DataError with the first unusable lines and a count."""
    path = Path(path).absolute()
    try:
        text = read_text(path, _MAX_BYTES)
    except FileError as error:
        raise DataError(
            f"{error} Correct the path, or create a pair index with `python -m training.prepare`."
        ) from error
    records, wrong = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_parse_record(line, path.parent))
        except ValueError as error:
            wrong.append(f"line {number}: {str(error).rstrip('.')}")
            if len(wrong) == _MAX_PROBLEMS:
                break
    wrong += [f"id {name!r} occurs {n} times" for name, n in Counter(r.id for r in records).items() if n > 1]
    if wrong or not records:
        more = len(wrong) - _SHOWN_PROBLEMS
        shown = "; ".join(wrong[:_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise DataError(
            f"{path} has {shown or 'no record at all'}. Import the images again with `python -m training.prepare`, or "
            "correct these lines."
        )
    return tuple(records)


def write_pairs(path: str | Path, records: Iterable[PairRecord]) -> None:
    """Write one line per record, whole or not at all, with relative paths where possible. Raises OutputError."""
    path = Path(path).absolute()
    lines = []
    for record in records:
        values = {n: _portable(v, path.parent) if isinstance(v, Path) else v for n, v in vars(record).items()}
        line = json.dumps(values, ensure_ascii=False)
        try:
            line.encode()
        except UnicodeEncodeError:  # a file name that is not UTF-8; escaped, it is read back as it was
            line = json.dumps(values)
        lines.append(f"{line}\n")
    write_text_atomically(path, "".join(lines))


def field_problems(kind: type[Any], values: dict[str, Any]) -> list[str]:
    """What is wrong with JSON or TOML values for the fields of a dataclass: names, types, ranges."""
    known = {item.name: item for item in fields(kind)}
    problems = []
    for name in islice(values, 20):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            problems.append(f"unknown field {name!r:.80}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    for name, item in known.items():
        value: Any = values.get(name)
        wanted = str(item.type)
        has_type = isinstance(value, _JSON_TYPES[wanted]) and (wanted == "bool" or not isinstance(value, bool))
        if name not in values:
            problems += [f"field {name!r} is missing"] if item.default is MISSING else []
        elif not has_type:
            problems.append(f"{name} is {value!r:.80}, not of type {wanted}")
        elif name in ("width", "height") and value < 1:
            problems.append(f"{name} is {value}, not at least 1")
        elif name == "weight" and not 0 <= value < float("inf"):
            problems.append(f"weight is {value}, not a finite number of at least 0")
        elif name == "split" and value not in SPLITS:
            problems.append(f"split is {value!r:.80}, not one of {', '.join(SPLITS)}")
    return problems


def _parse_record(line: str, folder: Path) -> PairRecord:
    values = parse_json(line, "it")
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    problems = field_problems(PairRecord, values)
    if problems:
        raise ValueError(", ".join(problems))
    paths = {name: Path(os.path.normpath(folder / values[name])) for name in ("before", "after")}
    return PairRecord(**{**values, **paths})


def _portable(path: Path, folder: Path) -> str:
    """Relative to the index with forward slashes; absolute where no relative path exists (another drive)."""
    try:
        return str(PurePosixPath(*Path(os.path.relpath(path.absolute(), folder)).parts))
    except ValueError:
        return path.absolute().as_posix()
