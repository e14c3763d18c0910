"""A judge in this process: an image-text-to-text model of transformers, Gemma-3 for example.

Slower than a server (one question at a time, no shared prefixes), but needs nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import JudgeError
from .judge import Part
from .model_files import model_key

_MAX_REPLY_TOKENS = 1024


class LocalJudge:
    """A model from a folder or a Hugging Face id.

    Args:
        folder_or_id: what `from_pretrained` takes; weights are safetensors, no code of the folder is run. A folder's
            answers are kept under its name and a hash of its content.
        device: where the model runs.
        dtype: of its weights.
        max_reply_tokens: replies are cut there.
    Raises: JudgeError: when it cannot be loaded.
    """

    def __init__(
        self,
        folder_or_id: str,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        max_reply_tokens: int = _MAX_REPLY_TOKENS,
    ) -> None:
        self.model = _model_name(folder_or_id)
        self._network, self._processor = _load(folder_or_id, dtype)
        self._network.to(device).eval()
        self._max_reply_tokens = max_reply_tokens
        self._lock = threading.Lock()

    def reply(self, parts: Sequence[Part], *, temperature: float, seed: int) -> str:
        """Return the model's words; one caller at a time."""
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ]
        with self._lock, torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            inputs = self._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            ).to(self._network.device, dtype=self._network.dtype)  # fmt: skip
            sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
            tokens = self._network.generate(**inputs, max_new_tokens=self._max_reply_tokens, **sampling)
        new_tokens = tokens[0][inputs["input_ids"].shape[-1] :]
        return str(self._processor.decode(new_tokens, skip_special_tokens=True))


def _model_name(folder_or_id: str) -> str:
    """An id as it is; of a folder also its content, since two models may both lie in a folder named `judge`."""
    folder = Path(folder_or_id)
    if not folder.is_dir():
        return folder_or_id
    return f"{folder.resolve().name}@{str(model_key(folder))[:8]}"


def _load(folder_or_id: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder_or_id)
        network = AutoModelForImageTextToText.from_pretrained(folder_or_id, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, ImportError) as error:
        raise JudgeError(
            expected=f"an image-text-to-text model at {folder_or_id}",
            got=" ".join(str(error).split())[:300],
            remedy="Name the folder of such a model, google/gemma-3-4b-it for example (its licence must be accepted).",
        ) from error
    return network, processor
