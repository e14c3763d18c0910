"""Output to terminals: characters that they cannot show, and those that foreign texts should not send them."""

from __future__ import annotations

import io
import logging
import sys
from typing import TextIO

from lorweb_core.errors import printable


def let_terminal_replace() -> None:
    """Let standard output write `?` for what its encoding lacks, instead of ending the program with an error.

    A stream that spells such characters out already (`backslashreplace`, the default of stderr) stays as it is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")


def log_to_terminal(level: int, line: str = "%(levelname)s %(message)s") -> None:
    """Write log records to stderr, one line each; names in them cannot steer the terminal or forge a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLineFormatter(line, datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])


def show(*lines: str, file: TextIO | None = None) -> None:
    """Print results that may hold texts of others (task names, captions, replies of a judge), each as one line."""
    print(*map(printable, lines), sep="\n", file=file)


class _OneLineFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))
