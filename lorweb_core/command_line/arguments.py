"""For argparse in `training.prepare`, until that command uses typer."""

from __future__ import annotations

import argparse


def whole_number(text: str) -> int:
    """Return a whole number of at least 0; argparse type."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0; got {text}")
    return int(text)
