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

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import tomllib

from lorweb_core.files import MAX_YAML_BYTES, read_text
from lorweb_core.pair_folder import find_near, find_sides, side_folders, stem_of

from ..index import DataError, Problem, field_problems
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
        wrong = field_problems(TaskSettings, values)
    except (ValueError, RecursionError) as error:  # FileError and TOMLDecodeError among them
        wrong = [str(error)]
    if wrong:
        known = ", ".join(item.name for item in fields(TaskSettings))
        raise DataError(f"{path} cannot be used: {'; '.join(wrong)}. It may set {known}.")
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
    sides: dict[str, dict[str, Path]] = {"before": {}, "after": {}}  # side → the pair's name → image
    for side, stem, path in find_sides(folder, image_files):
        first = sides[side].setdefault(stem, path)
        if first != path:
            reason = f"{first.name} is already the {side} image of {stem}"
            found.problems.append(Problem(str(path), "ambiguous", reason))

    def list_foreign(place: Path) -> list[Path]:
        return [path for path in place.iterdir() if path.suffix.lower() in _FOREIGN_SUFFIXES and is_visible(path)]

    for _, _, path in find_sides(folder, list_foreign):
        reason = f"{path.suffix} images cannot be read; save it as PNG or JPEG"
        found.problems.append(Problem(str(path), "unreadable", reason))
    before, after = sides["before"], sides["after"]
    captions = _captions(folder, before.keys() | after.keys(), found.problems)
    forward = [
        Candidate(
            f"{name}/{stem}", name, before[stem], after[stem], captions.get(stem) or settings.caption,
            split=settings.split, weight=float(settings.weight), task_caption=settings.caption,
        )
        for stem in sorted(before.keys() & after.keys())
    ]  # fmt: skip
    found.problems += _unpaired(folder, before, after)
    found.candidates += forward
    if settings.bidirectional:
        caption = settings.reverse_caption
        found.candidates += [
            replace(
                pair, id=pair.id + REVERSED_SUFFIX, task=pair.task + REVERSED_SUFFIX, before=pair.after,
                after=pair.before, caption=caption, task_caption=caption,
            )
            for pair in forward
        ]  # fmt: skip
    if not before and not after:
        reason = "its `before/` and `after/` folders hold no images"
        found.problems.append(Problem(str(folder), "few-pairs", reason))


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
