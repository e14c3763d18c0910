"""Hugging Face `datasets`: parquet files, an imagefolder, a saved data set, or a repository on the hub.

Needs the package `datasets` (extra `hf`). Rows are streamed once; images inside a table, in an archive or on the hub
are written out unchanged, those that are files already stay where they are. An imagefolder's metadata names its
images in the columns `before_file_name` and `after_file_name`.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from lorweb_core.errors import LoRWeBError

from ..index import DataError, Problem
from .building import Candidate, Found, split_name
from .extraction import AFTER_NAMES, BEFORE_NAMES, CAPTION_NAMES, TASK_NAMES, first_of, write_image


@dataclass(frozen=True)
class Columns:
    """Which column is what; None finds it by its usual names (caption and task may be absent)."""

    before: str | None = None
    after: str | None = None
    caption: str | None = None
    task: str | None = None


def find_pairs(
    source: str, images: Path, *, columns: Columns | None = None, task: str | None = None, limit: int | None = None
) -> Found:
    """The pairs of every split of a data set.

    Args:
        source: a parquet file, a folder (parquet, imagefolder or saved with `save_to_disk`), a zip file of an
            imagefolder, or a hub id.
        images: folder to write images into, a subfolder per split.
        task: for rows that name none; the source's name when None.
        limit: at most this many rows of each split.
    Raises DataError when the package is missing, the source cannot be opened or its columns are not found.
    """
    splits, found, files = _open_splits(source), Found(), _ImageFiles(images)
    import datasets

    for split, table in splits.items():
        features = dict(table.features or {})
        for column, feature in features.items():
            if isinstance(feature, datasets.Image):  # bytes or paths instead of decoded images
                table = table.cast_column(column, datasets.Image(decode=False))
        label_names = {name: kind.names for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
        rows = tqdm(islice(table, limit), desc=f"reading {split}", unit="row", disable=None)
        try:
            for number, row in enumerate(rows):
                chosen = _choose_columns(columns or Columns(), row, source)
                row_id = f"{split}/{number:06d}"
                pair = _read_files(row, chosen, row_id, files)
                if isinstance(pair, Problem):
                    found.problems.append(pair)
                    continue
                caption, label = row.get(chosen.caption or ""), row.get(chosen.task or "")
                names = label_names.get(chosen.task or "", [])
                if isinstance(label, int) and 0 <= label < len(names):
                    label = names[label]
                own_task = "" if label is None else " ".join(str(label).split())
                caption = " ".join(caption.split()) if isinstance(caption, str) else ""
                found.candidates.append(
                    Candidate(row_id, own_task or task or Path(source).stem, *pair, caption, split_name(split))
                )
        except (OSError, ValueError) as error:
            if isinstance(error, LoRWeBError):
                raise
            reason = f"reading stopped with “{error}”; the rows before that are used"
            found.problems.append(Problem(f"{source} ({split})", "damaged", reason))
    return found


@dataclass
class _ImageFiles:
    """Turns image cells into files; an archive is opened once, since its list of contents is read in full each time."""

    folder: Path
    _archives: dict[str, zipfile.ZipFile] = field(default_factory=dict)

    def file_of(self, value: object, name: str) -> Path | None:
        """The file of a cell (path and bytes, bytes, a path, or an image): an existing one, or `name` with its bytes.

        Raises OSError, ValueError, KeyError, ImportError, zipfile.BadZipFile or zlib.error when an image elsewhere
        cannot be fetched, and OutputError when it cannot be written.
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
            return write_image(self.folder / Path(name).parent, Path(name).name, data)
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


def _open_splits(source: str) -> dict[str, Any]:
    """Split name → its rows, read as a stream."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"The package `datasets` reads this format and cannot be imported: {error}. Install it with `pip install "
            "datasets` (or the extra `hf` of this project)."
        ) from error
    path = Path(source)
    is_file_name = path.suffix.lower() in (".parquet", ".zip")  # ids may have a dot: owner/set-1.5M
    if not path.exists() and (path.is_absolute() or source.startswith(".") or source.count("/") != 1 or is_file_name):
        raise _cannot_open(source, "there is no such file or folder, and it is not an `owner/name` of the hub")
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


def _read_files(
    row: Mapping[str, Any], columns: Columns, row_id: str, files: _ImageFiles
) -> tuple[Path, Path] | Problem:
    paths = []
    for side, column in (("before", columns.before), ("after", columns.after)):
        try:
            path = files.file_of(row[column or ""], f"{row_id}.{side}")
        except (OSError, ValueError, KeyError, ImportError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, LoRWeBError | ConnectionError):  # no folder to write to, no network: not this image
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            return Problem(row_id, "unreadable", f"column {column}: {reason}")
        if path is None:
            return Problem(row_id, "missing", f"column {column} holds no image")
        paths.append(path)
    return paths[0], paths[1]
