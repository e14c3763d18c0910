"""Node Empty Prompt: a conditioning without text, for models and bases that were trained without a text encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from .targets import Model, text_widths


class EmptyPrompt:
    """Stand in for the text encoders where there is nothing to say: one token of zeros and a pooled vector of zeros."""

    DESCRIPTION = (
        "Makes a prompt of one zero token without loading CLIP-L or T5. Bases trained without text encoders "
        "(text.caption_source: none, and none in base.components) saw just that, and so did the demo model. It is not "
        "the empty instruction of FLUX.1-Kontext, which is T5's embedding of an empty text: with the published basis "
        "load the text encoders. How much quality zeros would cost there has not been measured."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "make"
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_TOOLTIPS = ("For Reference Latent, as from CLIP Text Encode.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["empty conditioning", "zero conditioning", "no text", "no t5", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        return {"required": {"model": ("MODEL", {"tooltip": "FLUX.1-Kontext; says how wide the prompt has to be."})}}

    def make(self, model: Model) -> tuple[list[list[Any]]]:
        """Return the host's CONDITIONING: zeros [1, 1, text width] and pooled zeros [1, pooled width].

        Raises: ModelError: for a model that is not FLUX.1.
        """
        text_width, pooled_width = text_widths(model)
        return ([[torch.zeros(1, 1, text_width), {"pooled_output": torch.zeros(1, pooled_width)}]],)
