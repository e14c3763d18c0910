"""A folder per transformation.

    mydata/watercolour/0001_before.png  0001_after.png  [0001.txt]
    mydata/watercolour/before/0001.png  after/0001.jpg  [caption/0001.txt]
    mydata/watercolour/task.toml        [caption, reverse_caption, split, weight, bidirectional]

Folders may lie deeper (`mydata/style/watercolour` is the task `style/watercolour`), and pairs in `mydata` itself are
a task as well. Upper and lower case of `before` and `after` do not matter; names are compared as a person reads them.
`bidirectional = true` adds a second task with before and after exchanged: the reverse transformation has its own
pairs, so an analogy never mixes directions.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import tomllib

from lorweb_core.files import MAX_YAML_BYTES, read_text

from ..index import SPLITS
from ..problems import DataError, Problem
from .building import (
    Candidate,
    Found,
    folder_name,
    is_visible,
    picture_files,
    read_caption,
    require_folder,
    subfolders,
)

REVERSED_SUFFIX = " (reversed)"
_SIDES = ("before", "after")
_CAPTION_FOLDERS = ("caption", "captions")
#: Pictures that cameras and programs write and Pillow does not read as they are.
_FOREIGN_SUFFIXES = (".heic", ".heif", ".jxl", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw")


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
    """The pairs of `root` itself and of every folder below it that holds any; a folder without is listed.

    Raises: DataError: when `root` is no folder, or a `task.toml` cannot be understood.
    """
    require_folder(root, "one subfolder per transformation")
    found = Found()
    _search(root, folder_name(root), found)
    return found


def read_task_settings(path: Path) -> TaskSettings:
    """The settings of a `task.toml`; the defaults when there is none.

    Raises: DataError: for unreadable TOML, unknown names (with the nearest known one) and wrong values, all at once.
    """
    if not path.is_file():
        return TaskSettings()
    try:
        values = tomllib.loads(read_text(path, MAX_YAML_BYTES))
    except (ValueError, RecursionError) as error:  # FileError and TOMLDecodeError among them
        raise _toml_error(path, [str(error)]) from error
    mistakes = [mistake for name, value in islice(values.items(), 20) if (mistake := _toml_mistake(name, value))]
    if mistakes:
        raise _toml_error(path, mistakes)
    return TaskSettings(**values)


def _search(
    folder: Path, name: str, found: Found, *, above: tuple[Path, ...] = (), is_within_task: bool = False
) -> None:
    """Add the pairs of a folder and of those below it; a link back to one of the folders `above` is not followed."""
    if folder.resolve() in above:
        return
    is_task = _is_task(folder)
    if is_task:
        _find_task(folder, name, found)
    below = [path for path in subfolders(folder) if not (is_task and path.name.lower() in _SIDES + _CAPTION_FOLDERS)]
    for path in below:
        below_name = f"{name}/{path.name}" if above else path.name
        _search(path, below_name, found, above=(*above, folder.resolve()), is_within_task=is_task)
    if not is_task and not below:
        reason = "no `*_before`/`*_after` pictures and no `before/` and `after/` folders"
        found.problems.append(Problem(str(folder), "few-pairs", reason, "warning" if is_within_task else "error"))


def _is_task(folder: Path) -> bool:
    has_side_folders = any(path.name.lower() in _SIDES for path in subfolders(folder))
    return has_side_folders or any(_side_of(path) for path in picture_files(folder))


def _find_task(folder: Path, name: str, found: Found) -> None:
    settings = read_task_settings(folder / "task.toml")
    before, after = _pictures_by_side(folder, found.problems)
    captions = _captions(folder, before.keys() | after.keys(), found.problems)
    candidates = [
        Candidate(
            id=f"{name}/{stem}",
            task=name,
            before=before[stem],
            after=after[stem],
            caption=captions.get(stem) or settings.caption,
            split=settings.split,
            weight=float(settings.weight),
            task_caption=settings.caption,
        )
        for stem in sorted(before.keys() & after.keys())
    ]
    found.problems += _unpaired(before, after, "after") + _unpaired(after, before, "before")
    found.candidates += candidates + (_reversed(candidates, settings) if settings.bidirectional else [])
    if not before and not after:
        reason = "its `before/` and `after/` folders hold no pictures"
        found.problems.append(Problem(str(folder), "few-pairs", reason))


def _pictures_by_side(folder: Path, problems: list[Problem]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The pair's name → before picture, and → after picture; of two of one name and side the first is used."""
    sides: dict[str, dict[str, Path]] = {side: {} for side in _SIDES}
    for side, name, path in (*_in_side_folders(folder), *_beside_each_other(folder)):
        first = sides[side].setdefault(name, path)
        if first != path:
            problems.append(Problem(str(path), "ambiguous", f"{first.name} is already the {side} picture of {name}"))
    for path in (path for place in (folder, *_side_folders(folder)) for path in place.iterdir() if is_visible(path)):
        if path.suffix.lower() in _FOREIGN_SUFFIXES and (path.parent != folder or _side_of(path)):
            reason = f"{path.suffix} pictures cannot be read; save it as PNG or JPEG"
            problems.append(Problem(str(path), "unreadable", reason))
    return sides["before"], sides["after"]


def _beside_each_other(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """(side, name, picture) of `<name>_before.png` and `<name>_after.png`."""
    for path in picture_files(folder):
        if side := _side_of(path):
            yield side, _without_side(path), path


def _in_side_folders(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """(side, name, picture) of `before/<name>.png`, `after/<name>.png`, which may be called `<name>_after.png` too."""
    pictures = [path for place in _side_folders(folder) for path in picture_files(place)]
    named = [(path.parent.name.lower(), _readable(path.stem), path) for path in pictures]
    names = {side: {name for other, name, _ in named if other == side} for side in _SIDES}
    for side, name, path in named:
        is_alone = not all(name in names[other] for other in _SIDES)
        yield side, _without_side(path) if is_alone and _side_of(path) == side else name, path


def _side_folders(folder: Path) -> list[Path]:
    return [path for path in subfolders(folder) if path.name.lower() in _SIDES]


def _side_of(path: Path) -> str:
    """`before` or `after` for a name such as `0001_before.png` or `0001-After.jpg`, else ""."""
    stem = path.stem.lower()
    return next((side for side in _SIDES if stem.endswith((f"_{side}", f"-{side}"))), "")


def _without_side(path: Path) -> str:
    return _readable(path.stem[: -len(_side_of(path)) - 1])


def _readable(name: str) -> str:
    """A name with composed letters: `é` may be stored as one character or, by macOS, as `e` and an accent."""
    return unicodedata.normalize("NFC", name)


def _captions(folder: Path, names: Iterable[str], problems: list[Problem]) -> dict[str, str]:
    """The pair's name → text of its file beside the pictures or in `caption/`; files of no pair are told once."""
    places = [folder, *(path for path in subfolders(folder) if path.name.lower() in _CAPTION_FOLDERS)]
    files = [p for place in places for p in sorted(place.iterdir()) if p.suffix.lower() == ".txt" and is_visible(p)]
    known, captions = set(names), dict[str, str]()
    for path in files:
        name = _readable(path.stem)
        if name in known and not captions.get(name):
            captions[name] = read_caption(path, problems)
    unused = [path.name for path in files if _readable(path.stem) not in known]
    if unused:
        reason = f"{len(unused)} text file(s) named like no pair, as {unused[0]}; a caption is called <name>.txt"
        problems.append(Problem(str(folder), "unused", reason, "warning"))
    return captions


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
        return f"{name} is {value!r:.80}, not of type {wanted[-1].__name__}"
    if name == "split" and value not in SPLITS:
        return f"split is {value!r:.80}, not one of {', '.join(SPLITS)}"
    if name == "weight" and not 0 <= value < float("inf"):
        return f"weight is {value!r:.80}, not a finite number of at least 0"
    return ""


def _toml_error(path: Path, mistakes: list[str]) -> DataError:
    return DataError(
        expected=f"{path} to hold only {', '.join(item.name for item in fields(TaskSettings))}",
        got="; ".join(mistakes),
        remedy='For example: caption = "turn it into a watercolour".',
    )
