"""The command `lorweb`, also `python -m training`: every command line of the project under one name."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

EXIT_ERROR = 2  # as lorweb_core.console has it, which needs typer

#: Command → module with a `main`, and its subject; imported when called, since PyTorch and diffusers take seconds.
COMMANDS = {
    "train": ("training.train", "Train a basis."),
    "sample": ("training.sample", "Generate b' from a, a', b."),
    "prepare": ("training.prepare", "Import image pairs, check them, hold pairs out."),
    "evaluate": ("training.evaluate", "The paper's evaluation."),
    "demo": ("training.demo.__main__", "The tiny Kontext: make it, see it, compare it."),
}


def main() -> None:
    """Run the command that `sys.argv` names, and exit with its code."""
    name, arguments = "".join(sys.argv[1:2]), sys.argv[2:]
    try:
        if name == "train":
            from . import train

            train.leave(train.main(arguments, "lorweb train"))
        if name in COMMANDS:
            sys.exit(import_module(COMMANDS[name][0]).main(arguments, f"lorweb {name}"))
        from lorweb_core import command_line
    except ModuleNotFoundError as error:
        if name == "demo" and (error.name or "").startswith("training.demo"):  # left out by .comfyignore
            _leave("The demo is only in the git repository.")
        if error.name is None or error.name.startswith(("training", "lorweb_core")):
            raise
        _leave(f"lorweb {name} needs the package {error.name}: run `pip install 'lorweb[train]'`")
    if name in command_line.COMMANDS:
        sys.exit(command_line.main(sys.argv[1:], "lorweb"))
    texts = {command: text for command, (_, text) in COMMANDS.items()}
    texts |= {
        command: (function.__doc__ or "").partition(". ")[0].rstrip(".") + "."
        for command, (function, _) in command_line.COMMANDS.items()
    }
    print("Usage: lorweb COMMAND [ARGUMENTS]...\n\nCommands, each with a --help of its own:")
    print("\n".join(f"  {command:<10}{text}" for command, text in texts.items()))
    if name not in ("", "--help"):
        _leave(f"\nError: there is no command {name!r}.")


def _leave(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(EXIT_ERROR)


if __name__ == "__main__":
    main()
