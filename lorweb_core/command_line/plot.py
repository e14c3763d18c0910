"""`plot FILE -o PICTURE`: a heat map of coefficients, or of what two files differ in, and a summary."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from ..coefficient_summary import compare, describe, describe_comparison, tabulate
from ..coefficients import count_mixes, name_of_basis
from ..coefficients_file import CoefficientsFile, load_coefficients
from ..files import write_bytes_atomically
from ..heat_map import draw_coefficients, draw_comparison
from .arguments import require_separate, show, whole_number

EXAMPLES = """\
  python -m lorweb_core plot comic.safetensors -o comic.png
  python -m lorweb_core plot comic.safetensors --compare-with night.safetensors -o difference.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="coefficients file")
    parser.add_argument("--compare-with", type=Path, metavar="FILE", help="another one of the same basis")
    parser.add_argument(
        "--mix", type=whole_number, default=0, help="which mix of the file, counted from 0: 0 is the first (default)"
    )
    parser.add_argument("-o", "--output", type=_picture_path, required=True, metavar="OUT", help=".png to write")


def run(arguments: argparse.Namespace) -> None:
    """Write the picture and print the summary."""
    require_separate([arguments.output], [arguments.file, arguments.compare_with])
    file = load_coefficients(arguments.file)
    if arguments.compare_with is None:
        table = tabulate(file.coefficients, mix=arguments.mix)
        title = _name_mix(arguments.mix, count_mixes(file.coefficients))
        picture = draw_coefficients(table, f"{arguments.file.name}, --mix {arguments.mix}")
        text = describe(file.coefficients, mix=arguments.mix, title=title)
    else:
        picture, text = _draw_difference(file, arguments)
    _write(picture, arguments.output)
    show(text)
    if file.note:
        show(f"Note: {file.note}")
    show(f"Wrote {arguments.output}")


def _draw_difference(file: CoefficientsFile, arguments: argparse.Namespace) -> tuple[Image.Image, str]:
    other = load_coefficients(arguments.compare_with).coefficients
    comparison = compare(file.coefficients, other, mix=arguments.mix)
    title = f"{arguments.file.name} - {arguments.compare_with.name}"
    count = max(count_mixes(file.coefficients), count_mixes(other))
    lines = [
        f"{_name_mix(arguments.mix, count)}: {title}",
        f"Basis: {name_of_basis(file.coefficients)}",
        describe_comparison(comparison),
    ]
    return draw_comparison(comparison, title), "\n".join(lines)


def _name_mix(mix: int, count: int) -> str:
    return f"--mix {mix} (number {mix + 1} of {count})"


def _write(picture: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes_atomically(path, buffer.getvalue())


def _picture_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png; got {text}")
    return path
