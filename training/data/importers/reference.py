"""The reference's layout: `control/<id>.jpg` (strip a|a'|b), `target/<id>.jpg` (b'), `target/<id>.txt` (caption).

`analogy_metadata.json`, a list of {analogy_id, edit_prompt, category, pair_A, pair_C, …}, gives caption, task and the
names of a's and b's pair where it is present; its prompt goes before the text file, as in the reference's loader. The
one format of triplets: it has its own index.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorweb_core.errors import FileError
from lorweb_core.files import read_json

from ..index import Problem, TripletRecord
from ..reference import tidy_caption
from .building import MAX_LABELS_BYTES, folder_name, picture_files, read_caption, require_folder

METADATA_NAME = "analogy_metadata.json"


def find_triplets(root: Path) -> tuple[list[TripletRecord], list[Problem]]:
    """The triplets below `root`, sizes and hashes still empty (see `building.build_triplets`).

    Raises: DataError: when `root` lacks one of the two folders.
    """
    require_folder(root, "control/ and target/")
    controls = {path.stem: path for path in picture_files(require_folder(root / "control", "strips a|a'|b"))}
    targets = {path.stem: path for path in picture_files(require_folder(root / "target", "pictures b'"))}
    metadata, problems = _read_metadata(root)
    for present, other, wanted in ((controls, targets, "target"), (targets, controls, "control")):
        for stem in sorted(present.keys() - other.keys()):
            problems.append(Problem(str(present[stem]), "unpaired", f"there is no {wanted}/{stem} picture"))
    records = []
    for stem in sorted(controls.keys() & targets.keys()):
        entry = metadata.get(stem, {})
        caption = str(entry.get("edit_prompt") or "") or read_caption(targets[stem].with_suffix(".txt"), problems)
        task = str(entry.get("category") or folder_name(root))
        records.append(
            TripletRecord(
                id=stem,
                task=task,
                control=controls[stem],
                target=targets[stem],
                width=0,
                height=0,
                caption=tidy_caption(caption),
                pair_a=_text(entry.get("pair_A")),
                pair_b=_text(entry.get("pair_C")),
            )
        )
    return records, problems


def _text(value: object) -> str:
    return str(value) if isinstance(value, str | int) else ""


def _read_metadata(root: Path) -> tuple[dict[str, Mapping[str, Any]], list[Problem]]:
    """File stem → metadata entry; the paths of an entry name the same stem as its id."""
    places = (root / METADATA_NAME, root / "target" / METADATA_NAME, root / "control" / METADATA_NAME)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return {}, []
    try:
        entries = read_json(path, MAX_LABELS_BYTES)
    except FileError as error:
        return {}, [Problem(str(path), "unreadable", f"{error} Captions come from text files", "warning")]
    if not isinstance(entries, list):
        return {}, [Problem(str(path), "unreadable", "no list; captions come from text files", "warning")]
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("analogy_id"), str)]
    return {Path(entry["analogy_id"]).name: entry for entry in named}, []
