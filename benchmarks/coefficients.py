"""How long do blending, adjusting, previewing, saving and loading a full-size set of coefficients take?

    .venv/bin/python benchmarks/coefficients.py [--mixes 1 64] [--rounds 31] [--print-only]

494 layers of 32 numbers, B mixes, seeded; checks of the input included, as the nodes call it. "preview" is the
pictures, numbers and text of as many mixes as the node shows; "sweep" goes from one mix to another in B steps. Times
are medians of rounds in which all operations take turns; process time is what this process used of the processor, which
a busy machine does not lengthen much. "ratio" is the median of an operation's process time ÷ that of "blend" in the
same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import median_ratios, save_result
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
    """Return B mixes for every adapted layer of FLUX.1."""
    generator = torch.Generator().manual_seed(seed)
    layers = {name: torch.randn(mixes, BASIS_SIZE, generator=generator).softmax(-1) for name, _, _ in layer_sizes()}
    settings = {"activation": "softmax", "basis_name": "synthetic"}
    return Coefficients(format_version=FORMAT_VERSION, basis_id="synthetic", layers=layers, settings=settings)


def preview(coefficients: Coefficients, mixes: int) -> None:
    """Draw and describe mixes, the pictures encoded as the node does."""
    with tempfile.TemporaryDirectory() as folder:
        for mix in range(min(mixes, MAX_MIXES_SHOWN)):
            picture = draw_coefficients(tabulate(coefficients, mix=mix), "mix")
            picture.save(Path(folder) / "preview.png", compress_level=1)
            describe(coefficients, mix=mix)


def preview_difference(first: Coefficients, second: Coefficients, mixes: int) -> None:
    """Draw and describe what mixes differ in."""
    for mix in range(min(mixes, MAX_MIXES_SHOWN)):
        describe(first, mix=mix)
        comparison = compare(first, second, mix=mix)
        draw_comparison(comparison, "difference")
        describe_comparison(comparison)


def list_operations(mixes: int, path: Path) -> dict[str, Callable[[], object]]:
    """Return name → what is measured on B mixes."""
    first, second = make_coefficients(0, mixes), make_coefficients(1, mixes)
    ends = make_coefficients(2, 1), make_coefficients(3, 1)
    parts = {"modulation": 0.5, "late": 1.5}
    return {
        "blend": lambda: blend_coefficients([first, second], interpolation_weights(0.3, 2)),
        "sweep": lambda: sweep_analogies(ends, 0.0, 1.0, steps=mixes),
        "adjust": lambda: adjust_coefficients(first, temperature=0.5, top_k=8, part_strengths=parts),
        "preview": lambda: preview(first, mixes),
        "preview_difference": lambda: preview_difference(first, second, mixes),
        "save": lambda: save_coefficients(path, first),
        "load": lambda: load_coefficients(path),
    }


def measure(operations: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Return the median wall and process time of each operation in milliseconds, and its ratio, after one warm-up."""
    wall: dict[str, list[float]] = {name: [] for name in operations}
    process: dict[str, list[float]] = {name: [] for name in operations}
    for round_index in range(rounds + 1):
        for name, run in operations.items():
            start, start_process = time.perf_counter(), time.process_time()
            run()
            if round_index:
                wall[name].append(time.perf_counter() - start)
                process[name].append(time.process_time() - start_process)
    ratios = median_ratios(process, "blend")
    return {
        name: {
            "wall_ms": round(1000 * statistics.median(wall[name]), 2),
            "process_ms": round(1000 * statistics.median(process[name]), 2),
            "ratio": ratios[name],
        }
        for name in operations
    }


def main() -> None:
    """Measure each operation, and store or print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--print-only", action="store_true", help="store nothing")
    arguments = parser.parse_args()
    result: dict[str, object] = {"layers": len(list(layer_sizes())), "basis_size": BASIS_SIZE}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for mixes in arguments.mixes:
            path = Path(folder) / f"{mixes}.safetensors"
            times = measure(list_operations(mixes, path), arguments.rounds)
            result[f"mixes_{mixes}"] = {**times, "file_bytes": path.stat().st_size}
    if arguments.print_only:
        print(json.dumps(result, indent=1))
    else:
        save_result("coefficients", result)


if __name__ == "__main__":
    main()
