"""A folder per transformation.

    mydata/watercolour/0001_before.png  0001_after.png  [0001.txt]
    mydata/watercolour/before/0001.png  after/0001.jpg  [caption/0001.txt]
    mydata/watercolour/task.toml        [caption, reverse_caption, split, weight, bidirectional]

`bidirectional = true` adds a second task with before and after exchanged: the reverse transformation has its own
pairs, so an analogy never mixes directions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import tomllib

from ..index import SPLITS
from ..problems import DataError, Problem
from .building import Candidate, Found, picture_files, read_caption, require_folder, subfolders

REVERSED_SUFFIX = " (reversed)"
_SIDES = ("before", "after")
_CAPTION_FOLDERS = ("caption", "captions")


@dataclass(frozen=True)
class TaskSettings:
    """What `task.toml` may say.

    Attributes:
        caption: edit instruction of every pair that has no text file.
        reverse_caption: the same for the reversed task; text files describe the forward direction only.
        split: `train`, `val` or `test`, for all pairs of the task.
        weight: factor on how often the task is drawn.
        bidirectional: also learn after → before, as a task of its own.
    """

    caption: str = ""
    reverse_caption: str = ""
    split: str = "train"
    weight: float = 1.0
    bidirectional: bool = False


def find_pairs(root: Path) -> Found:
    """The pairs of every subfolder of `root`, or of `root` itself when it holds pairs directly.

    Raises: DataError: when `root` is no folder, or a `task.toml` cannot be understood.
    """
    require_folder(root, "one subfolder per transformation")
    is_task_itself = any(_side_of(path) for path in picture_files(root)) or (root / "before").is_dir()
    found = Found()
    for task in [root] if is_task_itself else subfolders(root):
        candidates, problems = _find_task(task)
        found.candidates += candidates
        found.problems += problems
    return found


def read_task_settings(path: Path) -> TaskSettings:
    """The settings of a `task.toml`; the defaults when there is none.

    Raises: DataError: for unreadable TOML, unknown names (with the nearest known one) and wrong values, all at once.
    """
    if not path.is_file():
        return TaskSettings()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _toml_error(path, [str(error)]) from error
    mistakes = [mistake for name, value in values.items() if (mistake := _toml_mistake(name, value))]
    if mistakes:
        raise _toml_error(path, mistakes)
    return TaskSettings(**values)


def _find_task(folder: Path) -> tuple[list[Candidate], list[Problem]]:
    settings = read_task_settings(folder / "task.toml")
    sides, problems = _pictures_by_side(folder)
    before, after = sides["before"], sides["after"]
    candidates = [
        Candidate(
            id=f"{folder.name}/{stem}",
            task=folder.name,
            before=before[stem],
            after=after[stem],
            caption=_caption_of(folder, stem) or settings.caption,
            split=settings.split,
            weight=float(settings.weight),
            task_caption=settings.caption,
        )
        for stem in sorted(before.keys() & after.keys())
    ]
    problems += _unpaired(before, after, "after") + _unpaired(after, before, "before")
    if not candidates and not problems:
        reason = "no `*_before`/`*_after` pictures and no `before/` and `after/` folders"
        problems = [Problem(str(folder), "few-pairs", reason)]
    return candidates + (_reversed(candidates, settings) if settings.bidirectional else []), problems


def _pictures_by_side(folder: Path) -> tuple[dict[str, dict[str, Path]], list[Problem]]:
    """`before` and `after` → the pair's name → picture; of two pictures of one name and side the first is used."""
    if (folder / "before").is_dir() or (folder / "after").is_dir():
        named = [(side, path.stem, path) for side in _SIDES for path in picture_files(folder / side)]
    else:
        named = [
            (side, path.stem[: -len(side) - 1], path) for path in picture_files(folder) if (side := _side_of(path))
        ]
    sides: dict[str, dict[str, Path]] = {side: {} for side in _SIDES}
    problems = []
    for side, name, path in named:
        first = sides[side].setdefault(name, path)
        if first != path:
            problems.append(Problem(str(path), "ambiguous", f"{first.name} is already the {side} picture of {name}"))
    return sides, problems


def _side_of(path: Path) -> str:
    """`before` or `after` for a name such as `0001_before.png` or `0001-After.jpg`, else ""."""
    stem = path.stem.lower()
    return next((side for side in _SIDES if stem.endswith((f"_{side}", f"-{side}"))), "")


def _caption_of(folder: Path, stem: str) -> str:
    places = [folder, *(folder / name for name in _CAPTION_FOLDERS)]
    return next((text for place in places if (text := read_caption(place / f"{stem}.txt"))), "")


def _unpaired(present: dict[str, Path], other: dict[str, Path], wanted: str) -> list[Problem]:
    alone = sorted(present.keys() - other.keys())
    return [Problem(str(present[stem]), "unpaired", f"there is no {wanted} picture named {stem}") for stem in alone]


def _reversed(candidates: Iterable[Candidate], settings: TaskSettings) -> list[Candidate]:
    caption = settings.reverse_caption
    return [
        replace(
            candidate,
            id=candidate.id + REVERSED_SUFFIX,
            task=candidate.task + REVERSED_SUFFIX,
            before=candidate.after,
            after=candidate.before,
            caption=caption,
            task_caption=caption,
        )
        for candidate in candidates
    ]


def _toml_mistake(name: str, value: Any) -> str:  # noqa: ANN401 (whatever TOML holds)
    defaults = asdict(TaskSettings())
    if name not in defaults:
        near = difflib.get_close_matches(name, defaults, n=1)
        return f"unknown name {name!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
    wanted = (int, float) if isinstance(defaults[name], float) else (type(defaults[name]),)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        return f"{name} is {value!r}, not of type {wanted[-1].__name__}"
    if name == "split" and value not in SPLITS:
        return f"split is {value!r}, not one of {', '.join(SPLITS)}"
    if name == "weight" and not 0 <= value < float("inf"):
        return f"weight is {value!r}, not a finite number of at least 0"
    return ""


def _toml_error(path: Path, mistakes: list[str]) -> DataError:
    return DataError(
        expected=f"{path} to hold only {', '.join(item.name for item in fields(TaskSettings))}",
        got="; ".join(mistakes),
        remedy='For example: caption = "turn it into a watercolour".',
    )
