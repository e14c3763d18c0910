"""The test analogies on disk: a, a′ and b as every method gets them, and the true b′ apart from them.

Images are stored once as PNG, so that all methods, metrics and the judge see the same pixels. Records hold the hash of
every file: `generate` with the same --set restores a damaged file, and what depends on a changed image is redone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from tqdm import tqdm

from lorweb_core.files import read_json
from lorweb_core.images import ImageFileError, read_image

from ..data.images import cut_strip
from .folder import EvaluationError, EvaluationFolder, Record, fingerprint, write_file, write_json

logger = logging.getLogger(__name__)
_SHOWN = 3


@dataclass(frozen=True)
class ImagePart:
    """An image file, or its left (0) or right (1) half."""

    path: Path
    half: int | None = None

    def read(self) -> Image.Image:
        """Return the image, upright RGB; ImageFileError if the file cannot be used."""
        image = read_image(self.path)
        return image if self.half is None else cut_strip(image)[self.half]


@dataclass(frozen=True)
class Analogy:
    """One test analogy of a set, not yet read."""

    sample: str  # its name, used as a file name by the evaluation and by other methods
    task: str  # metrics are averaged within it first
    prompt: str  # edit instruction; "" for none
    pair: str  # id of the pair a, a′
    b: str  # id of the image b
    image_a: ImagePart
    image_a_prime: ImagePart
    image_b: ImagePart
    image_b_prime: ImagePart | None = None  # the true answer; None if it is not known
    crops_b: bool = False  # crop b to a's aspect, as in the paper's own set

    @property
    def parts(self) -> tuple[ImagePart | None, ...]:
        """a, a′, b, b′."""
        return self.image_a, self.image_a_prime, self.image_b, self.image_b_prime


@dataclass(frozen=True)
class Sample:
    """A test analogy in an evaluation folder."""

    id: str
    task: str
    prompt: str
    inputs: str  # identifies the content of a, a′ and b
    truth: str | None  # hash of the true b′; None if it is not known


def write_samples(
    folder: EvaluationFolder, analogies: Sequence[Analogy], *, max_side_px: int, not_used: Sequence[str] = ()
) -> None:
    """Bring a whole test set into the folder; unchanged files are kept, unreadable images are left out.

    Images larger than `max_side_px` are scaled down; `not_used` (what the set could not use) is kept for the table.

    Raises EvaluationError if the folder holds another set.
    """
    choices = {}  # what identifies an analogy and how it is cut, whatever its files contain and where they are
    for analogy in analogies:
        names = (analogy.sample, analogy.task, analogy.prompt, analogy.pair, analogy.b, analogy.crops_b)
        choices[analogy.sample] = fingerprint(names, [part and part.half for part in analogy.parts], max_side_px)
    foreign = [record["sample"] for record in folder.samples if record["choice"] != choices.get(record["sample"])]
    if foreign:
        raise EvaluationError(
            f"{folder.root} holds another test set: {len(foreign)} samples are not in this one, such as "
            f"{', '.join(foreign[:_SHOWN])}. Choose another --out for the new set, or leave out --set to add methods."
        )
    broken = []
    for analogy in tqdm(analogies, desc="test set", unit="sample", disable=None):
        source = fingerprint(choices[analogy.sample], [part and folder.sha256(part.path) for part in analogy.parts])
        found = folder.samples.get(analogy.sample)
        if found and found["source"] == source and found["files"] is not None and not _damaged(folder, found):
            continue
        record: Record = {
            "sample": analogy.sample, "task": analogy.task, "prompt": analogy.prompt, "pair": analogy.pair,
            "b": analogy.b, "choice": choices[analogy.sample], "source": source, "files": None,
        }  # fmt: skip
        try:
            record["files"] = _write_files(folder, analogy, max_side_px)
        except ImageFileError as error:
            broken.append(f"{error.path} ({error.reason})")
        folder.samples.append(record)
    write_json(folder.root / "set.json", {"not_used": list(not_used)})
    if broken:
        logger.warning(
            "left out %d analogies with unreadable images: %s. Replace the files and run the same command again.",
            len(broken), "; ".join(broken[:_SHOWN]),
        )  # fmt: skip


def read_samples(folder: EvaluationFolder) -> list[Sample]:
    """Return the test analogies of a folder. Raises EvaluationError for none, and for missing or changed files."""
    records = [record for record in folder.samples if record["files"] is not None]
    if not records:
        raise EvaluationError(
            f"There are no test analogies in {folder.root}. Create them with "
            f"`python -m training.evaluate generate --out {folder.root} --set ...`."
        )
    damaged = [name for record in records for name in _damaged(folder, record)]
    if damaged:
        raise EvaluationError(
            f"{len(damaged)} files of the test set in {folder.root} are missing or changed, such as "
            f"{', '.join(damaged[:_SHOWN])}. Run `generate` with the original --set and options to restore them."
        )
    return [
        Sample(record["sample"], record["task"], record["prompt"],
               fingerprint([files["a.png"], files["a_prime.png"], files["b.png"]]), files.get("truth"))
        for record in records
        for files in [record["files"]]
    ]  # fmt: skip


def read_not_used(folder: EvaluationFolder) -> list[str]:
    """Return what of the set is not among the samples: reasons with counts."""
    path = folder.root / "set.json"
    lines: list[str] = read_json(path)["not_used"] if path.is_file() else []
    broken = [record["sample"] for record in folder.samples if record["files"] is None]
    shown = ", ".join(broken[:_SHOWN])
    return lines + ([f"{len(broken)} analogies with unreadable images (first {shown})"] if broken else [])


def _write_files(folder: EvaluationFolder, analogy: Analogy, max_side_px: int) -> dict[str, str | None]:
    """Write the files of a sample, and return name → hash."""
    names = ("a.png", "a_prime.png", "b.png", "truth")
    images = {name: part.read() for name, part in zip(names, analogy.parts, strict=True) if part}
    a = images["a.png"]
    for name, image in images.items():
        if analogy.crops_b and name in ("b.png", "truth"):
            width = min(image.width, round(image.height * a.width / a.height))
            height = min(image.height, round(image.width * a.height / a.width))
            image = ImageOps.fit(image, (max(1, width), max(1, height)))
        if max(image.size) > max_side_px:
            image = ImageOps.contain(image, (max_side_px, max_side_px), method=Image.Resampling.LANCZOS)
        write_file(_path(folder, analogy.sample, name), image)
    write_file(_path(folder, analogy.sample, "prompt.txt"), analogy.prompt + "\n")
    return {name: folder.sha256(_path(folder, analogy.sample, name)) for name in (*images, "prompt.txt")}


def _path(folder: EvaluationFolder, sample: str, name: str) -> Path:
    return folder.truth(sample) if name == "truth" else folder.inputs(sample) / name


def _damaged(folder: EvaluationFolder, record: Record) -> list[str]:
    files = [(_path(folder, record["sample"], name), sha256) for name, sha256 in record["files"].items()]
    return [path.relative_to(folder.root).as_posix() for path, sha256 in files if folder.sha256(path) != sha256]
