"""Other methods' pictures: a folder, and how its files are named by sample.

None of the compared projects writes a batch of its own, so a run per sample goes into a folder of the sample's name
and keeps the file name that the project's own script gives it. Every layout also takes `<sample>.png` (any picture
type). Sources of the names: infer_single.py of RelationAdapter (`generated.jpg`), edit_transfer.py of Edit-Transfer
(`result_<seed>.png`, the whole 2×2 picture), the examples in diffusers of VisualClozePipeline (`visualcloze.png`) and
FluxKontextPipeline (`output.png`).
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lorweb_core.images import IMAGE_SUFFIXES, read_image

from .errors import EvaluationError
from .folder import file_hash, method_folder
from .samples import Sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How a method names its pictures, and which part of them is b̂′.

    Attributes:
        files: names without suffix below the method's folder, `{sample}` filled in; `*` stands for anything.
        is_grid: the picture is a 2×2 grid and b̂′ its bottom right quadrant.
    """

    files: tuple[str, ...] = ()
    is_grid: bool = False


LAYOUTS = {
    "plain": Layout(),
    "grid": Layout(is_grid=True),
    "relation-adapter": Layout(("{sample}/generated",)),
    "visualcloze": Layout(("{sample}/visualcloze",)),
    "edit-transfer": Layout(("{sample}/result_*",), is_grid=True),
    "kontext-lora": Layout(("{sample}/output",)),
}


@dataclass(frozen=True)
class FolderMethod:
    """A method whose pictures were made elsewhere.

    Attributes:
        name: as it appears in the tables.
        folder: its pictures.
        layout: how they are named.
    """

    name: str
    folder: Path
    layout: Layout

    def fingerprint(self, sample: Sample) -> str | None:
        """Name the content of a sample's picture; None when there is none."""
        path = self.find(sample)
        return None if path is None else file_hash(path)

    def draw(self, sample: Sample) -> Image.Image:
        """Return a sample's b̂′ in whatever size it has.

        Raises: ImageFileError: when the file cannot be used.
        """
        picture = read_image(self.find(sample) or self.folder / f"{sample.id}.png")
        if not self.layout.is_grid:
            return picture
        left, top = picture.width - picture.width // 2, picture.height - picture.height // 2
        return picture.crop((left, top, picture.width, picture.height))

    def find(self, sample: Sample) -> Path | None:
        """Return the sample's file; of several the first by name, numbers in numeric order."""
        for pattern in (*self.layout.files, "{sample}"):
            parent = self.folder / Path(pattern.format(sample=sample.id)).parent
            wanted = re.compile(re.escape(Path(pattern.format(sample=sample.id)).name).replace(r"\*", ".*"))
            found = [path for path in _pictures(parent) if wanted.fullmatch(path.stem)]
            if found:
                return min(found, key=_natural)
        return None


def parse_method(text: str) -> FolderMethod:
    """Return the method of a command line word NAME=[LAYOUT:]FOLDER.

    Raises: EvaluationError: when it has another form, or there is no such folder.
    """
    name, separator, place = text.partition("=")
    layout, colon, folder = place.partition(":")
    if colon and layout in LAYOUTS:
        place = folder
    else:
        layout = "plain"
    if not separator or not name.strip() or not place or not Path(place).is_dir():
        raise EvaluationError(
            expected=f"NAME=FOLDER or NAME=LAYOUT:FOLDER with LAYOUT one of {', '.join(LAYOUTS)}",
            got=repr(text) + ("" if not separator else f", and {place!r} is no folder"),
            remedy="Write for example --method RelationAdapter=relation-adapter:outputs/relation_adapter.",
        )
    return FolderMethod(name.strip(), Path(place), LAYOUTS[layout])


def require_distinct(names: Sequence[str], known: Sequence[str] = ()) -> None:
    """Refuse two methods whose pictures would lie in one folder: each would have the numbers of the last.

    Names that differ in case only are one folder on some disks, names that differ in *, /, : or the like on all.

    Args:
        names: methods to be brought in, or compared.
        known: methods that the evaluation has already; one of these may come again.
    Raises: EvaluationError: names the first two.
    """
    distinct = list(dict.fromkeys((*known, *names)))
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in (*distinct, *(name for name in distinct if names.count(name) > 1)):
        by_folder[method_folder(name).lower()].append(name)
    same = next((found for found in by_folder.values() if len(found) > 1), None)
    if same is not None:
        raise EvaluationError(
            expected="every method to have a name of its own, and so a folder of its own",
            got=f"{same[0]!r} and {same[1]!r}, whose pictures would both lie in pictures/{method_folder(same[0])}",
            remedy="Rename one of them; letters, digits, spaces, '-', '_' and '.' tell names apart, other characters "
            "and upper or lower case do not. copy-b and copy-a-prime are taken by the baselines.",
        )


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
