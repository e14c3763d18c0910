"""The reference's layout: `control/<id>.jpg` (strip a|a'|b), `target/<id>.jpg` (b'), `target/<id>.txt` (caption).

Every analogy gives two pairs of its task: (a, a') and (b, b'). The panels of the strip are cut and written as PNG, b'
stays where it is. `analogy_metadata.json`, a list of {analogy_id, edit_prompt, category, pair_A, pair_C, …}, gives
caption, task and the names of the pairs; a pair that many analogies name is imported once.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from lorweb_core.errors import FileError
from lorweb_core.files import read_json
from lorweb_core.images import ImageFileError, read_image

from ..index import Problem
from .building import MAX_LABELS_BYTES, Candidate, Found, folder_name, image_files, read_caption, require_folder
from .extraction import safe_name, write_image

METADATA_NAME = "analogy_metadata.json"


def find_pairs(root: Path, images: Path) -> Found:
    """The pairs of all analogies below `root`; panels are written into `images`, a subfolder per task."""
    require_folder(root, "control/ and target/")
    controls = {path.stem: path for path in image_files(require_folder(root / "control", "strips a|a'|b"))}
    targets = {path.stem: path for path in image_files(require_folder(root / "target", "images b'"))}
    metadata, problems = _read_metadata(root)
    for present, other, wanted in ((controls, targets, "target"), (targets, controls, "control")):
        for stem in sorted(present.keys() - other.keys()):
            problems.append(Problem(str(present[stem]), "unpaired", f"there is no {wanted}/{stem} image"))

    pairs: dict[tuple[str, str], tuple[Path, Path]] = {}
    caption_as_a: dict[tuple[str, str], str] = {}
    caption_as_b: dict[tuple[str, str], str] = {}
    unnamed = 0
    stems = sorted(controls.keys() & targets.keys())
    for stem in tqdm(stems, desc="cutting", unit="analogy", disable=None):
        entry = metadata.get(stem, {})
        task = str(entry.get("category") or folder_name(root))
        caption = str(entry.get("edit_prompt") or "") or read_caption(targets[stem].with_suffix(".txt"), problems)
        caption = ", ".join(part.strip() for part in caption.split(","))  # as the reference reads it
        try:
            strip = read_image(controls[stem])
            width, height = read_image(targets[stem]).size
        except ImageFileError as error:
            problems.append(Problem(str(error.path), error.kind, error.reason))
            continue
        if strip.size != (3 * width, height):  # the panels get the size of b', whatever the strip's
            strip = strip.resize((3 * width, height), Image.Resampling.BICUBIC)
        a, a_prime, b = (strip.crop((left, 0, left + width, height)) for left in (0, width, 2 * width))
        pair_a, pair_b = _text(entry.get("pair_A")), _text(entry.get("pair_C"))
        unnamed += not (pair_a and pair_b)
        key_a = task, pair_a.removeprefix(f"{task}/") or f"a {_hash(a.tobytes() + a_prime.tobytes())}"
        key_b = task, pair_b.removeprefix(f"{task}/") or f"b {_hash(targets[stem].read_bytes())}"
        folder = images / safe_name(task)
        if key_b not in pairs:
            pairs[key_b] = _write_panel(folder, key_b[1], "before", b), targets[stem].absolute()
        if key_a not in pairs:
            pairs[key_a] = _write_panel(folder, key_a[1], "before", a), _write_panel(folder, key_a[1], "after", a_prime)
        caption_as_a.setdefault(key_a, caption)
        caption_as_b.setdefault(key_b, caption)
    if unnamed:
        reason = (
            f"{unnamed} analogies do not name their pairs (pair_A, pair_C), so a pair may be imported both as a and as "
            "b; hold out whole tasks rather than pairs"
        )
        problems.append(Problem(str(root / METADATA_NAME), "unnamed", reason, "warning"))
    captions = caption_as_b | caption_as_a  # the stored instruction is that of pair a
    candidates = [
        Candidate(f"{task}/{name}", task, before, after, captions[task, name])
        for (task, name), (before, after) in sorted(pairs.items())
    ]
    return Found(candidates, problems)


def _write_panel(folder: Path, name: str, side: str, panel: Image.Image) -> Path:
    encoded = io.BytesIO()
    panel.save(encoded, "PNG")
    return write_image(folder, f"{name}_{side}", encoded.getvalue())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


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
        return {}, [Problem(str(path), "unreadable", "not a list; captions come from text files", "warning")]
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("analogy_id"), str)]
    return {Path(entry["analogy_id"]).name: entry for entry in named}, []
