"""What libraries say about things that are not used here is kept off the terminal; our own messages stay.

Single loggers are raised to errors, not whole libraries: what transformers says about a damaged or foreign text
encoder is still seen. Where the cause can be avoided it is (no diffusers pipeline is loaded to encode prompts).
"""

from __future__ import annotations

import logging
import warnings

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
