"""Test analogies on the disk: a, a′, b as every method gets them, the true b′ apart from them.

Pictures are cut out of strips, cropped, limited in size and stored once as PNG, so that all methods, metrics and the
judge see the same pixels. `sets` says which analogies there are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

from lorweb_core.files import write_text_atomically

from ..data.pictures import PictureError, cut_strip, load_picture
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

        Raises: PictureError: when the file cannot be used.
        """
        picture = load_picture(self.path)
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
    """One test analogy in an evaluation folder; its pictures are where `EvaluationFolder` says."""

    id: str
    task: str
    prompt: str
    pair: str
    b: str
    has_truth: bool


def read_samples(folder: EvaluationFolder) -> list[Sample]:
    """Return the folder's test analogies in the order of the set.

    Raises: EvaluationError: when there are none.
    """
    samples = [_as_sample(record) for record in folder.samples if record.get("status") == "ok"]
    if not samples:
        raise EvaluationError(
            expected=f"test analogies in {folder.root}",
            got="none",
            remedy="Make them with `python -m training.evaluate generate --set …`.",
        )
    return samples


def write_samples(folder: EvaluationFolder, analogies: Sequence[Analogy], *, max_side_px: int) -> None:
    """Bring analogies into the folder; what is already there is kept, broken pictures are listed and left out.

    Args:
        folder: an evaluation of this set, or an empty place.
        analogies: the whole set.
        max_side_px: longer pictures are made smaller.
    Raises: EvaluationError: when the folder holds another set.
    """
    _require_same_set(folder, analogies, max_side_px)
    broken = []
    for analogy in tqdm(analogies, desc="test analogies", unit="sample", disable=None):
        found = folder.samples.find(analogy.sample)
        if found is not None and found["status"] == "ok" and (folder.inputs(analogy.sample) / "b.png").is_file():
            continue
        record = _write_sample(folder, analogy, max_side_px)
        folder.samples.append(record)
        if record["status"] != "ok":
            broken.append(f"{analogy.sample} ({record['reason']})")
    if broken:
        logger.warning("%d test analogies have unusable pictures: %s", len(broken), "; ".join(broken[:_SHOWN]))


def crop_to_aspect(picture: Image.Image, like: Image.Image) -> Image.Image:
    """Return the largest centred part of a picture with another's aspect; nothing is resized."""
    aspect = like.width / like.height
    width = min(picture.width, round(picture.height * aspect))
    height = min(picture.height, round(picture.width / aspect))
    return ImageOps.fit(picture, (max(1, width), max(1, height)), method=Image.Resampling.LANCZOS)


def _write_sample(folder: EvaluationFolder, analogy: Analogy, max_side_px: int) -> Record:
    record = {
        "sample": analogy.sample, "task": analogy.task, "prompt": analogy.prompt, "pair": analogy.pair,
        "b": analogy.b, "has_truth": analogy.image_b_prime is not None, "source": _source(analogy, max_side_px),
    }  # fmt: skip
    try:
        a, a_prime, b = (part.read() for part in (analogy.image_a, analogy.image_a_prime, analogy.image_b))
        b_prime = None if analogy.image_b_prime is None else analogy.image_b_prime.read()
    except PictureError as error:
        return {**record, "status": "broken", "reason": f"{error.path}: {error.kind}: {error.reason}"}
    if analogy.crops_b:
        b, b_prime = crop_to_aspect(b, a), None if b_prime is None else crop_to_aspect(b_prime, a)
    inputs = folder.inputs(analogy.sample)
    if b_prime is not None:
        save_picture(_limit(b_prime, max_side_px), folder.truth(analogy.sample))
    save_picture(_limit(a, max_side_px), inputs / "a.png")
    save_picture(_limit(a_prime, max_side_px), inputs / "a_prime.png")
    write_text_atomically(inputs / "prompt.txt", analogy.prompt + "\n")
    save_picture(_limit(b, max_side_px), inputs / "b.png")  # last: it says that the others are there
    return {**record, "status": "ok"}


def _require_same_set(folder: EvaluationFolder, analogies: Sequence[Analogy], max_side_px: int) -> None:
    wanted = {analogy.sample: _source(analogy, max_side_px) for analogy in analogies}
    foreign = [record["sample"] for record in folder.samples if wanted.get(record["sample"]) != record["source"]]
    if foreign:
        raise EvaluationError(
            expected=f"{folder.root} to be empty, or an evaluation of the same set with the same options",
            got=f"{len(foreign)} other test analogies, first {', '.join(foreign[:_SHOWN])}",
            remedy="Choose another --out folder for the new set; leave out --set to add methods to this one.",
        )


def _source(analogy: Analogy, max_side_px: int) -> str:
    """Names what a sample is made of; a moved data set keeps it, a changed picture does not (by its size)."""
    parts = (analogy.image_a, analogy.image_a_prime, analogy.image_b, analogy.image_b_prime)
    files = [(part.column, part.columns, _bytes(part.path)) for part in parts if part is not None]
    names = (analogy.sample, analogy.task, analogy.prompt, analogy.pair, analogy.b, analogy.crops_b)
    return fingerprint(names, files, max_side_px)


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _limit(picture: Image.Image, max_side_px: int) -> Image.Image:
    if max(picture.size) <= max_side_px:
        return picture
    return ImageOps.contain(picture, (max_side_px, max_side_px), method=Image.Resampling.LANCZOS)


def _as_sample(record: Record) -> Sample:
    return Sample(
        record["sample"], record["task"], record["prompt"], record["pair"], record["b"], bool(record["has_truth"])
    )
