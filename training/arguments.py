"""Words that several command lines take: counts and devices; `lorweb_core.command_line.arguments` has more."""

from __future__ import annotations

import argparse

import torch

from lorweb_core.errors import SettingsError


def count(text: str) -> int:
    """Return a whole number of at least 1; for argparse's `type`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text}")
    return int(text)


def open_device(name: str) -> torch.device:
    """Return the device of a name: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`.

    Raises: SettingsError: for any other name, and for a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    is_there = name == "cpu" or (
        kind == "cuda" and (number.isdigit() or name == "cuda") and int(number or 0) < torch.cuda.device_count()
    )
    if not is_there:
        raise SettingsError(
            expected="--device cpu, or cuda where there is a GPU", got=name, remedy="Leave --device out to use the CPU."
        )
    return torch.device(name)
