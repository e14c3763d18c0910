"""How long do loading, routing and mixing a full-size basis take, and how much memory?

    .venv/bin/python benchmarks/synthetic_basis.py FILE      once; 494 layers, N 32, rank 4, float16
    .venv/bin/python benchmarks/encode_and_mix.py FILE [--rounds 5]

The image encoder's time is not included. "mix" folds the coefficients into every layer, one layer after the other, as
an export does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import now, save_result
from memory import watch_peak

from lorweb_core.basis import Basis
from lorweb_core.checkpoint import load_basis
from lorweb_core.mixing import mix_layer
from lorweb_core.router import route_query


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = now()
    run()
    return now() - start


def mix_all(basis: Basis, coefficients: dict[str, torch.Tensor]) -> None:
    """Fold the coefficients into every layer, keeping none."""
    for name, layer in basis.layers.items():
        mix_layer(layer, coefficients[name][0])


def main() -> None:
    """Load once, then measure routing and mixing in rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("basis", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    file_bytes = options.basis.stat().st_size
    with torch.inference_mode(), watch_peak() as peak:
        start = now()
        basis = load_basis(options.basis)
        load_seconds = now() - start
        query = torch.randn(1, basis.query_dim, generator=torch.Generator().manual_seed(0))
        route = [seconds_of(lambda: route_query(basis, query)) for _ in range(options.rounds)]
        coefficients = route_query(basis, query)
        mix = [seconds_of(lambda: mix_all(basis, coefficients)) for _ in range(options.rounds)]
    result = {
        "layers": len(basis.layers),
        "file_bytes": file_bytes,
        "load_seconds": round(load_seconds, 2),
        "route_seconds": round(statistics.median(route), 3),
        "mix_seconds": round(statistics.median(mix), 3),
        "route_and_mix_seconds": round(statistics.median(route) + statistics.median(mix), 3),
        "peak_anonymous_bytes": peak.highest,
        "anonymous_bytes_before": peak.before,
        "peak_to_file": round(peak.highest / file_bytes, 3),
        "peak_less_before_to_file": round(peak.extra / file_bytes, 3),
    }
    save_result("encode_and_mix", result)


if __name__ == "__main__":
    main()
