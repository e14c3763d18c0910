"""What does reducing the full mix (rank 128) to rank 16 cost?

    .venv/bin/python benchmarks/rank_reduction.py [--rounds 5]

For each size of Linear in FLUX.1: the time of our reduction (QR of the factors, SVD of 128×128) ÷ the time of merely
forming the full weight change, and the extra memory ÷ the size of that weight change, which is never formed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import median_ratios, save_result, time_interleaved
from memory import watch_peak

from lorweb_core.export import reduce_rank

SIZES = ((3072, 3072), (3072, 9216), (3072, 12288), (3072, 18432), (12288, 3072), (15360, 3072))
TOTAL_RANK, KEPT_RANK = 128, 16


def main() -> None:
    """Measure every size and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    result: dict[str, object] = {"total_rank": TOTAL_RANK, "kept_rank": KEPT_RANK}
    for wide_in, wide_out in SIZES:
        down = torch.randn(TOTAL_RANK, wide_in, generator=generator)
        up = torch.randn(wide_out, TOTAL_RANK, generator=generator)
        with torch.inference_mode():
            with watch_peak() as peak:
                reduce_rank(down, up, rank=KEPT_RANK)
            seconds = time_interleaved(
                {
                    "form the full change": lambda up=up, down=down: up @ down,
                    "reduce": lambda up=up, down=down: reduce_rank(down, up, rank=KEPT_RANK),
                },
                rounds=options.rounds,
            )
        result[f"{wide_in} to {wide_out}"] = {
            "time_to_forming": median_ratios(seconds, "form the full change")["reduce"],
            "seconds": round(sorted(seconds["reduce"])[options.rounds // 2], 4),
            "memory_to_full_change": round(peak.extra / (4 * wide_in * wide_out), 3),
        }
    save_result("rank_reduction", result)


if __name__ == "__main__":
    main()
