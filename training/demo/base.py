"""Train the demo's base: an editor that takes the edit as a code in the pooled slot, as Kontext takes it from text.

    x_σ = (1 − σ)·x₀ + σ·noise,   loss = mean( m · (v(x_σ, context, code) − (noise − x₀))² )

Half of the steps are single images (context b, target b′, at the bottom-right quadrant's ids), half are whole grids
a | a′ over b | b. The code is a one-hot kind, RGB and amount. On grids the parameter is left out half of the time, so
that the base also learns to take it from a′; without any code it copies b. Resumes from its checkpoint exactly.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lorweb_core.safetensors_file import write_safetensors_atomically

from ..base.flow import CONTEXT, TARGET, pack_latents, token_ids
from .scenes import ART_SIZE, KINDS, Edit, apply_edit, draw, edits_of, hue_color
from .tiny_kontext import CODE_DIM, build_base, to_bfl
from .vae import encode_art

log = logging.getLogger(__name__)

#: Edits that the base learns slowly occur more often.
KIND_WEIGHTS = {"ground": 2.0, "shape": 2.0, "outline": 2.5, "tint": 1.5, "invert": 1.5}
COPY_SHARE = 0.12
PARAMETER_DROPOUT = 0.5
COPIED_WEIGHT = 0.3
SHIFT = 1.6

STEPS = 6500
SINGLE_IMAGES, GRIDS = 32, 16
#: Peak rates of Muon on the block matrices, and of AdamW on everything else.
MATRIX_RATE, OTHER_RATE = 4e-3, 2e-3
EMA_DECAY = 0.998


@dataclass(frozen=True)
class Batch:
    """Latents of one step; `weights` of the loss, `origin` the first row and column of the position ids."""

    context: Tensor  # [B, 16, h, w]
    target: Tensor  # [B, 16, h, w]
    code: Tensor  # [B, 32]
    weights: Tensor  # [target tokens]
    origin: int


def edit_code(edit: Edit | None, *, has_parameter: bool = True) -> Tensor:
    """The code [32] of an edit; None gives the zero code, which means copy."""
    code = torch.zeros(CODE_DIM)
    if edit is None:
        return code
    code[KINDS.index(edit.kind)] = 1.0
    if edit.hue is not None and has_parameter:
        code[len(KINDS) : len(KINDS) + 3] = torch.from_numpy(hue_color(edit.hue)) * 2 - 1
    if edit.amount is not None and has_parameter:
        code[len(KINDS) + 3] = (edit.amount - 0.5) / 0.15
    return code


def draw_edit(rng: np.random.Generator) -> Edit:
    """A random edit: the kind by `KIND_WEIGHTS`, then its parameter."""
    weights = np.array([KIND_WEIGHTS.get(kind, 1.0) for kind in KINDS])
    kind = KINDS[int(rng.choice(len(KINDS), p=weights / weights.sum()))]
    candidates = edits_of(kinds=[kind])
    return candidates[int(rng.integers(len(candidates)))]


def draw_single_images(rng: np.random.Generator, count: int) -> Batch:
    """Random images with their edits."""
    before, after, codes = [], [], []
    for _ in range(count):
        edit = draw_edit(rng)
        scene = draw(edit, rng)
        is_copy = rng.random() < COPY_SHARE
        before.append(scene.pixels)
        after.append(scene.pixels if is_copy else apply_edit(scene, edit))
        codes.append(edit_code(None if is_copy else edit))
    context, target = (encode_art(torch.from_numpy(np.stack(images))) for images in (before, after))
    return Batch(context, target, torch.stack(codes), torch.ones((ART_SIZE // 2) ** 2), origin=ART_SIZE // 2)


def draw_grids(rng: np.random.Generator, count: int) -> Batch:
    """Random analogies; the context shows b twice, the target shows b′ (or b again for the zero code)."""
    contexts, targets, codes = [], [], []
    for _ in range(count):
        edit = draw_edit(rng)
        first, second = draw(edit, rng), draw(edit, rng)
        is_copy = rng.random() < COPY_SHARE
        b, b_prime = second.pixels, second.pixels if is_copy else apply_edit(second, edit)
        top = np.concatenate([first.pixels, apply_edit(first, edit)], axis=1)
        contexts.append(np.concatenate([top, np.concatenate([b, b], axis=1)]))
        targets.append(np.concatenate([top, np.concatenate([b, b_prime], axis=1)]))
        codes.append(edit_code(None if is_copy else edit, has_parameter=rng.random() >= PARAMETER_DROPOUT))
    context, target = (encode_art(torch.from_numpy(np.stack(grids))) for grids in (contexts, targets))
    weights = torch.full((ART_SIZE, ART_SIZE), COPIED_WEIGHT)
    weights[ART_SIZE // 2 :, ART_SIZE // 2 :] = 1.0
    return Batch(context, target, torch.stack(codes), weights.flatten(), origin=0)


def base_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """The weighted flow-matching loss of a batch, a scalar."""
    count, _, height, width = batch.target.shape
    uniform = torch.rand(count, generator=generator)
    sigmas = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    noise = torch.randn(batch.target.shape, generator=generator)
    noisy = (1 - sigmas.view(-1, 1, 1, 1)) * batch.target + sigmas.view(-1, 1, 1, 1) * noise
    offset = torch.tensor([0.0, batch.origin, batch.origin])
    ids = torch.cat([token_ids(height, width, kind) + offset for kind in (TARGET, CONTEXT)])
    tokens = torch.cat([pack_latents(noisy), pack_latents(batch.context)], dim=1)
    guidance = 1 + 4 * torch.rand(count, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(
            hidden_states=tokens, encoder_hidden_states=torch.zeros(count, 1, CODE_DIM), timestep=sigmas,
            pooled_projections=batch.code, img_ids=ids, txt_ids=torch.zeros(1, 3), guidance=guidance, return_dict=False,
        )[0]  # fmt: skip
    velocity = pack_latents(noise - batch.target)
    errors = (output[:, : velocity.shape[1]].float() - velocity).square().mean((0, 2))
    return (errors * batch.weights).sum() / batch.weights.sum()


def train_base(checkpoint: Path, *, steps: int = STEPS, seed: int = 0) -> nn.Module:
    """The trained base (EMA of its weights), resumed from `checkpoint` if it exists."""
    model = build_base(seed).train()
    named = dict(model.named_parameters())
    ema = {name: parameter.detach().clone() for name, parameter in named.items()}
    is_matrix = {name: p.dim() == 2 and "blocks." in name and "norm" not in name for name, p in named.items()}
    matrices = [parameter for name, parameter in named.items() if is_matrix[name]]
    others = [parameter for name, parameter in named.items() if not is_matrix[name]]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), MATRIX_RATE),
        (torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.0), OTHER_RATE),
    ]
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        ema.update(state["ema"])
        for (optimizer, _), saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = int(state["step"])

    smooth = float("nan")
    for step in range(first, steps):
        rng = np.random.default_rng((seed, step))
        batch = draw_grids(rng, GRIDS) if step % 2 else draw_single_images(rng, SINGLE_IMAGES)
        loss = base_loss(model, batch, torch.Generator().manual_seed(seed * 1_000_003 + step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(ema.values()), [parameter.detach() for parameter in named.values()], 1 - decay)
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            log.info("base step %d of %d: loss %.5f", step + 1, steps, smooth)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            saved = [optimizer.state_dict() for optimizer, _ in optimizers]
            state = {"step": step + 1, "model": model.state_dict(), "ema": ema, "optimizers": saved}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    model.load_state_dict(ema)
    return model.eval()


def save_base(path: Path, model: nn.Module) -> None:
    """Write the base in bfloat16 under BFL names, for ComfyUI and `load_base`."""
    state = {name: tensor.detach().bfloat16().contiguous() for name, tensor in to_bfl(model.state_dict()).items()}
    write_safetensors_atomically(path, state, {"format": "pt", "title": "LoRWeB demo base (tiny FLUX.1-Kontext)"})
