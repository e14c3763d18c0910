"""Webdataset shards: tar files whose members share a key, `key.before.jpg`, `key.after.jpg`, `key.json`, `key.txt`.

Images are unpacked once, unchanged: a stream of shards gives no random second pair, which every analogy needs. A
shard is a plain tar file, so the standard library reads it; the `webdataset` package would add nothing here.
Task, caption, split and weight come from the JSON; the caption also from `key.txt`.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from lorweb_core.files import parse_json

from ..index import DataError, Problem
from .building import Candidate, Found, folder_name, is_visible, split_name
from .extraction import AFTER_NAMES, BEFORE_NAMES, CAPTION_NAMES, TASK_NAMES, safe_name, text_of, write_image

_SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
#: Of one image or text; a sparse or compressed member of a small shard may claim any size.
_MAX_MEMBER_BYTES = 200_000_000
_TEXT_SUFFIXES = ("txt", "json", "cls", "caption")


def find_pairs(sources: Sequence[Path], images: Path, *, task: str | None = None) -> Found:
    """Unpack the pairs of all shards (tar files, or folders of them) into `images`, a subfolder per shard.

    `task` is that of pairs that name none; the name of the shard's folder when None.
    """
    shards = [shard for source in sources for shard in _shards_of(source)]
    found = Found()
    for number, shard in enumerate(tqdm(shards, desc="unpacking", unit="shard", disable=None)):
        folder = images / safe_name(f"{number:05d}_{_shard_name(shard)}")
        try:
            for place, (key, members) in enumerate(_samples(shard)):
                _read_pair(shard, key, members, folder, f"{place:06d}", task or folder_name(shard.parent), found)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            reason = f"reading stopped with “{error}”; the pairs before that are used"
            found.problems.append(Problem(str(shard), "damaged", reason))
    return found


def _shards_of(source: Path) -> list[Path]:
    shards = [source]
    if source.is_dir():
        shards = sorted(p for p in source.rglob("*") if is_visible(p) and p.name.lower().endswith(_SHARD_SUFFIXES))
    if not shards or not all(shard.is_file() for shard in shards):
        what = "holds no tar file" if source.is_dir() else "does not exist"
        raise DataError(f"{source} {what}. Name tar files (your shell expands shard-*.tar) or folders of them.")
    return shards


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key → {rest of the name: bytes}, for runs of members of one key, which is how webdataset defines a sample."""
    key: str | None = None
    members: dict[str, bytes] = {}
    with tarfile.open(shard, "r|*") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            stem, _, extension = path.name.partition(".")
            file = archive.extractfile(member) if member.isfile() and stem else None
            if file is None:
                continue
            if member.size > _MAX_MEMBER_BYTES:
                raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes, the most is {_MAX_MEMBER_BYTES:,}")
            own_key = str(path.parent / stem)
            if key is not None and own_key != key:
                yield key, members
                members = {}
            key = own_key
            members[extension.lower()] = file.read()
    if key is not None:
        yield key, members


def _read_pair(
    shard: Path, key: str, members: Mapping[str, bytes], folder: Path, name: str, default_task: str, found: Found
) -> None:
    before, after = (_image_among(members, names) for names in (BEFORE_NAMES, AFTER_NAMES))
    if before is None or after is None:
        reason = f"sample {key} has no before and after image, only {', '.join(sorted(members))}"
        found.problems.append(Problem(str(shard), "unpaired", reason))
        return
    texts = {name: members[name].decode("utf-8-sig", "replace") for name in ("txt", "cls") if name in members}
    fields: dict[str, Any] = {name: texts[part] for name, part in (("caption", "txt"), ("cls", "cls")) if part in texts}
    try:
        described = parse_json(members.get("json", b"{}").decode("utf-8-sig"), "json")
    except ValueError:  # FileError among them
        described = None
    if isinstance(described, dict):
        fields |= described
    else:
        found.problems.append(Problem(str(shard), "unreadable", f"the JSON of sample {key}", "warning"))
    weight = fields.get("weight", 1.0)
    found.candidates.append(
        Candidate(
            f"{_shard_name(shard)}/{key}",
            text_of(fields, TASK_NAMES) or default_task,
            write_image(folder, f"{name}.before", before),
            write_image(folder, f"{name}.after", after),
            text_of(fields, CAPTION_NAMES),
            split_name(str(fields.get("split", "train"))),
            float(weight) if isinstance(weight, int | float) and 0 <= weight < float("inf") else 1.0,
        )
    )


def _shard_name(shard: Path) -> str:
    return shard.name.split(".")[0]


def _image_among(members: Mapping[str, bytes], names: Sequence[str]) -> bytes | None:
    """The member called `<name>.<image suffix>` (`before.jpg`) for the first name that there is."""
    parts = ((extension.rpartition("."), data) for extension, data in members.items())
    by_name = {name: data for (name, dot, suffix), data in parts if dot and suffix not in _TEXT_SUFFIXES}
    return next((by_name[name] for name in names if name in by_name), None)
