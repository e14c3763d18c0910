"""The command line `python -m lorweb_core`: words → the functions of the package.

One module per command, each with `add_arguments` and `run`; `COMMANDS` is the table. A user's mistake is one line on
stderr and exit code 2, never a traceback. Results go to stdout, warnings and progress to stderr.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import NoReturn

from ..errors import LoRWeBError, printable
from . import adjust, blend, convert, inspection, mix, plot

USAGE_ERROR = 2
INTERRUPTED = 130
PROGRAM = "python -m lorweb_core"
_NEGATIVE_NUMBER = re.compile(r"-((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf|infinity|nan)$", re.IGNORECASE)


@dataclass(frozen=True)
class Command:
    """One sub-command: its help, examples for `--help`, its arguments and what it does."""

    summary: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


COMMANDS = {
    "inspect": Command(
        "say what a basis file holds, and check it whole",
        inspection.EXAMPLES,
        inspection.add_arguments,
        inspection.run,
    ),
    "mix": Command("make the mixed LoRA of an analogy", mix.EXAMPLES, mix.add_arguments, mix.run),
    "convert": Command(
        "rewrite a basis with its settings in the header", convert.EXAMPLES, convert.add_arguments, convert.run
    ),
    "blend": Command("make one analogy of several", blend.EXAMPLES, blend.add_arguments, blend.run),
    "adjust": Command("shape an analogy", adjust.EXAMPLES, adjust.add_arguments, adjust.run),
    "plot": Command("draw an analogy and describe it", plot.EXAMPLES, plot.add_arguments, plot.run),
}


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2 and one line."""
        self.exit(USAGE_ERROR, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


class _PlainFormatter(logging.Formatter):
    """Log lines without control characters, which files can bring along."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(super().formatMessage(record))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 2 for a user's mistake, 130 when interrupted.

    Args:
        arguments: words after the program's name; None takes the process' own.
    """
    _accept_any_character()
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(_PlainFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[to_stderr])
    parsed = build_parser().parse_args(arguments)
    try:
        COMMANDS[parsed.command].run(parsed)
        sys.stdout.flush()
    except LoRWeBError as error:
        print(f"{PROGRAM} {parsed.command}: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print(f"{PROGRAM} {parsed.command}: interrupted, nothing partial is left", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left, as `| head` does; nothing can be flushed any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    examples = "\n".join(command.examples for command in COMMANDS.values())
    parser = _OneLineParser(
        prog=PROGRAM,
        description="LoRWeB: visual analogies as mixed LoRAs, without a host.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_OneLineParser)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog=f"examples:\n{command.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
        # argparse takes -0.1 for a value but -1e-1 for an option, and has no public way to be told otherwise.
        subparser._negative_number_matcher = _NEGATIVE_NUMBER
    return parser


def _accept_any_character() -> None:
    """Keep a console that cannot show a file name's characters from failing on them (Windows code pages)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
