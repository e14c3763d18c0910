"""One `main` for every command line: a typer app → an exit code.

Exit codes: 0 success, 2 an error of the user's (usage, or a `LoRWeBError`, printed as one message on stderr without a
traceback), 130 interrupted; a command may return others with `raise typer.Exit(code)`. Results go to stdout, messages
and progress to stderr.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Sequence

import typer

from .errors import LoRWeBError, printable

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
INTERRUPTED = "interrupted; no partial file is left"
# typer ships its own click since 0.29 and exports only subclasses of this one.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _PlainFormatter(logging.Formatter):
    """Log lines without control characters, which names in foreign files can contain."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def new_app(help_text: str) -> typer.Typer:
    """An app with plain help: no shell completion, no markup, no decorated tracebacks."""
    return typer.Typer(
        help=help_text,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
    )


def make_main(
    app: typer.Typer, program: str, *, log_format: str = "%(levelname)s: %(message)s", level: int = logging.WARNING,
    interrupted: str = INTERRUPTED,
) -> Callable[..., int]:  # fmt: skip
    """Return `main(arguments=None, program=program) -> exit code` of an app.

    Args:
        app: from `new_app`; one command, or several.
        program: as users call it, such as `python -m training.train`; shown in help and error messages.
        log_format, level: of log lines, which go to stderr.
        interrupted: printed after Ctrl-C.
    """

    def main(arguments: Sequence[str] | None = None, program: str = program) -> int:
        for stream in (sys.stdout, sys.stderr):  # Windows code pages lack characters that file names can have
            if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
                stream.reconfigure(errors="replace")
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_PlainFormatter(log_format, datefmt="%H:%M:%S"))
        logging.basicConfig(level=level, handlers=[handler])
        given = list(sys.argv[1:] if arguments is None else arguments)
        try:
            result = app(given, prog_name=program, standalone_mode=False)
            sys.stdout.flush()
            if result == EXIT_INTERRUPTED:  # so typer reports Ctrl-C; its earlier versions raise Abort
                print(interrupted, file=sys.stderr)
        except UsageError as error:
            error.show()  # type: ignore[attr-defined]
            return EXIT_ERROR
        except LoRWeBError as error:
            print(printable(f"error: {error}", keep="\n"), file=sys.stderr)
            return EXIT_ERROR
        except (KeyboardInterrupt, typer.Abort):
            print(interrupted, file=sys.stderr)
            return EXIT_INTERRUPTED
        except BrokenPipeError:  # the reader of our output has left, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return result if isinstance(result, int) else 0

    return main
