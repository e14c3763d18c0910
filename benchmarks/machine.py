"""What every benchmark needs: a clock, interleaved rounds, peak memory, and result files that name the machine."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


def now() -> float:
    """Seconds of the clock on a GPU; on a CPU seconds of this process, so that other programs do not count."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def time_interleaved(variants: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds per round of each variant, run in turn so that a busy moment affects all; one more round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_index in range(rounds + 1):
        for name, run in variants.items():
            start = now()
            run()
            if round_index:
                seconds[name].append(now() - start)
    return seconds


def median_ratios(seconds: dict[str, list[float]], base: str) -> dict[str, float]:
    """Per variant, the median over rounds of its time ÷ the base's time in the same round."""
    return {
        name: round(statistics.median(own / other for own, other in zip(times, seconds[base], strict=True)), 3)
        for name, times in seconds.items()
    }


@dataclass
class Peak:
    """Anonymous memory in bytes: what the process owns beyond mapped files (RssAnon, Linux)."""

    before: int
    highest: int


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon: this benchmark needs Linux")


@contextmanager
def watch_peak() -> Iterator[Peak]:
    """A `Peak` that is filled in while the block runs, every 2 ms."""
    start = anonymous_bytes()
    peak = Peak(before=start, highest=start)
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.002):
            peak.highest = max(peak.highest, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        finished.set()
        watcher.join()


def save_result(name: str, result: dict[str, object]) -> None:
    """Print a result, and write it to `results/NAME-DATE.json` with the machine."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    cpus = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    machine = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else (cpus or [platform.machine()])[0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    path = Path(__file__).parent / "results" / f"{name}-{machine['date']}.json"
    path.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"written: {path}")
