"""Before|after strips: one image per pair, before on the left half, after on the right half.

    strips/watercolor/0001.png  [0001.txt]     or, with a task name given, strips/0001.png

The files are not changed: the index marks them as strips, and they are cut when read.
"""

from __future__ import annotations

from pathlib import Path

from ..index import Problem
from .building import Candidate, Found, folder_name, image_files, read_caption, require_folder, subfolders


def find_pairs(root: Path, *, task: str | None = None) -> Found:
    """A pair per image of `root` itself (of this task, or named like the folder) and of every subfolder (its name)."""
    require_folder(root, "before|after strips, or one subfolder of them per transformation")
    found = Found()
    for folder, name in [(root, task or folder_name(root)), *((folder, folder.name) for folder in subfolders(root))]:
        images = image_files(folder)
        found.candidates += [
            Candidate(
                f"{name}/{path.stem}", name, path, path, read_caption(path.with_suffix(".txt"), found.problems),
                strip=True,
            )
            for path in images
        ]  # fmt: skip
        if not images and folder != root:
            found.problems.append(Problem(str(folder), "few-pairs", "there are no images in it"))
    return found
