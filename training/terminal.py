"""Output to terminals and files that cannot hold every character, such as Windows code pages."""

from __future__ import annotations

import io
import sys


def let_terminal_replace() -> None:
    """Let standard output write `?` for what its encoding lacks, instead of ending the program with an error.

    A stream that spells such characters out already (`backslashreplace`, the default of stderr) stays as it is.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="replace")
