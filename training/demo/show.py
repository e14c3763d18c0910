"""See the demo work: python -m training.demo.show [--out FOLDER] [--a A --a-prime A_PRIME --b B]

Without pictures: one analogy of every kind of edit, on scenes and photographs that no training saw, with colors that
encoder and basis never saw with that kind (the base did); demo.png shows a | a′ | b | b̂′ | b′. With pictures: theirs,
as 12 × 12 art pixels, own.png: a | a′ | b | b̂′.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lorweb_core.coefficient_summary import describe
from lorweb_core.errors import ImageError, OutputError
from lorweb_core.images import ImageFileError, read_image

from ..console import let_terminal_replace, silence_libraries
from .analogies import Analogy, DemoModel, draw_analogies, load_demo, score, to_art
from .scenes import ART_SIZE, PLAIN_KINDS, TEST_PHOTOS, TRAINED_KINDS, Edit, Pixels, edits_of, to_image

_GAP_PX = 6
SHOWN_SEED = 3
NEXT_STEP = (
    "Next: this model in ComfyUI (README.md, 'See it in ComfyUI at once'), "
    "then real pictures with FLUX.1-Kontext ('First edit in five minutes')."
)
_OWN_PICTURES = (
    f"This toy sees your pictures as {ART_SIZE} × {ART_SIZE} blocks of their middle square, and knows "
    f"{len(TRAINED_KINDS)} edits: {', '.join(TRAINED_KINDS)}.\nOther edits, and pictures full of detail, it gets wrong."
)


def shown_edits() -> list[Edit]:
    """Return one held-out edit of every kind, and the kinds without parameter as they are."""
    return [edits_of(kinds=[kind], is_held_out=None if kind in PLAIN_KINDS else True)[-1] for kind in TRAINED_KINDS]


def show_bundled(model: DemoModel, *, seed: int = SHOWN_SEED) -> tuple[Image.Image, list[str]]:
    """Return the sheet of one analogy a kind, a line about each, and what the router chose for the first."""
    analogies = draw_analogies(shown_edits(), per_edit=1, seed=seed, photos=TEST_PHOTOS)
    a, a_prime, b, wanted = ([analogy.pictures[i] for analogy in analogies] for i in range(4))
    produced = model.answer(*(torch.from_numpy(np.stack(part)) for part in (a, a_prime, b)))
    lines = ["Edit, PSNR of the answer, and whether the right edit is the nearest of all:"]
    lines += [_line(analogy, whole, is_right) for analogy, whole, is_right in _judge(produced, analogies)]
    first = (torch.from_numpy(part[0])[None] for part in (a, a_prime, b))
    lines += ["", f"Coefficients of {analogies[0].edit.name}:", describe(model.coefficients(*first)), ""]
    return sheet([a, a_prime, b, list(produced.numpy()), wanted]), lines


def show_own(model: DemoModel, a: Path, a_prime: Path, b: Path) -> tuple[Image.Image, list[str]]:
    """Return a | a′ | b | b̂′ of three picture files, and what the router chose.

    Raises: ImageError: when a file is missing or no picture.
    """
    pictures = [_open(path) for path in (a, a_prime, b)]
    batches = [torch.from_numpy(picture)[None] for picture in pictures]
    produced = model.answer(*batches)
    return sheet([*([picture] for picture in pictures), [produced[0].numpy()]]), [
        "Coefficients:",
        describe(model.coefficients(*batches)),
        "",
    ]


def sheet(columns: Sequence[Sequence[Pixels]]) -> Image.Image:
    """Return columns of art pixels as one picture on white."""
    side = to_image(columns[0][0]).width + _GAP_PX
    result = Image.new("RGB", (len(columns) * side - _GAP_PX, len(columns[0]) * side - _GAP_PX), "white")
    for x, column in enumerate(columns):
        for y, pixels in enumerate(column):
            result.paste(to_image(np.asarray(pixels)), (x * side, y * side))
    return result


def _judge(produced: torch.Tensor, analogies: Sequence[Analogy]) -> list[tuple[Analogy, float, bool]]:
    scores = score(produced, analogies)
    return [(analogy, item.whole_db, item.is_right) for analogy, item in zip(analogies, scores, strict=True)]


def _line(analogy: Analogy, whole_db: float, is_right: bool) -> str:
    return f"{analogy.edit.name:16} {whole_db:5.1f} dB  {'right' if is_right else 'wrong'}"


def _open(path: Path) -> Pixels:
    try:
        return to_art(read_image(path))
    except ImageFileError as error:
        raise ImageError(
            expected=f"a picture at {path}",
            got=f"{error.kind}: {error.reason}",
            remedy="Give a PNG, JPEG or WebP file that opens elsewhere.",
        ) from error


def _save(picture: Image.Image, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    except OSError as error:
        raise OutputError(
            expected=f"to be able to write {file}",
            got=error.strerror or str(error),
            remedy="Choose another folder with --out.",
        ) from error


def main() -> None:
    """Command line, see the module's first lines."""
    let_terminal_replace()
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.show", description="Draw analogies with the demo model."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo-pictures"))
    for name in ("--a", "--a-prime", "--b"):
        parser.add_argument(name, default="", help="picture of your own; give all three or none")
    arguments = parser.parse_args()
    own = [Path(name) for name in (arguments.a, arguments.a_prime, arguments.b) if name]
    if len(own) not in (0, 3):
        parser.error("expected all three of A, A_PRIME and B, or none; got one or two of them. Name the missing ones.")
    silence_libraries()
    file = arguments.out / ("own.png" if own else "demo.png")
    try:
        picture, lines = show_own(load_demo(), *own) if own else show_bundled(load_demo())
        _save(picture, file)
    except (ImageError, OutputError) as error:
        parser.exit(2, f"error: {error}\n")
    columns = f"a | a′ | b | answer{'' if own else ' | truth'}"
    lines += [_OWN_PICTURES, ""] if own else []
    print("\n".join([*lines, f"{columns}: {file}", NEXT_STEP]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
