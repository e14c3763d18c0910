"""`python -m lorweb_core`; see `command_line`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from .command_line import main
    except ModuleNotFoundError as error:  # the nodes run without typer; older ComfyUIs do not bring it
        if error.name != "typer":
            raise
        sys.exit("The command line needs typer: pip install typer")
    sys.exit(main(None))
