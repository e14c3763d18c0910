"""How long do blending, adjusting, previewing, saving and loading a full-size set of coefficients take?

    .venv/bin/python benchmarks/coefficients.py [--rounds 31]

494 layers of 32 numbers, one mix, seeded; checks of the input included, as the nodes call it. "preview" is the picture,
the numbers and the text of one mix. Times are medians; process time is what this process used of the processor, which
a busy machine does not lengthen much.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import save_result
from synthetic_basis import layer_sizes

from lorweb_core.adjustment import adjust_coefficients
from lorweb_core.blending import blend_coefficients, interpolation_weights
from lorweb_core.coefficient_summary import compare, describe, describe_comparison, tabulate
from lorweb_core.coefficients import FORMAT_VERSION, Coefficients
from lorweb_core.coefficients_file import load_coefficients, save_coefficients
from lorweb_core.heat_map import draw_coefficients, draw_comparison

BASIS_SIZE = 32


def make_coefficients(seed: int) -> Coefficients:
    """Return one mix for every adapted layer of FLUX.1."""
    generator = torch.Generator().manual_seed(seed)
    layers = {name: torch.randn(1, BASIS_SIZE, generator=generator).softmax(-1) for name, _, _ in layer_sizes()}
    settings = {"activation": "softmax", "basis_name": "synthetic"}
    return Coefficients(format_version=FORMAT_VERSION, basis_id="synthetic", layers=layers, settings=settings)


def preview(coefficients: Coefficients) -> None:
    """Draw and describe one mix, the picture encoded as the node does."""
    with tempfile.TemporaryDirectory() as folder:
        draw_coefficients(tabulate(coefficients), "mix 1").save(Path(folder) / "preview.png", compress_level=1)
    describe(coefficients)


def preview_difference(first: Coefficients, second: Coefficients) -> None:
    """Draw and describe what two mixes differ in."""
    comparison = compare(first, second)
    draw_comparison(comparison, "difference")
    describe_comparison(comparison)


def medians_of(run: Callable[[], object], rounds: int) -> dict[str, float]:
    """Return the median wall and process time of a call in milliseconds, after one warm-up."""
    wall, process = [], []
    for _ in range(rounds + 1):
        start, start_process = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - start)
        process.append(time.process_time() - start_process)
    return {
        "wall_ms": round(1000 * statistics.median(wall[1:]), 2),
        "process_ms": round(1000 * statistics.median(process[1:]), 2),
    }


def main() -> None:
    """Measure each operation and store the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    first, second = make_coefficients(0), make_coefficients(1)
    parts = {"modulation": 0.5, "late": 1.5}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "analogy.safetensors"
        operations: dict[str, Callable[[], object]] = {
            "blend": lambda: blend_coefficients([first, second], interpolation_weights(0.3, 2)),
            "adjust": lambda: adjust_coefficients(first, temperature=0.5, top_k=8, part_strengths=parts),
            "preview": lambda: preview(first),
            "preview_difference": lambda: preview_difference(first, second),
            "save": lambda: save_coefficients(path, first),
            "load": lambda: load_coefficients(path),
        }
        result: dict[str, object] = {name: medians_of(run, rounds) for name, run in operations.items()}
        result["file_bytes"] = path.stat().st_size
    save_result("coefficients", {"layers": len(first["layers"]), "basis_size": BASIS_SIZE, **result})


if __name__ == "__main__":
    main()
