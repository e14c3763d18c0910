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


def open_device(name: str = "auto") -> torch.device:
    """Return the device of a name: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`.

    Whatever computes on a GPU asks here for its device, so this is also where cuDNN's attention is switched off: under
    torch 2.11 its backward pass crashes stock FLUX on Hopper. The flash and memory-efficient kernels remain.

    Raises: SettingsError: for any other name, and for a GPU that is not there.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    kind, _, number = name.partition(":")
    if name != "cpu" and not (kind == "cuda" and (name == "cuda" or number.isdecimal()) and int(number or 0) < gpus):
        raise SettingsError(
            f"The device {name!r} does not exist here: torch {torch.__version__} sees {gpus} CUDA GPUs. Use auto or "
            "cpu, or install a torch built for CUDA and a driver that fits it."
        )
    return torch.device(name)
