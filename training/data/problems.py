"""What is wrong with a data set, one line per file: where, which kind, why.

An `error` is a broken file: its pair is left out, or the reason to stop. `left out` is an intact pair that training has
no use for, such as the only one of a task. A `warning` only informs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from lorweb_core.errors import LoRWeBError, printable

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
