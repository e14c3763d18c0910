"""Ctrl-C, SIGTERM and SIGUSR1 (a scheduler's warning): save and stop after the step at hand, or leave at once.

Before the first step of a process is done (loading, compiling, waiting for other machines) nothing can be lost, and the
process leaves at once. Later a signal asks for a save after the step; a second Ctrl-C ends without it. Handlers are put
back on leaving. torchrun hands on SIGINT and SIGTERM, and SIGUSR1 only with `--signals-to-handle
SIGTERM,SIGINT,SIGUSR1` (seen with torch 2.13; it overwrites the environment variable of that purpose); without, SIGUSR1
ends torchrun alone. It kills what has not ended after 30 s.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torch._guards import CompileContext

logger = logging.getLogger(__name__)
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
#: Exit code of a run that was asked to stop before its last step.
EXIT_STOPPED = 3
_SECONDS_TO_LEAVE = 3.0


class StoppedAtOnceError(KeyboardInterrupt):
    """A run was asked to stop where waiting for the end of the step would take minutes and no finished step is lost."""


class StopRequest:
    """Whether somebody asked the run to stop, and how.

    Attributes:
        reason: name of the first signal.
        has_stepped: whether this process has finished a step, which is then saved before the end.
        waits_for_compiler: whether compiling is finished first: weights are half-way changed, or others would wait.
        leaves_compiler: from raising `StoppedAtOnceError` in the compiler until the loop has caught it.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.has_stepped = False
        self.waits_for_compiler = False
        self.leaves_compiler = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Note the first request, and leave at once where the step's end is not waited for."""
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = self.reason or signal.Signals(number).name
        if not self.has_stepped:
            raise StoppedAtOnceError(f"{self.reason}: stopped before the first step was done; nothing is lost")
        if not self.waits_for_compiler and CompileContext.try_get() is not None:
            self.leaves_compiler = True
            raise StoppedAtOnceError(f"{self.reason}: stopped compiling")
        logger.warning("%s: the run is saved and ends after this step; Ctrl-C again ends it at once", self.reason)


@contextmanager
def listen_for_signals() -> Iterator[StopRequest]:
    """Give a `StopRequest` that the three signals set."""
    request = StopRequest()
    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, request.handle) for number in numbers}
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    has_left = threading.Event()
    threading.Thread(target=_watch, args=(request, reader, numbers, has_left), daemon=True).start()
    try:
        yield request
    finally:
        has_left.set()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()


def _watch(request: StopRequest, reader: socket.socket, numbers: list[int], has_left: threading.Event) -> None:
    """See a process out whose main thread the exception of the handler does not reach.

    Python calls handlers only between two instructions of the main thread, not in foreign code (a barrier, a backward
    pass that compiles, a download): before the first step such a process is ended. And Python drops what is raised in
    a weak reference's callback, of which the compiler has many: the signal is repeated until it got out.
    """
    with reader:
        while received := reader.recv(1):
            if received[0] not in numbers:
                continue
            if not has_left.wait(_SECONDS_TO_LEAVE) and not request.has_stepped:
                logger.warning("%s: stopped before the first step was done", signal.Signals(received[0]).name)
                os._exit(EXIT_STOPPED)
            if request.leaves_compiler and not has_left.is_set() and hasattr(signal, "pthread_kill"):  # not on Windows
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def leave_lost_children_to_the_loader() -> None:
    """Undo torch's handler of SIGCHLD, which raises wherever the main process is, be it half-way through an update.

    A loader notices a lost process by itself when its next batch is due.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
