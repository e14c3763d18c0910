"""Test analogies on the disk: a, a′, b as every method gets them, the true b′ apart from them.

Pictures are cut out of strips, cropped, limited in size and stored once as PNG, so that all methods, metrics and the
judge see the same pixels. `sets` says which analogies there are. Records name every file's content: what is damaged or
missing here is made again by `generate` with the same --set, and everything that is made of a sample names it so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

from lorweb_core.files import read_json, write_text_atomically
from lorweb_core.images import ImageFileError, read_image

from ..data.pictures import cut_strip
from .errors import EvaluationError
from .folder import EvaluationFolder, fingerprint, save_picture
from .records import Record

logger = logging.getLogger(__name__)
_SHOWN = 3


@dataclass(frozen=True)
class PicturePart:
    """A picture file, or one of `columns` equal columns of it, counted from 0."""

    path: Path
    column: int = 0
    columns: int = 1

    def read(self) -> Image.Image:
        """Return the picture, upright RGB.

        Raises: ImageFileError: when the file cannot be used.
        """
        picture = read_image(self.path)
        if self.columns == 1:
            return picture
        if self.columns == 2:
            return cut_strip(picture)[self.column]
        width = max(1, picture.width // self.columns)
        return picture.crop((self.column * width, 0, (self.column + 1) * width, picture.height))


@dataclass(frozen=True)
class Analogy:
    """One test analogy of a set, not yet read.

    Attributes:
        sample: its name in the evaluation and in the methods' folders; safe as a file name.
        task: numbers are averaged within it first.
        prompt: edit instruction; "" for none.
        pair: id of the pair a, a′.
        b: id of the picture b.
        image_a, image_a_prime, image_b: the inputs.
        image_b_prime: the true answer, None where nobody knows it.
        crops_b: cut b to a's aspect (the paper's own set).
    """

    sample: str
    task: str
    prompt: str
    pair: str
    b: str
    image_a: PicturePart
    image_a_prime: PicturePart
    image_b: PicturePart
    image_b_prime: PicturePart | None = None
    crops_b: bool = False


@dataclass(frozen=True)
class Sample:
    """One test analogy in an evaluation folder; its pictures are where `EvaluationFolder` says.

    Attributes:
        id, task, prompt, pair, b: see `Analogy`.
        has_truth: the true b′ is known.
        inputs: names the content of a, a′ and b.
        truth: names the content of the true b′; "" without one.
    """

    id: str
    task: str
    prompt: str
    pair: str
    b: str
    has_truth: bool
    inputs: str
    truth: str


def read_samples(folder: EvaluationFolder) -> list[Sample]:
    """Return the folder's test analogies in the order of the set.

    Raises: EvaluationError: when there are none, or files of theirs are missing or not as they were made.
    """
    records = [record for record in folder.samples if record["status"] == "ok"]
    if not records:
        raise EvaluationError(
            expected=f"test analogies in {folder.root}",
            got="none",
            remedy="Make them with `python -m training.evaluate generate --set …`.",
        )
    damaged = [name for record in records for name in _damaged_files(folder, record)]
    if damaged:
        raise EvaluationError(
            expected=f"the files of the test analogies in {folder.root} as they were made",
            got=f"{len(damaged)} missing or changed, first {', '.join(damaged[:_SHOWN])}",
            remedy="Run `python -m training.evaluate generate` with the set's own --set and options again: it restores "
            "them, and makes again what was made of them.",
        )
    return [_as_sample(folder, record) for record in records]


def write_samples(
    folder: EvaluationFolder, analogies: Sequence[Analogy], *, max_side_px: int, losses: Sequence[str] = ()
) -> None:
    """Bring analogies into the folder; what is there and whole is kept, broken pictures are listed and left out.

    Args:
        folder: an evaluation of this set, or an empty place.
        analogies: the whole set.
        max_side_px: longer pictures are made smaller.
        losses: what the set could not use, in words; kept for the tables.
    Raises: EvaluationError: when the folder holds another set.
    """
    _require_same_set(folder, analogies, max_side_px)
    broken = []
    for analogy in tqdm(analogies, desc="test analogies", unit="sample", disable=None):
        found, source = folder.samples.find(analogy.sample), _source(folder, analogy, max_side_px)
        if found is not None and _is_whole(folder, found, source):
            continue
        record = _write_sample(folder, analogy, max_side_px) | {"source": source}
        folder.samples.append(record)
        if record["status"] != "ok":
            broken.append(f"{analogy.sample} ({record['reason']})")
    write_text_atomically(folder.set_facts, json.dumps({"losses": list(losses)}, indent=1, ensure_ascii=False) + "\n")
    if broken:
        logger.warning(
            "%d test analogies have unusable pictures: %s. Mend the files and run the same command again.",
            len(broken), "; ".join(broken[:_SHOWN]),
        )  # fmt: skip


def read_losses(folder: EvaluationFolder) -> list[str]:
    """Return what of the set is not among the samples, in words with counts."""
    losses: list[str] = []
    if folder.set_facts.is_file():
        facts = read_json(folder.set_facts)
        if not isinstance(facts, dict) or not isinstance(facts.get("losses"), list):
            raise EvaluationError(f"{folder.set_facts} has no list of losses. Run `evaluate set` again.")
        losses += map(str, facts["losses"])
    broken = [record["sample"] for record in folder.samples if record["status"] != "ok"]
    if broken:
        losses.append(f"{len(broken)} analogies with unusable pictures (first {', '.join(broken[:_SHOWN])})")
    return losses


def crop_to_aspect(picture: Image.Image, like: Image.Image) -> Image.Image:
    """Return the largest centred part of a picture with another's aspect; nothing is resized."""
    aspect = like.width / like.height
    width = min(picture.width, round(picture.height * aspect))
    height = min(picture.height, round(picture.width / aspect))
    return ImageOps.fit(picture, (max(1, width), max(1, height)), method=Image.Resampling.LANCZOS)


def _write_sample(folder: EvaluationFolder, analogy: Analogy, max_side_px: int) -> Record:
    record = {
        "sample": analogy.sample, "task": analogy.task, "prompt": analogy.prompt, "pair": analogy.pair,
        "b": analogy.b, "has_truth": analogy.image_b_prime is not None, "choice": _choice(analogy, max_side_px),
    }  # fmt: skip
    try:
        a, a_prime, b = (part.read() for part in (analogy.image_a, analogy.image_a_prime, analogy.image_b))
        b_prime = None if analogy.image_b_prime is None else analogy.image_b_prime.read()
    except ImageFileError as error:
        return {**record, "status": "broken", "reason": f"{error.path}: {error.kind}: {error.reason}"}
    if analogy.crops_b:
        b, b_prime = crop_to_aspect(b, a), None if b_prime is None else crop_to_aspect(b_prime, a)
    inputs = folder.inputs(analogy.sample)
    for name, picture in (("a", a), ("a_prime", a_prime), ("b", b)):
        save_picture(_limit(picture, max_side_px), inputs / f"{name}.png")
    if b_prime is not None:
        save_picture(_limit(b_prime, max_side_px), folder.truth(analogy.sample))
    write_text_atomically(inputs / "prompt.txt", analogy.prompt + "\n")
    files = _files(folder, analogy.sample, has_truth=b_prime is not None)
    return {**record, "status": "ok", "files": {name: folder.content(path) for name, path in files.items()}}


def _files(folder: EvaluationFolder, sample: str, *, has_truth: bool) -> dict[str, Path]:
    """Name → file of everything that a sample consists of."""
    files = {name: folder.inputs(sample) / name for name in ("a.png", "a_prime.png", "b.png", "prompt.txt")}
    return files | ({"truth": folder.truth(sample)} if has_truth else {})


def _damaged_files(folder: EvaluationFolder, record: Record) -> list[str]:
    """The files of a sample that are not what its record says; records made before there were hashes ask for files."""
    known: Mapping[str, str] = record.get("files", {})
    files = _files(folder, record["sample"], has_truth=bool(record["has_truth"]))
    contents = {name: folder.content(path) for name, path in files.items()}
    return [
        files[name].relative_to(folder.root).as_posix()
        for name, content in contents.items()
        if content is None or known.get(name, content) != content
    ]


def _is_whole(folder: EvaluationFolder, record: Record, source: str) -> bool:
    is_made_of_it = record["status"] == "ok" and "files" in record and record["source"] == source
    return is_made_of_it and not _damaged_files(folder, record)


def _require_same_set(folder: EvaluationFolder, analogies: Sequence[Analogy], max_side_px: int) -> None:
    """Refuse another set; the same one with mended or changed pictures, and broken samples, are made again."""
    wanted = {analogy.sample: _choice(analogy, max_side_px) for analogy in analogies}
    foreign = [
        record["sample"]
        for record in folder.samples
        if record["sample"] not in wanted or record.get("choice") not in (None, wanted[record["sample"]])
    ]
    if foreign:
        raise EvaluationError(
            expected=f"{folder.root} to be empty, or an evaluation of the same set with the same options",
            got=f"{len(foreign)} other test analogies, first {', '.join(foreign[:_SHOWN])}",
            remedy="Choose another --out folder for the new set; leave out --set to add methods to this one.",
        )


def _choice(analogy: Analogy, max_side_px: int) -> str:
    """Names the analogy and how it is cut, whatever is in its files and wherever they lie."""
    parts = (analogy.image_a, analogy.image_a_prime, analogy.image_b, analogy.image_b_prime)
    columns = [(part.column, part.columns) for part in parts if part is not None]
    names = (analogy.sample, analogy.task, analogy.prompt, analogy.pair, analogy.b, analogy.crops_b)
    return fingerprint(names, columns, max_side_px)


def _source(folder: EvaluationFolder, analogy: Analogy, max_side_px: int) -> str:
    """Names what a sample is made of by content; a moved data set keeps it, a changed picture does not."""
    parts = (analogy.image_a, analogy.image_a_prime, analogy.image_b, analogy.image_b_prime)
    contents = [folder.content(part.path) for part in parts if part is not None]
    return fingerprint(_choice(analogy, max_side_px), contents)


def _limit(picture: Image.Image, max_side_px: int) -> Image.Image:
    if max(picture.size) <= max_side_px:
        return picture
    return ImageOps.contain(picture, (max_side_px, max_side_px), method=Image.Resampling.LANCZOS)


def _as_sample(folder: EvaluationFolder, record: Record) -> Sample:
    files = _files(folder, record["sample"], has_truth=bool(record["has_truth"]))
    contents = {name: folder.content(path) for name, path in files.items()}
    return Sample(
        record["sample"], record["task"], record["prompt"], record["pair"], record["b"], bool(record["has_truth"]),
        inputs=fingerprint([contents[name] for name in ("a.png", "a_prime.png", "b.png")]),
        truth=contents.get("truth") or "",
    )  # fmt: skip
