"""Train the demo's image encoder: a CLIP vision tower small enough to ship, which sees edits as CLIP sees content.

    [E(a), E(a′)] → linear → edit kind (cross-entropy), color and amount (binary cross-entropy);   E → 6 × 6 thumbnail

The heads are linear and thrown away afterwards: what they can read, a linear query projection can read. Held-out kinds,
hues and amounts never occur. Training runs on 12 × 12 art pixels; the patch embedding is then spread over 8-px blocks,
which is exact for block images and averages any other.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lorweb_core.files import write_text_atomically

from .scenes import ART_SIZE, BLOCK_PX, IMAGE_PX, TRAINED_KINDS, apply_edit, draw, edits_of, hue_color

log = logging.getLogger(__name__)

EMBEDDING_DIM = 96
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_CONFIG: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "projection_dim": EMBEDDING_DIM, "attention_dropout": 0.0,
}  # fmt: skip
_ART_PATCH = 2
_THUMBNAIL = 6

STEPS, PAIRS, RATE = 1500, 64, 1.5e-3
#: Added to the embeddings before the heads, against the embeddings' spread of about 1.
NOISE = 0.3


def train_encoder(*, steps: int = STEPS, pairs: int = PAIRS, seed: int = 0) -> nn.Module:
    """The trained encoder for 96-px images, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_encoder(ART_SIZE, _ART_PATCH).train()
        read_kind = nn.Linear(2 * EMBEDDING_DIM, len(TRAINED_KINDS))
        read_parameters = nn.Linear(2 * EMBEDDING_DIM, 4)  # RGB and amount
        read_thumbnail = nn.Linear(EMBEDDING_DIM, 3 * _THUMBNAIL**2)
    heads = nn.ModuleList([read_kind, read_parameters, read_thumbnail])
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rng = np.random.default_rng((seed, step))
        before, after = [], []
        kinds = torch.zeros(pairs, dtype=torch.long)
        targets, mask = torch.zeros(pairs, 4), torch.zeros(pairs, 4)  # of `read_parameters`, where the edit has them
        for row in range(pairs):
            kind = TRAINED_KINDS[int(rng.integers(len(TRAINED_KINDS)))]
            candidates = edits_of(kinds=[kind], is_held_out=False)
            edit = candidates[int(rng.integers(len(candidates)))]
            scene = draw(edit, rng)
            before.append(scene.pixels)
            after.append(apply_edit(scene, edit))
            kinds[row] = TRAINED_KINDS.index(kind)
            if edit.hue is not None:
                targets[row, :3], mask[row, :3] = torch.from_numpy(hue_color(edit.hue)), 1.0
            if edit.amount is not None:
                targets[row, 3], mask[row, 3] = edit.amount, 1.0
        pixels = torch.from_numpy(np.stack(before + after))  # [2·pairs, 12, 12, 3]: all a, then all a′
        pixels = ((pixels - torch.tensor(_MEAN)) / torch.tensor(_STD)).movedim(-1, 1).contiguous()

        embeddings = model(pixel_values=pixels).image_embeds
        noisy = embeddings + NOISE * torch.randn(embeddings.shape, generator=generator)
        joined = torch.cat(noisy.chunk(2), dim=1)
        logits = read_kind(joined)
        errors = nn.functional.binary_cross_entropy_with_logits(read_parameters(joined), targets, reduction="none")
        small = nn.functional.avg_pool2d(pixels, ART_SIZE // _THUMBNAIL).flatten(1)
        loss = (
            nn.functional.cross_entropy(logits, kinds)
            + (errors * mask).sum() / mask.sum()
            + 0.3 * (read_thumbnail(noisy) - small).square().mean()
            + 0.1 * (embeddings.square().mean() - 1).square()
        )
        factor = min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.param_groups[0]["lr"] = RATE * factor
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            right = float((logits.argmax(1) == kinds).float().mean())
            log.info("encoder step %d of %d: loss %.4f, kind right %.2f", step + 1, steps, loss.item(), right)
    return spread_over_blocks(model)


def build_encoder(image_px: int, patch_px: int) -> nn.Module:
    """An untrained encoder for images and patches of a size."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=image_px, patch_size=patch_px, **_CONFIG))


def spread_over_blocks(art_model: nn.Module) -> nn.Module:
    """The same encoder for images of 8-px blocks: each patch weight is shared evenly by its block."""
    model = build_encoder(IMAGE_PX, _ART_PATCH * BLOCK_PX)
    state = art_model.state_dict()
    (name,) = (name for name in state if name.endswith("patch_embedding.weight"))
    blocks = state[name].repeat_interleave(BLOCK_PX, -1).repeat_interleave(BLOCK_PX, -2)
    model.load_state_dict(state | {name: blocks / BLOCK_PX**2})
    return model.eval()


def save_encoder(folder: Path, model: Any) -> None:  # noqa: ANN401 (transformers' classes look untyped)
    """Write a Hugging Face folder: config.json, preprocessor_config.json and bfloat16 weights."""
    model.to(torch.bfloat16).save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": IMAGE_PX},
        "do_center_crop": True, "crop_size": {"height": IMAGE_PX, "width": IMAGE_PX}, "resample": 3,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(_MEAN),
        "image_std": list(_STD), "do_convert_rgb": True,
    }  # fmt: skip
    write_text_atomically(folder / "preprocessor_config.json", json.dumps(preprocessing, indent=2) + "\n")
