"""Node Empty Prompt: a conditioning without text, for models and bases that were trained without a text encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from .host import Model
from .targets import text_widths


class EmptyPrompt:
    DESCRIPTION = (
        "Makes an empty prompt (one zero token) without loading CLIP-L or T5, for bases trained without text encoders "
        "(text.caption_source: none, and none in base.components) and for the demo model. It is not the empty "
        "instruction of FLUX.1-Kontext, which is T5's embedding of an empty text: with the published basis, load the "
        "text encoders. How much quality zeros would cost there has not been measured."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "make"
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_TOOLTIPS = ("For Reference Latent, like the output of CLIP Text Encode.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["empty conditioning", "zero conditioning", "no text", "no t5", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL", {"tooltip": "FLUX.1-Kontext; determines the width of the prompt."})}}

    def make(self, model: Model) -> tuple[list[list[Any]]]:
        """Return the host's CONDITIONING: zeros [1, 1, text width] and pooled zeros [1, pooled width]."""
        text_width, pooled_width = text_widths(model)
        return ([[torch.zeros(1, 1, text_width), {"pooled_output": torch.zeros(1, pooled_width)}]],)
