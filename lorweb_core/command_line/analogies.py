"""Commands on coefficient files: `blend`, `adjust`, `plot`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..adjustment import PART_NAMES, adjust_coefficients
from ..blending import blend_coefficients, interpolation_weights, sweep_analogies
from ..coefficient_summary import compare, describe, describe_comparison, tabulate
from ..coefficients import count_mixes, describe_origin, name_of_basis
from ..coefficients_file import load_coefficients, save_coefficients
from ..errors import SettingsError
from ..files import write_bytes_atomically
from ..heat_map import draw_coefficients, draw_comparison
from ..images import from_pil
from .options import Output, finite, require_separate, show

BLEND_EXAMPLES = """\
  python -m lorweb_core blend comic.safetensors night.safetensors --position 0.3 -o mostly-comic.safetensors
  python -m lorweb_core blend comic.safetensors night.safetensors --position 0 --position-end 1 --steps 5 \\
      -o five-between.safetensors
  python -m lorweb_core blend comic.safetensors night.safetensors --weight 1 --weight 0.5 -o mean.safetensors
  python -m lorweb_core blend comic.safetensors night.safetensors --weight 1 --weight -0.5 --method sum \\
      -o less.safetensors"""
ADJUST_EXAMPLES = """\
  python -m lorweb_core adjust comic.safetensors --temperature 0.5 --top-k 8 -o sharper.safetensors
  python -m lorweb_core adjust comic.safetensors --part attention=0.5 --part late=1.5 -o shaped.safetensors"""
PLOT_EXAMPLES = """\
  python -m lorweb_core plot comic.safetensors -o comic.png
  python -m lorweb_core plot comic.safetensors --compare-with night.safetensors -o difference.png"""

_POSITION_HELP = "Interpolate: 0 is the first file, 1 the second, and so on; values outside extrapolate."
_STEPS_HELP = "Interpolate at this many positions, from --position to --position-end. Default: 1."
_RENORMALIZE_HELP = "Scale what --top-k keeps so that each layer keeps its strength."
_PART_HELP = f"Strength of a part of the model; repeatable. Parts: {', '.join(PART_NAMES)}."

CoefficientsPath = Annotated[Path, typer.Argument(metavar="FILE", help="Coefficients file.")]


def blend(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Coefficient files of one basis.")],
    output: Output,
    position: Annotated[float | None, typer.Option(callback=finite, help=_POSITION_HELP)] = None,
    position_end: Annotated[float | None, typer.Option(callback=finite, help="The last position. Default: 1.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help=_STEPS_HELP)] = None,
    weight: Annotated[
        list[float] | None, typer.Option(callback=finite, help="Repeat it once for each file. Default: 1 for each.")
    ] = None,
    method: Annotated[Literal["mean", "sum"], typer.Option(help="mean divides by the sum of the weights.")] = "mean",
    note: Annotated[str, typer.Option(help="Text stored in OUT.")] = "",
) -> None:
    """Make one analogy of several."""
    if position is not None and (weight or method != "mean"):
        raise SettingsError("Give either --position, or --weight and --method.")
    if position is None and (steps is not None or position_end is not None):
        raise SettingsError("Give --position as well: --steps and --position-end start from it.")
    if position_end is not None and steps in (None, 1):
        raise SettingsError("Give --steps of at least 2 as well: --position-end is the last of them.")
    require_separate([output], files)
    analogies = [load_coefficients(path).coefficients for path in files]
    names = [path.name for path in files]
    if position is not None and steps is not None:
        end = 1.0 if position_end is None else position_end
        blended = sweep_analogies(analogies, position, end, steps=steps)
        made_of = f"steps at {steps} positions from {position:g} to {end:g} through {', '.join(names)}"
    else:
        weights = weight or [1.0] * len(names)
        if position is not None:
            weights = interpolation_weights(position, len(names))
        blended = blend_coefficients(analogies, weights, method=method)
        made_of = ", ".join(f"{factor:g} × {name}" for factor, name in zip(weights, names, strict=True))
    save_coefficients(output, blended, note=note)
    show(f"Wrote {output}: {describe_origin(blended)}; {made_of}")


def adjust(
    file: CoefficientsPath,
    output: Output,
    temperature: Annotated[
        float, typer.Option(callback=finite, help="Below 1 sharpens the mix, above 1 evens it out.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Adapters kept per layer; 0 keeps all.")] = 0,
    renormalize: Annotated[bool, typer.Option(help=_RENORMALIZE_HELP)] = True,
    part: Annotated[list[str] | None, typer.Option(metavar="NAME=STRENGTH", help=_PART_HELP)] = None,
    note: Annotated[str | None, typer.Option(help="Text stored in OUT. Default: the note of FILE.")] = None,
) -> None:
    """Adjust an analogy: temperature, strongest adapters, strength by part of the model."""
    strengths = _read_strengths(part or [])
    require_separate([output], [file])
    source = load_coefficients(file)
    adjusted = adjust_coefficients(
        source.coefficients,
        temperature=temperature,
        top_k=top_k,
        renormalize=renormalize,
        part_strengths=strengths,
    )
    thumbnail = None if source.thumbnail is None else from_pil(source.thumbnail)[None]
    save_coefficients(output, adjusted, note=source.note if note is None else note, thumbnail=thumbnail)
    show(f"Wrote {output}: {describe_origin(adjusted)}")


def _read_strengths(parts: list[str]) -> dict[str, float]:
    strengths: dict[str, float] = {}
    for text in parts:
        name, _, number = text.partition("=")
        name = name.strip()
        if name in strengths:
            raise SettingsError(f"--part is given more than once for {name}. Give one strength per part.")
        try:
            strengths[name] = float(number)
        except ValueError:
            raise SettingsError(f"--part {text} is not NAME=STRENGTH, such as attention=0.5.") from None
    return strengths


def plot(
    file: CoefficientsPath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT", help=".png file to write.")],
    compare_with: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show the difference from this file, of the same basis.")
    ] = None,
    mix: Annotated[int, typer.Option(min=0, help="Which mix of the file, counted from 0.")] = 0,
) -> None:
    """Draw a heat map of an analogy and print a summary."""
    if output.suffix.lower() != ".png":
        raise SettingsError(f"{output} does not end in .png.")
    require_separate([output], [file, compare_with])
    source = load_coefficients(file)
    count = count_mixes(source.coefficients)
    if compare_with is None:
        table = tabulate(source.coefficients, mix=mix)
        image = draw_coefficients(table, f"{file.name}, --mix {mix}")
        text = describe(source.coefficients, mix=mix, title=f"--mix {mix} (number {mix + 1} of {count})")
    else:
        other = load_coefficients(compare_with).coefficients
        comparison = compare(source.coefficients, other, mix=mix)
        title = f"{file.name} - {compare_with.name}"
        image = draw_comparison(comparison, title)
        text = (
            f"--mix {mix} (number {mix + 1} of {max(count, count_mixes(other))}): {title}\n"
            f"Basis: {name_of_basis(source.coefficients)}\n{describe_comparison(comparison)}"
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_bytes_atomically(output, buffer.getvalue())
    show(text)
    if source.note:
        show(f"Note: {source.note}")
    show(f"Wrote {output}")
