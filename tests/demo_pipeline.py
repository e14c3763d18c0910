"""The demo's base in diffusers' own Kontext pipeline, and PSNR without a ceiling."""

import math

from training.demo.tiny_kontext import kontext_scheduler, load_base
from training.demo.vae import build_vae


def load_pipeline(base):
    """Return the stock Kontext pipeline on the shipped base, without text encoders, float32 on the CPU.

    Call it with `prompt_embeds` and `pooled_prompt_embeds` of zeros, `max_area` = height · width of the grid and
    `_auto_resize=False`, or it resizes the grid.
    """
    from diffusers import FluxKontextPipeline

    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    parts = {"transformer": load_base(base), "vae": build_vae(), "scheduler": kontext_scheduler()}
    pipeline = FluxKontextPipeline(**parts, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def psnr(generated, expected):
    """Return the PSNR in dB of two images of the same shape, values 0–1."""
    error = float((generated.double() - expected.double()).square().mean())
    return 10 * math.log10(1 / max(error, 1e-10))
