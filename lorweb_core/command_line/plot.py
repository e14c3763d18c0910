"""`plot FILE -o PICTURE`: a heat map of coefficients, or of what two files differ in, and a summary."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from ..coefficient_summary import compare, describe, describe_comparison, tabulate
from ..coefficients_file import CoefficientsFile, load_coefficients
from ..files import write_bytes_atomically
from ..heat_map import draw_coefficients, draw_comparison
from .arguments import require_separate, whole_number

EXAMPLES = """\
  python -m lorweb_core plot comic.safetensors -o comic.png
  python -m lorweb_core plot comic.safetensors --compare-with night.safetensors -o difference.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="coefficients file")
    parser.add_argument("--compare-with", type=Path, metavar="FILE", help="another one of the same basis")
    parser.add_argument("--mix", type=whole_number, default=0, help="which mix of the file; the first is 0 (default)")
    parser.add_argument("-o", "--output", type=_picture_path, required=True, metavar="OUT", help=".png to write")


def run(arguments: argparse.Namespace) -> None:
    """Write the picture and print the summary."""
    require_separate([arguments.output], [arguments.file, arguments.compare_with])
    file = load_coefficients(arguments.file)
    if arguments.compare_with is None:
        table = tabulate(file.coefficients, mix=arguments.mix)
        picture = draw_coefficients(table, f"{arguments.file.name}, mix {arguments.mix + 1}")
        text = describe(file.coefficients, mix=arguments.mix)
    else:
        picture, text = _draw_difference(file, arguments)
    _write(picture, arguments.output)
    print(text)
    if file.note:
        print(f"Note: {file.note}")
    print(f"Wrote {arguments.output}")


def _draw_difference(file: CoefficientsFile, arguments: argparse.Namespace) -> tuple[Image.Image, str]:
    other = load_coefficients(arguments.compare_with).coefficients
    comparison = compare(file.coefficients, other, mix=arguments.mix)
    picture = draw_comparison(comparison, f"{arguments.file.name} - {arguments.compare_with.name}")
    return picture, describe_comparison(comparison)


def _write(picture: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes_atomically(path, buffer.getvalue())


def _picture_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png; got {text}")
    return path
