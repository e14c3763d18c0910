"""`blend FILE FILE … -o OUT`: several coefficient files → one."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..blending import METHODS, blend_coefficients, interpolation_weights
from ..coefficients import describe_origin
from ..coefficients_file import load_coefficients, save_coefficients
from .arguments import finite_number, require_separate, safetensors_path

EXAMPLES = """\
  python -m lorweb_core blend comic.safetensors night.safetensors --position 0.3 -o mostly-comic.safetensors
  python -m lorweb_core blend one.safetensors two.safetensors three.safetensors --weights 1 1 0.5 -o mean.safetensors
  python -m lorweb_core blend comic.safetensors night.safetensors --weights 1 -0.5 --method sum -o less.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="coefficient files of one basis")
    parser.add_argument("-o", "--output", type=safetensors_path, required=True, metavar="OUT", help="file to write")
    parser.add_argument(
        "--position",
        type=finite_number,
        help="interpolate: 0 is the first file, 1 the second, and so on; beyond the ends goes straight on",
    )
    parser.add_argument("--weights", type=finite_number, nargs="+", help="one for each file (default: 1 for each)")
    parser.add_argument(
        "--method", choices=METHODS, default="mean", help="mean divides by the sum of the weights (default mean)"
    )
    parser.add_argument("--note", default="", help="words kept in OUT")
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """Write the blend and say what was written."""
    files: list[Path] = arguments.files
    if arguments.position is not None and (arguments.weights or arguments.method != "mean"):
        arguments.fail("give either --position, or --weights and --method")
    require_separate([arguments.output], files)
    analogies = [load_coefficients(path).coefficients for path in files]
    if arguments.position is not None:
        weights = interpolation_weights(arguments.position, len(files))
    else:
        weights = arguments.weights or [1.0] * len(files)
    blended = blend_coefficients(analogies, weights, method=arguments.method)
    save_coefficients(arguments.output, blended, note=arguments.note)
    shares = ", ".join(f"{weight:g} × {path.name}" for weight, path in zip(weights, files, strict=True))
    print(f"Wrote {arguments.output}: {describe_origin(blended)}; {shares}")
