"""How much anonymous memory a block of code takes: what the process owns beyond mapped files (RssAnon, Linux)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Peak:
    """Anonymous memory before and at its highest, in bytes."""

    before: int
    highest: int

    @property
    def extra(self) -> int:
        """What the block took at most, in bytes."""
        return self.highest - self.before


def anonymous_bytes() -> int:
    """Return the process' RssAnon."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("no RssAnon: this benchmark needs Linux")


@contextmanager
def watch_peak() -> Iterator[Peak]:
    """Give a `Peak` that is filled in while the block runs, sampled every 2 ms."""
    now = anonymous_bytes()
    peak = Peak(before=now, highest=now)
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
