"""Relation252K: `<root>/<NNN-Task name>/Group1/labels.json` with before|after strips beside it.

`labels.json` is a list of {img_name, left_image_description, right_image_description, edit_instruction}. Written from
the documented shape and not yet tried on the data: other spellings of a name, a dict around the list, a missing suffix
and images in a subfolder are accepted, and what cannot be read is listed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from lorweb_core.errors import FileError
from lorweb_core.files import read_json

from ..index import Problem
from .building import (
    MAX_LABELS_BYTES,
    Candidate,
    Found,
    folder_name,
    image_files,
    is_visible,
    require_folder,
    subfolders,
)
from .extraction import text_of

LABELS_NAME = "labels.json"
_IMAGE_FIELDS = ("img_name", "image_name", "img", "image", "file_name", "filename")
_CAPTION_FIELDS = ("edit_instruction", "instruction", "edit_prompt", "prompt", "caption")


def find_pairs(root: Path, *, group: str | None = "Group1") -> Found:
    """The pairs of every task folder's group (as in the reference); of all groups with None or where it is missing."""
    require_folder(root, f"task folders that hold Group1/{LABELS_NAME}")
    found = Found()
    labels_of = _label_files(root)
    for task, label_files in labels_of.items():
        for labels in [path for path in label_files if path.parent.name == group] or label_files:
            _read_group(labels, folder_name(task), found)
    if root not in labels_of:
        used = {folder for task in labels_of for folder in (task, *task.parents)}
        beside = [folder for place in {root, *(task.parent for task in labels_of)} for folder in subfolders(place)]
        reason = f"there is no {LABELS_NAME} in it"
        found.problems += [Problem(str(path), "few-pairs", reason) for path in sorted({*beside} - used)]
    return found


def _label_files(root: Path) -> dict[Path, list[Path]]:
    """Task folder → label files of its groups or its own; they may be nested in folders of the archive."""
    labels_of: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob(LABELS_NAME)):
        folders = path.parent.relative_to(root).parts
        is_group_of_root = len(folders) == 1 and re.fullmatch(r"group\d*", folders[0], re.IGNORECASE)
        if all(is_visible(Path(name)) for name in folders):
            labels_of[root.joinpath(*folders[: 0 if is_group_of_root else max(1, len(folders) - 1)])].append(path)
    return labels_of


def _read_group(labels: Path, task: str, found: Found) -> None:
    try:
        content = read_json(labels, MAX_LABELS_BYTES)
    except FileError as error:
        found.problems.append(Problem(str(labels), "unreadable", str(error)))
        return
    if isinstance(content, dict):
        content = next((value for value in content.values() if isinstance(value, list)), None)
    if not isinstance(content, list):
        found.problems.append(Problem(str(labels), "unreadable", "not a list of labels"))
        return
    below = [path for place in (*subfolders(labels.parent), labels.parent) for path in image_files(place)]
    images = {name: path for path in below for name in (path.stem, path.name)}
    prefix = f"{task}/" if labels.parent.name == "Group1" else f"{task}/{labels.parent.name}/"
    unnamed: list[int] = []
    for position, entry in enumerate(content):
        entry = entry if isinstance(entry, dict) else {}
        name = text_of(entry, _IMAGE_FIELDS)
        if not name:
            unnamed.append(position)
            continue
        path = images.get(Path(name).name) or images.get(Path(name).stem)
        if path is None:
            reason = f"entry {position} names {name!r}, and there is no such image"
            found.problems.append(Problem(str(labels), "missing", reason))
            continue
        caption = text_of(entry, _CAPTION_FIELDS)
        found.candidates.append(Candidate(prefix + path.stem, task, path, path, caption, strip=True))
    if unnamed:
        reason = f"{len(unnamed)} entries name no image, the first is entry {unnamed[0]}"
        found.problems.append(Problem(str(labels), "missing", reason))
