"""What does reducing the full mix (rank 128) to rank 16 cost?

    python benchmarks/rank_reduction.py [--rounds 5]

For each size of Linear in FLUX.1: the time of our reduction (QR of the factors, SVD of 128×128) ÷ the time of merely
forming the full weight change, and the extra memory ÷ the size of that weight change, which is never formed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import median_ratios, save_result, time_interleaved, watch_peak

from lorweb_core.export import reduce_rank

SIZES = ((3072, 3072), (3072, 9216), (3072, 12288), (3072, 18432), (12288, 3072), (15360, 3072))
TOTAL_RANK, KEPT_RANK = 128, 16

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=5)
rounds = parser.parse_args().rounds
generator = torch.Generator().manual_seed(0)
result: dict[str, object] = {"total_rank": TOTAL_RANK, "kept_rank": KEPT_RANK}
for in_features, out_features in SIZES:
    down = torch.randn(TOTAL_RANK, in_features, generator=generator)
    up = torch.randn(out_features, TOTAL_RANK, generator=generator)
    variants = {
        "form the full change": lambda up=up, down=down: up @ down,
        "reduce": lambda up=up, down=down: reduce_rank(down, up, rank=KEPT_RANK),
    }
    with torch.inference_mode():
        with watch_peak() as peak:
            variants["reduce"]()
        seconds = time_interleaved(variants, rounds=rounds)
    result[f"{in_features} to {out_features}"] = {
        "time_to_forming": median_ratios(seconds, "form the full change")["reduce"],
        "seconds": round(statistics.median(seconds["reduce"]), 4),
        "memory_to_full_change": round((peak.highest - peak.before) / (4 * in_features * out_features), 3),
    }
save_result("rank_reduction", result)
