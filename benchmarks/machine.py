"""What a result file says about the machine, and medians of interleaved rounds."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def describe_machine() -> dict[str, object]:
    """Return device, cores, threads, torch and date."""
    cpu = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [line.split(":", 1)[1].strip() for line in cpu_info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def now() -> float:
    """Return seconds: of the clock on a GPU; on a CPU of the processor, so that other programs do not count."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def time_interleaved(variants: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Return seconds per round of each variant, run in turn so that a busy moment hits all alike; one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_index in range(rounds + 1):
        for name, run in variants.items():
            start = now()
            run()
            if round_index:
                seconds[name].append(now() - start)
    return seconds


def median_ratios(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """Return, per variant, the median over rounds of its time ÷ the base's time in the same round."""
    return {
        name: round(statistics.median(own / other for own, other in zip(times, seconds[base], strict=True)), 3)
        for name, times in seconds.items()
    }


def save_result(name: str, result: dict[str, object]) -> Path:
    """Write a result beside earlier ones, named by question and date, and return its path."""
    machine = describe_machine()
    path = Path(__file__).parent / "results" / f"{name}-{machine['date']}.json"
    path.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"written: {path}")
    return path
