"""How long do blending, adjusting, previewing, saving and loading a full-size set of coefficients take?

    python benchmarks/coefficients.py [--mixes 1 64] [--rounds 31]

494 layers of 32 numbers, B mixes, seeded; checks of the input included, as the nodes call it. "preview" is the images,
numbers and text of as many mixes as the node shows; "sweep" goes from one mix to another in B steps. Times are medians
of rounds in which all operations take turns. "ratio" is the median of an operation's time ÷ that of "blend" in the
same round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import median_ratios, save_result, time_interleaved
from synthetic_basis import layer_sizes

from lorweb_core.adjustment import adjust_coefficients
from lorweb_core.blending import blend_coefficients, interpolation_weights, sweep_analogies
from lorweb_core.coefficient_summary import compare, describe, describe_comparison, tabulate
from lorweb_core.coefficients import FORMAT_VERSION, Coefficients
from lorweb_core.coefficients_file import load_coefficients, save_coefficients
from lorweb_core.heat_map import draw_coefficients, draw_comparison

BASIS_SIZE = 32
#: As many mixes as Preview Coefficients shows.
MAX_MIXES_SHOWN = 8


def make_coefficients(seed: int, mixes: int) -> Coefficients:
    """B mixes for every adapted layer of FLUX.1."""
    generator = torch.Generator().manual_seed(seed)
    layers = {name: torch.randn(mixes, BASIS_SIZE, generator=generator).softmax(-1) for name, _, _ in layer_sizes()}
    settings = {"activation": "softmax", "basis_name": "synthetic"}
    return Coefficients(format_version=FORMAT_VERSION, basis_id="synthetic", layers=layers, settings=settings)


def list_operations(mixes: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Name → what is measured on B mixes."""
    first, second = make_coefficients(0, mixes), make_coefficients(1, mixes)
    ends = make_coefficients(2, 1), make_coefficients(3, 1)
    parts = {"modulation": 0.5, "late": 1.5}
    path = folder / f"{mixes}.safetensors"
    save_coefficients(path, first)

    def preview() -> None:
        for mix in range(min(mixes, MAX_MIXES_SHOWN)):
            image = draw_coefficients(tabulate(first, mix=mix), "mix")
            image.save(folder / "preview.png", compress_level=1)
            describe(first, mix=mix)

    def preview_difference() -> None:
        for mix in range(min(mixes, MAX_MIXES_SHOWN)):
            describe(first, mix=mix)
            comparison = compare(first, second, mix=mix)
            draw_comparison(comparison, "difference")
            describe_comparison(comparison)

    return {
        "blend": lambda: blend_coefficients([first, second], interpolation_weights(0.3, 2)),
        "sweep": lambda: sweep_analogies(ends, 0.0, 1.0, steps=mixes),
        "adjust": lambda: adjust_coefficients(first, temperature=0.5, top_k=8, part_strengths=parts),
        "preview": preview,
        "preview_difference": preview_difference,
        "save": lambda: save_coefficients(path, first),
        "load": lambda: load_coefficients(path),
    }


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--mixes", type=int, nargs="+", default=[1, 64])
parser.add_argument("--rounds", type=int, default=31)
options = parser.parse_args()
result: dict[str, object] = {"layers": len(list(layer_sizes())), "basis_size": BASIS_SIZE}
with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
    for count in options.mixes:
        seconds = time_interleaved(list_operations(count, Path(temporary)), rounds=options.rounds)
        ratios = median_ratios(seconds, "blend")
        result[f"mixes_{count}"] = {
            name: {"median_ms": round(1000 * statistics.median(times), 2), "ratio": ratios[name]}
            for name, times in seconds.items()
        }
save_result("coefficients", result)
