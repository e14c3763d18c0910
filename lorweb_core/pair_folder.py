"""Which two files of a folder belong together: the naming rule of Encode Many Analogies and of `prepare folders`.

A pair is called `before` and `after`, `control` and `target`, or `a` and `a_prime`, in capitals or not. The word stands
in the files' names (`x_before.png` and `x_after.jpg`, `img0 after.png`, `a_cup.png`, `x_a_prime.png`) or is the name of
a folder (`a/1.png` and `a_prime/1.webp`). Everything else in the two names is the same; it is the name of the pair.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import ImageError, quote
from .images import IMAGE_SUFFIXES

#: What the two sides are called: word → side, word on the other side.
_WORDS = {
    "before": ("before", "after"),
    "after": ("after", "before"),
    "control": ("before", "target"),
    "target": ("after", "control"),
    "a": ("before", "a_prime"),
    "a_prime": ("after", "a"),
}
_WORD = re.compile(r"(?<![^\W_])(before|after|control|target|a_prime|a)(?![^\W_])", re.IGNORECASE)
_SEPARATORS = " _-."
_RENAME = "Name the two files of a pair like x_before.png and x_after.png, or use folders before/ and after/."


@dataclass(frozen=True)
class ImagePair:
    """Two files, before and after an edit, and a name for both."""

    name: str
    before: Path
    after: Path


def side_folders(folder: Path) -> dict[Path, str]:
    """Return the subfolders that hold one side of pairs: path → `before` or `after`.

    `before` and `after` always do; `a` or `control` may be the name of anything unless the other one is beside it.
    """
    below = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    words = {path.name.lower() for path in below}
    return {
        path: _WORDS[word][0]
        for path in below
        if (word := path.name.lower()) in _WORDS and (word in ("before", "after") or _WORDS[word][1] in words)
    }


def find_sides(folder: Path, list_images: Callable[[Path], list[Path]]) -> list[tuple[str, str, Path]]:
    """Return (`before` or `after`, name of the pair, image) for a folder's images and those in its side folders.

    Deeper folders are not read; `list_images` returns the images directly in a folder.
    """
    inside = [
        (side, stem_of(path), path) for place, side in side_folders(folder).items() for path in list_images(place)
    ]
    stems = {side: {stem for other, stem, _ in inside if other == side} for side in ("before", "after")}
    found = []
    for side, stem, path in inside:  # a file in after/ may be called x_after.png as well
        own_side, name = _read_end(stem)
        is_repeated = own_side == side and stem not in stems["before"] & stems["after"]
        found.append((side, name if is_repeated else stem, path))
    beside = list_images(folder)
    known = {reading for path in beside for reading in _readings(stem_of(path))}
    for path in beside:
        stem = stem_of(path)
        paired = [r for r in _readings(stem) if (_WORDS[r[0]][1], *r[1:]) in known]
        if paired:
            word, start, end = paired[-1]
            found.append((_WORDS[word][0], _join(start, end), path))
        elif (side_and_name := _read_end(stem))[0]:
            found.append((*side_and_name, path))
    return found


def stem_of(path: Path) -> str:
    """Return a file's name without ending, with composed letters: macOS stores `é` as `e` and an accent."""
    return unicodedata.normalize("NFC", path.stem)


def find_near(name: str, side: str, left_over: list[Path]) -> str:
    """Return the renaming that would make a left-over image the missing side of a pair, or ""."""

    def is_near(path: Path) -> bool:
        stem = stem_of(path)
        if re.match(rf"{re.escape(name)}(?![^\W_])", stem):
            return True
        is_same_number = re.findall(r"\d+", name) == re.findall(r"\d+", stem)
        return is_same_number and bool(difflib.get_close_matches(name, [stem, _read_end(stem)[1]], cutoff=0.7))

    near = next((path for path in left_over if is_near(path)), None)
    return f" (if it is {near.name}, rename that to {name}_{side}{near.suffix})" if near else ""


def find_pairs(folder: Path) -> list[ImagePair]:
    """Return the example pairs in a folder and in those below it, by name.

    Raises ImageError when the folder is missing, has no pairs, or an image has no counterpart or several.
    """
    try:
        is_folder = folder.is_dir()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        is_folder = False
    if not is_folder:
        raise ImageError(
            f"There is no folder {quote(folder.name)} with example pairs. Put x_a.png and x_a_prime.png into a folder "
            "below ComfyUI's input folder and name it here."
        )
    places = [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir())]
    pairs: dict[str, dict[str, list[Path]]] = {}
    for place in places:
        for side, name, path in find_sides(place, _list_images) if place not in side_folders(place.parent) else []:
            full_name = (place.relative_to(folder) / name).as_posix()
            pairs.setdefault(full_name, {"before": [], "after": []})[side].append(path)
    if not pairs:
        count = sum(len(_list_images(place)) for place in places)
        raise ImageError(f"There are no pairs among the {count} images in {quote(folder.name)}. {_RENAME}")
    odd = [name for name, files in pairs.items() if [*map(len, files.values())] != [1, 1]]
    if odd:
        files = pairs[odd[0]]
        own = files["before"] + files["after"]
        whole = {path for name, files in pairs.items() if name not in odd for path in files["before"] + files["after"]}
        left_over = [path for path in _list_images(own[0].parent) if path not in whole and path not in own]
        missing = next((side for side, paths in files.items() if not paths), "")
        problem = f"{len(files['before'])} images before and {len(files['after'])} after"
        if missing:
            problem = f"no image {missing}{find_near(Path(odd[0]).name, missing, left_over)}"
        raise ImageError(
            f"{len(odd)} of the pairs in {quote(folder.name)} are not two images, such as {odd[0]!r}: "
            f"{problem}. {_RENAME}"
        )
    return [ImagePair(name, files["before"][0], files["after"][0]) for name, files in sorted(pairs.items())]


def _readings(stem: str) -> list[tuple[str, str, str]]:
    """(word, what is before it, what is after it) for each place where a stem could name its side."""
    return [(found[1].lower(), stem[: found.start()], stem[found.end() :]) for found in _WORD.finditer(stem)]


def _read_end(stem: str) -> tuple[str, str]:
    """Side and name of a stem that ends in a word, ("", stem) for any other; an `a` alone is no word."""
    word, start, end = (_readings(stem) or [("a", "", "")])[-1]
    return ("", stem) if end or word == "a" else (_WORDS[word][0], _join(start, end))


def _join(start: str, end: str) -> str:
    start = start.rstrip(_SEPARATORS)
    return (start + end if start else end.lstrip(_SEPARATORS)) or "pair"


def _list_images(folder: Path) -> list[Path]:
    files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES)
    return [path for path in files if path.is_file() and not path.name.startswith(".")]  # ._x.png is macOS' own
