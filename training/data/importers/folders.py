"""A folder per transformation.

    mydata/watercolor/0001_before.png  0001_after.png  [0001.txt]
    mydata/watercolor/before/0001.png  after/0001.jpg  [caption/0001.txt]
    mydata/watercolor/task.toml        [caption, reverse_caption, split, weight, bidirectional]

Folders may be nested (`mydata/style/watercolor` is the task `style/watercolor`), and pairs in `mydata` itself are
a task as well. Other names for the two sides, such as `control` and `target` or `a` and `a_prime`, are those of
`lorweb_core.pair_folder`.
`bidirectional = true` adds a second task with before and after exchanged: the reverse transformation has its own
pairs, so an analogy never mixes directions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import tomllib

from lorweb_core.files import MAX_YAML_BYTES, read_text
from lorweb_core.pair_folder import find_near, find_sides, side_folders, stem_of

from ..index import SPLITS, DataError, Problem
from .building import (
    Candidate,
    Found,
    folder_name,
    image_files,
    is_visible,
    read_caption,
    require_folder,
    subfolders,
)

REVERSED_SUFFIX = " (reversed)"
_CAPTION_FOLDERS = ("caption", "captions")
#: Image formats of cameras and programs that Pillow does not read.
_FOREIGN_SUFFIXES = (".heic", ".heif", ".jxl", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw")


@dataclass(frozen=True)
class TaskSettings:
    """What `task.toml` may set."""

    caption: str = ""  # edit instruction of every pair that has no text file
    reverse_caption: str = ""  # the same for the reversed task; text files describe the forward direction only
    split: str = "train"  # train, val or test, for all pairs of the task
    weight: float = 1.0  # factor on how often the task is chosen
    bidirectional: bool = False  # also learn after → before, as a task of its own


def find_pairs(root: Path) -> Found:
    """The pairs of `root` itself and of every folder below it that holds any; a folder without is listed.

    Raises DataError when `root` is not a folder, or a `task.toml` cannot be used.
    """
    require_folder(root, "one subfolder per transformation")
    found = Found()
    _search(root, folder_name(root), found)
    return found


def read_task_settings(path: Path) -> TaskSettings:
    """The settings of a `task.toml`; the defaults when there is none. Raises DataError."""
    if not path.is_file():
        return TaskSettings()
    try:
        values = tomllib.loads(read_text(path, MAX_YAML_BYTES))
    except (ValueError, RecursionError) as error:  # FileError and TOMLDecodeError among them
        raise _toml_error(path, [str(error)]) from error
    wrong = [problem for name, value in islice(values.items(), 20) if (problem := _toml_problem(name, value))]
    if wrong:
        raise _toml_error(path, wrong)
    return TaskSettings(**values)


def _search(
    folder: Path, name: str, found: Found, *, above: tuple[Path, ...] = (), is_within_task: bool = False
) -> None:
    """Add the pairs of a folder and of those below it; a link back to one of the folders `above` is not followed."""
    if folder.resolve() in above:
        return
    sides = side_folders(folder)
    is_task = bool(sides or find_sides(folder, image_files))
    if is_task:
        _find_task(folder, name, found)
    below = [path for path in subfolders(folder) if path not in sides]
    below = [path for path in below if not (is_task and path.name.lower() in _CAPTION_FOLDERS)]
    for path in below:
        below_name = f"{name}/{path.name}" if above else path.name
        _search(path, below_name, found, above=(*above, folder.resolve()), is_within_task=is_task)
    if not is_task and not below:
        renaming = _renaming(folder, [path for path in subfolders(folder.parent) if above and path != folder])
        reason = f"no `*_before`/`*_after` images and no `before/` and `after/` folders{renaming}"
        found.problems.append(Problem(str(folder), "few-pairs", reason, "warning" if is_within_task else "error"))


def _renaming(folder: Path, siblings: list[Path]) -> str:
    """What would make pairs of a folder's images: other names for two folders, or for the two words names end in."""
    stems = {stem_of(path) for path in image_files(folder)}
    twin = next((path for path in siblings if stems & {stem_of(file) for file in image_files(path)}), None)
    if twin:
        return f"; {twin.name}/ has images of the same names: rename the two folders to `before` and `after`"
    endings: dict[str, list[str]] = {}
    for stem in sorted(stems):
        start, _, ending = re.sub("[ .-]", "_", stem).rpartition("_")
        endings.setdefault(start, []).append(ending)
    two = next((words for words in endings.values() if len(words) == 2 and not any(map(str.isdigit, words))), None)
    return f"; names end in `{two[0]}` and `{two[1]}`: rename these to `before` and `after`" if two else ""


def _find_task(folder: Path, name: str, found: Found) -> None:
    settings = read_task_settings(folder / "task.toml")
    before, after = _images_by_side(folder, found.problems)
    captions = _captions(folder, before.keys() | after.keys(), found.problems)
    candidates = [
        Candidate(
            f"{name}/{stem}", name, before[stem], after[stem], captions.get(stem) or settings.caption,
            split=settings.split, weight=float(settings.weight), task_caption=settings.caption,
        )
        for stem in sorted(before.keys() & after.keys())
    ]  # fmt: skip
    found.problems += _unpaired(folder, before, after)
    found.candidates += candidates + (_reversed(candidates, settings) if settings.bidirectional else [])
    if not before and not after:
        reason = "its `before/` and `after/` folders hold no images"
        found.problems.append(Problem(str(folder), "few-pairs", reason))


def _images_by_side(folder: Path, problems: list[Problem]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The pair's name → before image, and → after image; of two of one name and side the first is used."""
    sides: dict[str, dict[str, Path]] = {"before": {}, "after": {}}
    for side, name, path in find_sides(folder, image_files):
        first = sides[side].setdefault(name, path)
        if first != path:
            problems.append(Problem(str(path), "ambiguous", f"{first.name} is already the {side} image of {name}"))

    def list_foreign(place: Path) -> list[Path]:
        return [path for path in place.iterdir() if path.suffix.lower() in _FOREIGN_SUFFIXES and is_visible(path)]

    for _, _, path in find_sides(folder, list_foreign):
        reason = f"{path.suffix} images cannot be read; save it as PNG or JPEG"
        problems.append(Problem(str(path), "unreadable", reason))
    return sides["before"], sides["after"]


def _captions(folder: Path, names: Iterable[str], problems: list[Problem]) -> dict[str, str]:
    """The pair's name → text of its file beside the images or in `caption/`; files of no pair are reported once."""
    own = [path for path, side in side_folders(folder).items() if side == "after"]  # as in ai-toolkit's target/
    places = [folder, *(path for path in subfolders(folder) if path.name.lower() in _CAPTION_FOLDERS), *own]
    files = [p for place in places for p in sorted(place.iterdir()) if p.suffix.lower() == ".txt" and is_visible(p)]
    known, captions = set(names), dict[str, str]()
    for path in files:
        name = stem_of(path)
        if name in known and not captions.get(name):
            captions[name] = read_caption(path, problems)
    unused = [path.name for path in files if stem_of(path) not in known]
    if unused:
        reason = f"{len(unused)} text file(s) named like no pair, as {unused[0]}; a caption is called <name>.txt"
        problems.append(Problem(str(folder), "unused", reason, "warning"))
    return captions


def _unpaired(folder: Path, before: dict[str, Path], after: dict[str, Path]) -> list[Problem]:
    """Images without a counterpart, with the left-over image that is called nearly so."""
    pairs = before.keys() & after.keys()
    used = {side[name] for side in (before, after) for name in pairs}
    left_over = [p for place in (folder, *side_folders(folder)) for p in image_files(place) if p not in used]
    problems = []
    for present, wanted in ((before, "after"), (after, "before")):
        for name in sorted(present.keys() - pairs):
            near = find_near(name, wanted, [path for path in left_over if path != present[name]])
            reason = f"there is no {wanted} image named {name}{near}"
            problems.append(Problem(str(present[name]), "unpaired", reason))
    return problems


def _reversed(candidates: Iterable[Candidate], settings: TaskSettings) -> list[Candidate]:
    caption = settings.reverse_caption
    return [
        replace(
            candidate, id=candidate.id + REVERSED_SUFFIX, task=candidate.task + REVERSED_SUFFIX,
            before=candidate.after, after=candidate.before, caption=caption, task_caption=caption,
        )
        for candidate in candidates
    ]  # fmt: skip


def _toml_problem(name: str, value: Any) -> str:  # noqa: ANN401 (whatever TOML holds)
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


def _toml_error(path: Path, problems: list[str]) -> DataError:
    known = ", ".join(item.name for item in fields(TaskSettings))
    return DataError(f"{path} cannot be used: {'; '.join(problems)}. It may set {known}.")
