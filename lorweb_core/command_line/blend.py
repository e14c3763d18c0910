"""`blend FILE FILE … -o OUT`: several coefficient files → one."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..blending import METHODS, blend_coefficients, interpolation_weights, sweep_analogies
from ..coefficients import Coefficients, describe_origin
from ..coefficients_file import load_coefficients, save_coefficients
from .arguments import finite_number, require_separate, safetensors_path, show, whole_number

EXAMPLES = """\
  python -m lorweb_core blend comic.safetensors night.safetensors --position 0.3 -o mostly-comic.safetensors
  python -m lorweb_core blend comic.safetensors night.safetensors --position 0 --position-end 1 --steps 5 \\
      -o five-between.safetensors
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
    parser.add_argument(
        "--position-end", type=finite_number, help="interpolate with several --steps: the last position (default 1)"
    )
    parser.add_argument(
        "--steps",
        type=whole_number,
        help="interpolate: one mix for each of so many positions from --position to --position-end (default 1)",
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
    if arguments.position is None and (arguments.steps is not None or arguments.position_end is not None):
        arguments.fail("give --position, where --steps and --position-end start")
    if arguments.position_end is not None and arguments.steps in (None, 1):
        arguments.fail("give --steps of at least 2, of which --position-end is the last")
    require_separate([arguments.output], files)
    analogies = [load_coefficients(path).coefficients for path in files]
    blended, words = _blend(arguments, analogies)
    save_coefficients(arguments.output, blended, note=arguments.note)
    show(f"Wrote {arguments.output}: {describe_origin(blended)}; {words}")


def _blend(arguments: argparse.Namespace, analogies: list[Coefficients]) -> tuple[Coefficients, str]:
    """Return the blend, and of what it is made."""
    names = [path.name for path in arguments.files]
    if arguments.steps is not None:
        start, end = arguments.position, 1.0 if arguments.position_end is None else arguments.position_end
        swept = sweep_analogies(analogies, start, end, steps=arguments.steps)
        return swept, f"steps at {arguments.steps} positions from {start:g} to {end:g} through {', '.join(names)}"
    weights = arguments.weights or [1.0] * len(names)
    if arguments.position is not None:
        weights = interpolation_weights(arguments.position, len(names))
    blended = blend_coefficients(analogies, weights, method=arguments.method)
    return blended, ", ".join(f"{weight:g} × {name}" for weight, name in zip(weights, names, strict=True))
