"""The command line `python -m lorweb_core`: basis files, mixed LoRAs and coefficients without ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..console import make_main, new_app
from .analogies import ADJUST_EXAMPLES, BLEND_EXAMPLES, PLOT_EXAMPLES, adjust, blend, plot
from .basis_files import CONVERT_EXAMPLES, INSPECT_EXAMPLES, convert, inspect
from .mix import MIX_EXAMPLES, mix

COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "inspect": (inspect, INSPECT_EXAMPLES),
    "mix": (mix, MIX_EXAMPLES),
    "convert": (convert, CONVERT_EXAMPLES),
    "blend": (blend, BLEND_EXAMPLES),
    "adjust": (adjust, ADJUST_EXAMPLES),
    "plot": (plot, PLOT_EXAMPLES),
}

app = new_app("LoRWeB: visual analogies as mixed LoRAs, without ComfyUI.")
for _name, (_command, _examples) in COMMANDS.items():
    app.command(_name, epilog=f"\b\nexamples:\n{_examples}")(_command)
main = make_main(app, "python -m lorweb_core")
