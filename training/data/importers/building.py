"""From what an importer found to records of an index: headers read, files hashed, ids made unique.

An importer knows a layout; it neither opens images nor writes the index. What it cannot pair it lists as a problem.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorweb_core.errors import FileError
from lorweb_core.files import MAX_TEXT_BYTES, read_bytes
from lorweb_core.images import IMAGE_SUFFIXES, ImageFileError, read_image_size

from ..checks import hash_files, in_threads
from ..index import DataError, PairRecord, Problem

_SPLIT_NAMES = {"val": "val", "valid": "val", "validation": "val", "dev": "val"}
_SPLIT_NAMES |= {"test": "test", "eval": "test", "evaluation": "test"}
#: Labels and metadata of a whole data set.
MAX_LABELS_BYTES = 200_000_000
#: Folders that systems and unpackers leave beside the user's own.
_FOREIGN_FOLDERS = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")


@dataclass(frozen=True)
class Candidate:
    """A pair as an importer found it; the fields are `PairRecord`'s."""

    id: str
    task: str
    before: Path
    after: Path
    caption: str = ""
    split: str = "train"
    weight: float = 1.0
    strip: bool = False
    task_caption: str = ""


@dataclass
class Found:
    """What an importer found: pairs, and files it could make nothing of."""

    candidates: list[Candidate] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def build_pairs(candidates: Sequence[Candidate]) -> tuple[list[PairRecord], list[Problem]]:
    """Records of the candidates whose images have a readable header, and the problems of the others."""

    def build(candidate: Candidate) -> PairRecord | Problem:
        try:
            width, height = read_image_size(candidate.after)
            if candidate.strip and width < 2:
                raise ImageFileError(candidate.before, "odd-aspect", "a strip of one column has no halves")
            if not candidate.strip:
                read_image_size(candidate.before)
            record = PairRecord(**vars(candidate), width=width // 2 if candidate.strip else width, height=height)
            return replace(record, sha256=hash_files(record.files))
        except ImageFileError as error:
            return Problem(str(error.path), error.kind, error.reason, pair_id=candidate.id)
        except OSError as error:
            return Problem(str(candidate.before), "unreadable", error.strerror or str(error), pair_id=candidate.id)

    seen: Counter[str] = Counter()
    unique: list[Candidate] = []
    for candidate in candidates:  # the second and later ones of one id become `id~2`, `id~3`, …
        seen[candidate.id] += 1
        number = seen[candidate.id]
        unique.append(candidate if number == 1 else replace(candidate, id=f"{candidate.id}~{number}"))
    built = in_threads(build, unique, "reading")
    return [r for r in built if isinstance(r, PairRecord)], [p for p in built if isinstance(p, Problem)]


def require_folder(path: Path, content: str) -> Path:
    """The path itself; DataError that names the content wanted when it is not a folder."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}. Name a folder with {content}.")
    return path


def folder_name(path: Path) -> str:
    """The name of a folder, also of `.` and `..`."""
    return path.resolve().name or "images"


def is_visible(path: Path) -> bool:
    """Whether a file or folder is the user's own: neither hidden nor left by a system or unpacker."""
    return not path.name.startswith(".") and path.name.lower() not in _FOREIGN_FOLDERS


def subfolders(folder: Path) -> list[Path]:
    """Visible subfolders by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_visible(path))


def image_files(folder: Path) -> list[Path]:
    """Visible image files of one folder by name, recognized by suffix; [] when there is no such folder."""
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if path.is_file() and is_visible(path))


def read_caption(path: Path, problems: list[Problem]) -> str:
    """Text of a caption file with white space folded; "" when there is none.

    UTF-8 and, by its mark, UTF-16 (Notepad's “Unicode”) are read as such; other bytes as Windows-1252, which is added
    to `problems` as a warning.
    """
    if not path.exists():
        return ""
    try:
        data = read_bytes(path, MAX_TEXT_BYTES)
    except FileError as error:
        problems.append(Problem(str(path), "caption", f"left out: {error}", "warning"))
        return ""
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
        problems.append(Problem(str(path), "caption", "not UTF-8; read as Windows-1252, save it as UTF-8", "warning"))
    return " ".join(text.split())


def split_name(name: str) -> str:
    """`train`, `val` or `test` for the names that data sets use; `train` for any other."""
    return _SPLIT_NAMES.get(name.lower(), "train")
