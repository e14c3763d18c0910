"""Hugging Face `datasets`: parquet files, an imagefolder, a saved data set, or a repository on the hub.

Needs the package `datasets` (extra `hf`). Rows are streamed once; images inside a table, in an archive or on the hub
are written out unchanged, those that are files already stay where they are. An imagefolder's metadata names its
images in the columns `before_file_name` and `after_file_name`.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from lorweb_core.errors import LoRWeBError

from ..index import DataError, Problem
from .building import Candidate, Found, split_name
from .extraction import AFTER_NAMES, BEFORE_NAMES, CAPTION_NAMES, TASK_NAMES, first_of, write_picture


@dataclass(frozen=True)
class Columns:
    """Which column is what; None finds it by its usual names (caption and task may be absent)."""

    before: str | None = None
    after: str | None = None
    caption: str | None = None
    task: str | None = None


def find_pairs(
    source: str,
    pictures: Path,
    *,
    columns: Columns | None = None,
    task: str | None = None,
    limit: int | None = None,
    show_progress: bool = False,
) -> Found:
    """The pairs of every split of a data set.

    Args:
        source: a parquet file, a folder (parquet, imagefolder or saved with `save_to_disk`), a zip file of an
            imagefolder, or a hub id.
        pictures: folder to write images into, a subfolder per split.
        task: for rows that name none; the source's name when None.
        limit: at most this many rows of each split.
    Raises: DataError: when the package is missing, the source cannot be opened or its columns are not found.
    """
    found, files = Found(), _PictureFiles(pictures)
    for name, table in _open_splits(source).items():
        table, label_names = _undecoded(table)
        rows = islice(table, limit)
        try:
            for number, row in enumerate(tqdm(rows, desc=f"reading {name}", unit="row", disable=not show_progress)):
                chosen = _choose_columns(columns or Columns(), row, source)
                names = _RowNames(f"{name}/{number:06d}", split_name(name), task or Path(source).stem, label_names)
                _read_row(row, chosen, names, files, found)
        except (OSError, ValueError) as error:
            if isinstance(error, LoRWeBError):
                raise
            reason = f"reading stopped with “{error}”; the rows before that are used"
            found.problems.append(Problem(f"{source} ({name})", "damaged", reason))
    return found


@dataclass(frozen=True)
class _RowNames:
    """What a row is called: its id, split, the task when no column names one, and column → names of its classes."""

    id: str
    split: str
    default_task: str
    label_names: Mapping[str, Sequence[str]]


@dataclass
class _PictureFiles:
    """Turns image cells into files; an archive is opened once, since its list of contents is read in full each time."""

    folder: Path
    _archives: dict[str, zipfile.ZipFile] = field(default_factory=dict)

    def file_of(self, value: object, name: str) -> Path | None:
        """The file of a cell (path and bytes, bytes, a path, or an image): an existing one, or `name` with its bytes.

        Raises: OSError, ValueError, KeyError, ImportError, zipfile.BadZipFile, zlib.error: when an image elsewhere
            cannot be fetched. OutputError: when it cannot be written.
        """
        path = value.get("path") if isinstance(value, Mapping) else value
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if isinstance(value, Image.Image):
            encoded = io.BytesIO()
            value.save(encoded, "PNG")
            data = encoded.getvalue()
        elif isinstance(value, Mapping) and data is None and isinstance(path, str) and "://" in path:
            data = self._fetch(path)
        if isinstance(data, bytes):
            return write_picture(self.folder / Path(name).parent, Path(name).name, data)
        return Path(path) if isinstance(path, str) and path else None

    def _fetch(self, address: str) -> bytes:
        """The bytes behind `zip://member::archive`, `hf://…` or `https://…`, as `datasets` names them."""
        from datasets.utils.file_utils import xopen

        member, _, archive = address.partition("::")
        if archive and member.startswith("zip://"):
            if archive not in self._archives:
                self._archives[archive] = zipfile.ZipFile(xopen(archive, "rb"))
            return self._archives[archive].read(member.removeprefix("zip://"))
        with xopen(address, "rb") as file:
            data: bytes = file.read()
        return data


def _open_splits(source: str) -> dict[str, Iterable[Mapping[str, Any]]]:
    """Split name → its rows, read as a stream."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"The package `datasets` reads this format and cannot be imported: {error}. Install it with `pip install "
            "datasets` (or the extra `hf` of this project)."
        ) from error
    path = Path(source)
    if not path.exists() and (path.is_absolute() or source.startswith(".") or source.count("/") != 1 or path.suffix):
        raise _cannot_open(source, "there is no such file or folder, and it is no `owner/name` of the hub")
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            opened = datasets.load_from_disk(source)
        elif path.suffix.lower() == ".zip" and path.is_file():
            opened = datasets.load_dataset("imagefolder", data_files=source, streaming=True)
        elif path.is_file():
            opened = datasets.load_dataset("parquet", data_files=source, streaming=True)
        else:
            opened = datasets.load_dataset(source, streaming=True)
    except (OSError, ValueError) as error:
        raise _cannot_open(source, " ".join(str(error).split())) from error
    return dict(opened) if isinstance(opened, dict) else {str(opened.split or "train"): opened}


def _cannot_open(source: str, reason: str) -> DataError:
    return DataError(
        f"{source} cannot be opened: {reason.rstrip('.')}. Name a parquet file, an imagefolder (also zipped), a saved "
        "data set or a hub id; for a gated repository accept its terms and run `hf auth login` first."
    )


def _undecoded(table: Any) -> tuple[Any, dict[str, list[str]]]:  # noqa: ANN401 (no types without the package)
    """The table with images as bytes or paths, and column → names of its classes."""
    import datasets

    features = dict(table.features or {})
    for column, feature in features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table, {name: kind.names for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}


def _choose_columns(wanted: Columns, row: Mapping[str, Any], source: str) -> Columns:
    usual = {"before": BEFORE_NAMES, "after": AFTER_NAMES, "caption": CAPTION_NAMES, "task": TASK_NAMES}
    chosen = {role: getattr(wanted, role) or first_of(names, row) for role, names in usual.items()}
    absent = [f"{role} ({name})" for role, name in chosen.items() if name is not None and name not in row]
    absent += [role for role in ("before", "after") if chosen[role] is None]
    if absent:
        advice = "Name them with --before-column and --after-column."
        if "__key__" in row:
            advice = "Unpack an archived imagefolder first; tar shards have a command of their own, `webdataset`."
        raise DataError(f"{source} has no column for {', '.join(absent)}, only {', '.join(row)}. {advice}")
    return Columns(**chosen)


def _read_row(row: Mapping[str, Any], columns: Columns, names: _RowNames, files: _PictureFiles, found: Found) -> None:
    paths = []
    for side, column in (("before", columns.before), ("after", columns.after)):
        try:
            path = files.file_of(row[column or ""], f"{names.id}.{side}")
        except (OSError, ValueError, KeyError, ImportError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, LoRWeBError | ConnectionError):  # no folder to write to, no network: not this image
                raise
            found.problems.append(
                Problem(
                    names.id, "unreadable", f"column {column}: {' '.join(str(error).split()) or type(error).__name__}"
                )
            )
            return
        if path is None:
            found.problems.append(Problem(names.id, "missing", f"column {column} holds no image"))
            return
        paths.append(path)
    caption = row.get(columns.caption or "")
    caption = " ".join(caption.split()) if isinstance(caption, str) else ""
    task, labels = row.get(columns.task or ""), names.label_names.get(columns.task or "", ())
    if isinstance(task, int) and 0 <= task < len(labels):
        task = labels[task]
    task = "" if task is None else " ".join(str(task).split())
    found.candidates.append(
        Candidate(names.id, task or names.default_task, paths[0], paths[1], caption, split=names.split)
    )
