"""Measure how long a basis takes to load and to route, and how much memory loading takes beyond the file's own pages.

    python benchmarks/synthetic_basis.py /tmp/basis.safetensors
    python benchmarks/basis_loading.py /tmp/basis.safetensors

Memory is anonymous memory (resident set less file-mapped pages), sampled after each layer, less what Python and torch
took before. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lorweb_core.basis import Basis
from lorweb_core.checkpoint import load_basis
from lorweb_core.router import route_query


def anonymous_bytes() -> int:
    """Return this process' resident anonymous memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


def measure_peak(path: Path) -> tuple[Basis, int]:
    """Return a loaded basis and the highest anonymous memory while loading it, less that before."""
    start = anonymous_bytes()
    peak = start

    def sample(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    basis = load_basis(path, on_progress=sample)
    return basis, max(peak, anonymous_bytes()) - start


def median_seconds(action: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the median wall time and the median CPU time of calling `action`."""
    walls, processors = [], []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        action()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return sorted(walls)[rounds // 2], sorted(processors)[rounds // 2]


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("basis", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="default 5; medians are printed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    basis, peak = measure_peak(arguments.basis)
    query = torch.randn(1, basis.query_dim, generator=torch.Generator().manual_seed(0))
    route_wall, route_processor = median_seconds(partial(route_query, basis, query), arguments.rounds)
    count = len(basis.layers)
    del basis
    load_wall, load_processor = median_seconds(lambda: load_basis(arguments.basis), arguments.rounds)
    size = arguments.basis.stat().st_size
    result = {
        "layers": count,
        "file_bytes": size,
        "peak_anonymous_bytes": peak,
        "peak_over_file": round(peak / size, 4),
        "load_seconds": round(load_wall, 3),
        "load_cpu_seconds": round(load_processor, 3),
        "route_seconds": round(route_wall, 3),
        "route_cpu_seconds": round(route_processor, 3),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:<22}{value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
