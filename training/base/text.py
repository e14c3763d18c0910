"""Prompts → T5 and CLIP text embeddings, computed once before training; then the encoders are freed.

The embeddings are those of diffusers' Kontext pipeline, bit for bit: T5 tokens padded to `max_tokens` (no mask is used,
so pads matter), CLIP's pooled vector. The pipeline itself is not loaded, as it needs torchvision. A base without text
encoders gets one zero token, if no captions are wanted.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lorweb_core.errors import ModelError

from .source import LOADING_ERRORS, damaged_part

logger = logging.getLogger(__name__)
_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class CaptionTable:
    """Embeddings of all prompts of a run."""

    #: prompt → (prompt_embeds [L, D], pooled [D′]) on the CPU; KeyError for an unknown prompt
    look_up: Callable[[str], tuple[Tensor, Tensor]]

    def batch(self, captions: Sequence[str], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return prompt_embeds [B, L, D] and pooled [B, D′]."""
        pairs = [self.look_up(caption) for caption in captions]
        prompts, pooled = (torch.stack(list(parts)).to(device, dtype) for parts in zip(*pairs, strict=True))
        return prompts, pooled


def has_text_encoders(components: Path) -> bool:
    """Whether a diffusers folder brings both text encoders."""
    return all((components / part).is_dir() for part in _PARTS)


def encode_captions(
    captions: Sequence[str], components: Path, transformer_config: dict[str, Any], *, max_tokens: int,
    dtype: torch.dtype, device: torch.device,
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:  # fmt: skip
    """Yield every caption with its (prompt_embeds [L, D], pooled [D′]) on the CPU; the encoders are freed at the end.

    Args:
        captions: distinct prompts, "" included.
        components: diffusers folder.
        transformer_config: gives the widths that the embeddings must have.
        max_tokens: L, T5 tokens per prompt, pads included.
        dtype: of encoders and results.
        device: where they run.
    Raises ModelError when there are captions but no text encoders, or widths do not fit the base.
    """
    widths = (transformer_config["joint_attention_dim"], transformer_config["pooled_projection_dim"])
    if not has_text_encoders(components):
        wanted = [caption for caption in captions if caption]
        if wanted:
            raise ModelError(
                f"{components} has no text encoders ({', '.join(_PARTS)}), but there are {len(wanted)} different "
                f"captions, first {wanted[0]!r}. Set text.caption_source: none, or name a folder with text encoders in "
                "base.components."
            )
        yield "", (torch.zeros(1, widths[0], dtype=dtype), torch.zeros(widths[1], dtype=dtype))
        return
    logger.info("encoding %d prompts", len(captions))
    # One encoder at a time: T5 (9.5 GB) and CLIP together would be the peak of a small card.
    tokenizer, model = _load_encoder(components, "", dtype, device)
    with torch.no_grad():
        pooled = {
            caption: model(_token_ids(caption, tokenizer, tokenizer.model_max_length, device)).pooler_output[0].cpu()
            for caption in captions
        }
    del model
    _free(device)
    started = time.monotonic()
    tokenizer, model = _load_encoder(components, "_2", dtype, device)
    logger.info("loaded the text encoder T5: %.1f s", time.monotonic() - started)
    cut = [caption for caption in captions if len(tokenizer(caption, verbose=False).input_ids) > max_tokens]
    if cut:
        logger.warning(
            "%d of %d prompts are longer than max_tokens, %d, and are cut; first: %.60r",
            len(cut), len(captions), max_tokens, cut[0],
        )  # fmt: skip
    for caption in tqdm(captions, desc="prompts", disable=None):
        with torch.no_grad():
            embeds = model(_token_ids(caption, tokenizer, max_tokens, device))[0][0].cpu()
        found = (embeds.shape[-1], pooled[caption].shape[-1])
        if found != widths:
            raise ModelError(
                f"The text encoders in {components} give embeddings of widths {found[0]} and {found[1]}, but this base "
                f"needs {widths[0]} and {widths[1]}. Name the text encoders that belong to the base in base.components."
            )
        yield caption, (embeds, pooled[caption])
    del model
    _free(device)
    logger.info("encoded %d prompts in %.1f s; the text encoders are freed", len(captions), time.monotonic() - started)


def _token_ids(caption: str, tokenizer: Any, length: int, device: torch.device) -> Tensor:  # noqa: ANN401 (transformers)
    tokens = tokenizer([caption], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = tokens.input_ids.to(device)
    return ids


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _load_encoder(components: Path, suffix: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """Tokenizer and model of `text_encoder` (CLIP, no suffix) or `text_encoder_2` (T5)."""
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    tokenizer_class: Any = T5Tokenizer if suffix else CLIPTokenizer
    model_class: Any = T5EncoderModel if suffix else CLIPTextModel
    folder = components / f"tokenizer{suffix}"
    try:
        # Without its files a tokenizer loads all the same, and knows no words.
        if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
            raise FileNotFoundError(f"none of {', '.join(_VOCABULARY_FILES)}")
        tokenizer = tokenizer_class.from_pretrained(folder, local_files_only=True)
        folder = components / f"text_encoder{suffix}"
        model = model_class.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    except LOADING_ERRORS as error:
        raise damaged_part(folder, error) from error
    return tokenizer, model.to(device).eval().requires_grad_(False)
