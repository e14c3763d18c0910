"""Before|after strips: one picture per pair, before on the left half, after on the right half.

    strips/watercolor/0001.png  [0001.txt]     or, with a task name given, strips/0001.png

The files stay as they are; the index says that they are strips and they are cut when read.
"""

from __future__ import annotations

from pathlib import Path

from ..index import Problem
from .building import Candidate, Found, folder_name, picture_files, read_caption, require_folder, subfolders


def find_pairs(root: Path, *, task: str | None = None) -> Found:
    """A pair per picture: of every subfolder (its name is the task) and of `root` itself.

    Args:
        root: folder of strips or of folders of strips.
        task: name for the strips that lie in `root` itself; its own name when None.
    Raises: DataError: when `root` is no folder.
    """
    require_folder(root, "before|after strips, or one subfolder of them per transformation")
    found = Found()
    for folder, name in [(root, task or folder_name(root)), *((folder, folder.name) for folder in subfolders(root))]:
        pictures = picture_files(folder)
        found.candidates += [
            Candidate(
                id=f"{name}/{path.stem}",
                task=name,
                before=path,
                after=path,
                caption=read_caption(path.with_suffix(".txt"), found.problems),
                strip=True,
            )
            for path in pictures
        ]
        if not pictures and folder != root:
            found.problems.append(Problem(str(folder), "few-pairs", "there are no pictures in it"))
    return found
