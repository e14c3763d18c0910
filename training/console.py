"""What libraries say about things that are not used here is kept off the terminal; our own messages stay.

Single loggers are raised to errors, not whole libraries: what transformers says about a damaged or foreign text
encoder is still seen. Where the cause can be avoided it is (no diffusers pipeline is loaded to encode prompts).
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
import warnings
from typing import TextIO

import torch

from lorweb_core.errors import SettingsError, printable

_LOGGERS = (
    "torchao",  # its kernels for other GPUs and without Triton; diffusers imports it unasked
    "torch.utils._pytree",  # deprecations within torchao
    "bitsandbytes.backends.cpu.ops",  # an optional package for nf4 on CPUs
    "diffusers.quantizers.torchao.torchao_quantizer",  # an optional form of checkpoints
    "transformers.utils.import_utils",  # advises torchvision, whose installation replaces the torch in use
)


def silence_libraries() -> None:
    """Silence them for this process; bars of downloads stay, those of reading weights go."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
    shows_downloads = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if shows_downloads:  # transformers hides these with its own
        enable_progress_bars()


# Output to terminals: characters that they cannot show, and those that foreign texts should not send them.


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


# Words that several command lines take: counts and devices.


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
