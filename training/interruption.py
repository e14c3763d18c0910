"""Ctrl-C, SIGTERM and SIGUSR1 (a scheduler's warning) ask for a save and a clean end after the step at hand.

A second Ctrl-C ends at once. Handlers are put back on leaving. torchrun hands on SIGINT and SIGTERM, and SIGUSR1 only
with `--signals-to-handle SIGTERM,SIGINT,SIGUSR1` (seen with torch 2.13; it overwrites the environment variable of that
purpose); without, SIGUSR1 ends torchrun alone. It ends what has not ended after 30 s.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopRequest:
    """Whether somebody asked the run to stop, and how."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Note the first request; a second Ctrl-C interrupts."""
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        logger.warning("%s: the run is saved and ends after this step; Ctrl-C again ends it at once", self.reason)


@contextmanager
def listen_for_signals() -> Iterator[StopRequest]:
    """Give a `StopRequest` that the three signals set."""
    request = StopRequest()
    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, request.handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_lost_children_to_the_loader() -> None:
    """Undo torch's handler of SIGCHLD, which raises wherever the main process is, be it half-way through an update.

    A loader notices a lost process by itself when its next batch is due.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
