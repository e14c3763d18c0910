"""See the demo work: python -m training.demo show [--out FOLDER] [--a A --a-prime A_PRIME --b B]

Without images: one analogy of every kind of edit, on scenes and photographs that no training saw, with colors that
encoder and basis never saw with that kind (the base did); demo.png shows a | a′ | b | b̂′ | b′. With images: yours, as
12 × 12 art pixels; own.png shows a | a′ | b | b̂′.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from lorweb_core.coefficient_summary import describe
from lorweb_core.errors import OutputError, SettingsError
from lorweb_core.images import read_image

from .analogies import draw_analogies, load_demo, score, stack_images, to_art
from .scenes import ART_SIZE, IMAGE_PX, PLAIN_KINDS, TEST_PHOTOS, TRAINED_KINDS, Edit, edits_of, to_image

_GAP_PX = 6
_SEED = 3
_NEXT_STEP = (
    "Next: this model in ComfyUI (README.md, 'See it without downloads'), "
    "then real images with FLUX.1-Kontext ('First edit')."
)
_LIMITS = (
    f"This tiny model sees the center square of your images as {ART_SIZE} × {ART_SIZE} blocks, and knows "
    f"{len(TRAINED_KINDS)} edits: {', '.join(TRAINED_KINDS)}.\nIt fails on other edits and on images full of detail.\n"
)


def show(out: Path, own: Sequence[Path] = ()) -> None:
    """Generate, print what the router chose, and write demo.png, or own.png for three images of your own.

    Raises ImageFileError, OutputError or SettingsError for files that cannot be used.
    """
    if len(own) not in (0, 3):
        raise SettingsError(f"Only {len(own)} of the three images A, A_PRIME and B are given. Give all three or none.")
    model = load_demo()
    if own:
        file, heads = out / "own.png", "a | a′ | b | answer"
        images = [torch.from_numpy(to_art(read_image(path)))[None] for path in own]
        columns = [*images, model.answer(*images)]
        lines = ["Coefficients:", describe(model.coefficients(*images)), "", _LIMITS]
    else:
        file, heads = out / "demo.png", "a | a′ | b | answer | truth"
        analogies = draw_analogies(shown_edits(), per_edit=1, seed=_SEED, photos=TEST_PHOTOS)
        a, a_prime, b, truth = stack_images(analogies)
        generated = model.answer(a, a_prime, b)
        columns = [a, a_prime, b, generated, truth]
        lines = ["Edit, PSNR of the answer, and whether the right edit is the nearest of all:"]
        for item in score(generated, analogies):
            lines.append(f"{item.edit.name:16} {item.whole_db:5.1f} dB  {'right' if item.is_right else 'wrong'}")
        first = describe(model.coefficients(a[:1], a_prime[:1], b[:1]))
        lines += ["", f"Coefficients of {analogies[0].edit.name}:", first, ""]
    try:
        out.mkdir(parents=True, exist_ok=True)
        sheet(columns).save(file)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror or error}. Choose another --out.") from error
    print("\n".join([*lines, f"{heads}: {file}", _NEXT_STEP]))


def shown_edits() -> list[Edit]:
    """One held-out edit of every kind, and the kinds without parameter as they are."""
    return [edits_of(kinds=[kind], is_held_out=None if kind in PLAIN_KINDS else True)[-1] for kind in TRAINED_KINDS]


def sheet(columns: Sequence[torch.Tensor]) -> Image.Image:
    """Columns of art pixels [rows, 12, 12, 3] as one image on white."""
    side = IMAGE_PX + _GAP_PX
    result = Image.new("RGB", (len(columns) * side - _GAP_PX, len(columns[0]) * side - _GAP_PX), "white")
    for x, column in enumerate(columns):
        for y, pixels in enumerate(column):
            result.paste(to_image(pixels.numpy()), (x * side, y * side))
    return result
