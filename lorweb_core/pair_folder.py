"""A folder of example pairs for one edit: which two files belong together.

One rule: a picture with the word `a_prime` in its path is the "after" of the picture whose path has `a` in its place,
whatever the ending of the file. So `x_a.png` and `x_a_prime.jpg` are a pair, `a_cup.png` and `a_prime_cup.png`, and
`a/1.png` and `a_prime/1.png`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .errors import ImageError
from .images import IMAGE_SUFFIXES

_AFTER_WORD = re.compile(r"(?<![A-Za-z0-9])a_prime(?![A-Za-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class PicturePair:
    """Two files, before and after an edit, and a name for both."""

    name: str
    before: Path
    after: Path


def find_pairs(folder: Path) -> list[PicturePair]:
    """Return the example pairs below a folder, by name.

    Raises: ImageError: when the folder is missing, has no pairs, or an "after" has no "before" or several.
    """
    if not _is_folder(folder):
        raise ImageError(
            expected="a folder with example pairs",
            got=f"{_shorten(folder.name)}, which is no folder",
            remedy="Put x_a.png and x_a_prime.png into a folder below ComfyUI's input folder and name it here.",
        )
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        is_hidden = path.name.startswith(".")  # "._x.png" is what macOS notes about x.png
        if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden and path.is_file():
            by_stem.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    pairs, lonely = [], []
    for stem, files in by_stem.items():
        if not _AFTER_WORD.search(stem):
            continue
        name = _AFTER_WORD.sub(lambda word: word[0][0], stem)  # a_prime → a, A_PRIME → A
        before = by_stem.get(name, [])
        if len(before) == len(files) == 1:
            pairs.append(PicturePair(name, before[0], files[0]))
        else:
            lonely.append(stem)
    if lonely or not pairs:
        raise ImageError(
            expected=f"one picture …a… for each …a_prime… in {folder.name} (such as x_a.png and x_a_prime.png)",
            got=f"{len(lonely)} without exactly one (such as {', '.join(lonely[:3])})"
            if lonely
            else f"no name with a_prime among {len(by_stem)} pictures",
            remedy="Rename the files so that both differ in a and a_prime only.",
        )
    return pairs


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


def _shorten(name: str) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:80]}… ({len(name)} characters)"
