"""What the trainer's commands share beyond `lorweb_core.console`: quiet libraries, printing, and the device."""

from __future__ import annotations

import logging
import warnings
from typing import TextIO

import torch

from lorweb_core.errors import SettingsError, printable

#: Loggers that report on packages and features that are not used here. Single ones are set to errors, not whole
#: libraries: what transformers reports about a damaged or foreign text encoder is still logged.
_LOGGERS = (
    "torchao",  # its kernels for other GPUs and without Triton; diffusers imports it
    "torch.utils._pytree",  # deprecations within torchao
    "bitsandbytes.backends.cpu.ops",  # an optional package for nf4 on CPUs
    "diffusers.quantizers.torchao.torchao_quantizer",  # an optional form of checkpoints
    "transformers.utils.import_utils",  # advises torchvision, whose installation replaces the torch in use
)


def silence_libraries() -> None:
    """Silence those loggers in this process; download bars stay, those of reading weights go."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
    shows_downloads = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    if shows_downloads:  # transformers hides these with its own
        enable_progress_bars()


def show(*lines: str, file: TextIO | None = None) -> None:
    """Print results that may contain foreign text (task names, captions, replies of a judge), each on one line."""
    print(*map(printable, lines), sep="\n", file=file)


def open_device(name: str = "auto") -> torch.device:
    """Return the device of a name: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`.

    Everything that computes on a GPU gets its device here, so cuDNN's attention is switched off here too: under torch
    2.11 its backward pass crashes stock FLUX on Hopper. The flash and memory-efficient kernels remain.

    Raises SettingsError for any other name, and for a GPU that does not exist.
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
