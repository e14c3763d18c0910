"""How long do loading, routing and mixing a full-size basis take, and how much memory does loading take?

    python benchmarks/synthetic_basis.py /tmp/basis.safetensors
    python benchmarks/basis_loading.py /tmp/basis.safetensors [--rounds 5] [--json]

"mix" folds the coefficients into every layer, one layer after the other, as an export does. The time of the image
encoder is not included. Memory is anonymous memory less what Python and torch took before; Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import save_result, time_interleaved, watch_peak

from lorweb_core.checkpoint import load_basis
from lorweb_core.mixing import mix_layer
from lorweb_core.router import route_query

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("basis", type=Path)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--json", action="store_true", help="print one line and store nothing")
options = parser.parse_args()

with torch.inference_mode():
    with watch_peak() as peak:
        basis = load_basis(options.basis)
    query = torch.randn(1, basis.query_dim, generator=torch.Generator().manual_seed(0))
    coefficients = route_query(basis, query)

    def mix_all() -> None:
        for name, layer in basis.layers.items():
            mix_layer(layer, coefficients[name][0])

    variants = {"route": lambda: route_query(basis, query), "mix": mix_all}
    if not options.json:
        variants["load"] = lambda: load_basis(options.basis)
    seconds = time_interleaved(variants, rounds=options.rounds)

size, extra = options.basis.stat().st_size, peak.highest - peak.before
result = {
    "layers": len(basis.layers),
    "file_bytes": size,
    "peak_anonymous_bytes": extra,
    "peak_to_file": round(extra / size, 3),
    **{f"{name}_seconds": round(statistics.median(times), 3) for name, times in seconds.items()},
}
if options.json:
    print(json.dumps(result))
else:
    save_result("basis_loading", result)
