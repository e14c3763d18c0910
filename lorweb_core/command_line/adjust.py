"""`adjust FILE -o OUT`: temperature, the strongest adapters only, strength by part of the model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..adjustment import DEFAULT_PRESET, PART_NAMES, PRESETS, adjust_coefficients
from ..coefficients import describe_origin
from ..coefficients_file import load_coefficients, save_coefficients
from ..errors import SettingsError
from ..images import from_pil
from .arguments import finite_number, require_separate, safetensors_path, show, whole_number

EXAMPLES = """\
  python -m lorweb_core adjust comic.safetensors --temperature 0.5 --top-k 8 -o sharper.safetensors
  python -m lorweb_core adjust comic.safetensors --part attention=0.5 --part late=1.5 -o shaped.safetensors
  python -m lorweb_core adjust comic.safetensors --preset attention-only -o attention.safetensors"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="coefficients file")
    parser.add_argument("-o", "--output", type=safetensors_path, required=True, metavar="OUT", help="file to write")
    parser.add_argument(
        "--temperature", type=finite_number, default=1.0, help="below 1 sharpens, above 1 evens out (default 1)"
    )
    parser.add_argument("--top-k", type=whole_number, default=0, help="adapters kept per layer; 0 keeps all (default)")
    parser.add_argument(
        "--no-renormalize", action="store_true", help="do not scale what --top-k keeps to the layer's former strength"
    )
    parser.add_argument(
        "--part",
        type=_part_strength,
        action="append",
        default=[],
        metavar="NAME=STRENGTH",
        help=f"factor on a part of the model; give it once for each part: {', '.join(PART_NAMES)}",
    )
    parser.add_argument(
        "--preset",
        default=DEFAULT_PRESET,
        type=_preset_name,
        help=f"a named set of part strengths: {', '.join(name.replace(' ', '-') for name in PRESETS)}",
    )
    parser.add_argument("--note", help="words kept in OUT (default: those of FILE); FILE's thumbnail is kept too")


def run(arguments: argparse.Namespace) -> None:
    """Write the adjusted coefficients and say what was written."""
    require_separate([arguments.output], [arguments.file])
    source = load_coefficients(arguments.file)
    adjusted = adjust_coefficients(
        source.coefficients,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        renormalize=not arguments.no_renormalize,
        part_strengths=_require_one_each(arguments.part),
        preset=arguments.preset,
    )
    save_coefficients(
        arguments.output,
        adjusted,
        note=source.note if arguments.note is None else arguments.note,
        thumbnail=None if source.thumbnail is None else from_pil(source.thumbnail)[None],
    )
    show(f"Wrote {arguments.output}: {describe_origin(adjusted)}")


def _part_strength(text: str) -> tuple[str, float]:
    name, separator, strength = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected NAME=STRENGTH, such as attention=0.5; got {text}")
    return name.strip(), finite_number(strength)


def _require_one_each(parts: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return part → strength; two strengths for one part could mean the last, or their product."""
    strengths = dict(parts)
    repeated = [name for name in strengths if sum(name == other for other, _ in parts) > 1]
    if repeated:
        raise SettingsError(
            expected="--part once for each part",
            got=", ".join(f"{name}={strength:g}" for name, strength in parts if name in repeated),
            remedy="Give one strength for it; for two factors their product.",
        )
    return strengths


def _preset_name(text: str) -> str:
    """Names have spaces; hyphens save the quotes."""
    return text.replace("-", " ")
