"""The demo's base as stock diffusers knows models: a pipeline in memory, or a folder that `training.train` reads.

Text encoders are absent: the prompt is one zero token and a zero pooled vector (`analogies.null_prompt`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorweb_core.files import write_text_atomically
from training.sampling import SigmaSchedule

from .codec import build_codec
from .tiny_flux import load_base

_ABSENT = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def kontext_scheduler() -> Any:  # noqa: ANN401 (diffusers has no types)
    """Return diffusers' Euler scheduler with FLUX.1-Kontext's own values."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**asdict(SigmaSchedule(shift=3.0)))


def load_pipeline(base: Path) -> Any:  # noqa: ANN401 (diffusers has no types)
    """Return the stock Kontext pipeline on the shipped base, without text encoders, in float32 on the CPU.

    Call it with `prompt_embeds` and `pooled_prompt_embeds` of zeros, `max_area` = height · width of the grid and
    `_auto_resize=False`, or it resizes the grid.
    """
    from diffusers import FluxKontextPipeline

    absent: dict[str, Any] = dict.fromkeys(_ABSENT)
    pipeline: Any = FluxKontextPipeline(
        transformer=load_base(base), vae=build_codec(), scheduler=kontext_scheduler(), **absent
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_diffusers_folder(base: Path, folder: Path) -> Path:
    """Write the base as a diffusers folder (transformer, vae, scheduler), 14 MB, and return it."""
    parts: dict[str, Any] = {"transformer": load_base(base), "vae": build_codec(), "scheduler": kontext_scheduler()}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index: dict[str, Any] = {"_class_name": "FluxKontextPipeline"} | {name: [None, None] for name in _ABSENT}
    index |= {
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    write_text_atomically(folder / "model_index.json", json.dumps(index, indent=2) + "\n")
    return folder
