"""Train the demo's base: an editor that takes the edit as a code in the pooled slot, as Kontext takes it from text.

    x_σ = (1 − σ)·x₀ + σ·noise,   loss = mean( m · (v(x_σ, context, code) − (noise − x₀))² )

Half of the steps are single pictures (context b, target b′, at the bottom-right quadrant's ids), half are whole grids
a | a′ over b | b. The code is a one-hot kind, RGB and amount. On grids the parameter is left out half of the time, so
that the base also learns to take it from a′; without any code it copies b. Resumes from its checkpoint exactly.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lorweb_core.files import write_safetensors_atomically
from lorweb_core.grid import tile_2x2

from ..base.flow import CONTEXT, TARGET, pack_latents, token_ids
from .codec import encode_art
from .scenes import ART_SIZE, KINDS, Edit, apply_edit, draw, edits_of, hue_color
from .tiny_flux import CODE_DIM, build_base, to_bfl

log = logging.getLogger(__name__)

#: Edits that the base learns slowly are drawn more often.
KIND_WEIGHTS = {"ground": 2.0, "shape": 2.0, "outline": 2.5, "tint": 1.5, "invert": 1.5}
COPY_SHARE = 0.12
PARAMETER_DROPOUT = 0.5
COPIED_WEIGHT = 0.3
SHIFT = 1.6


@dataclass(frozen=True)
class BaseSettings:
    """How the base is trained.

    Attributes:
        steps: optimizer steps, alternating single pictures and grids.
        cells: single pictures a step.
        grids: grids a step.
        matrix_lr: peak rate of Muon on the block matrices.
        other_lr: peak rate of AdamW on everything else.
        average: decay of the moving average of the weights, which is what is saved.
        seed: of initialization, data and noise.
    """

    steps: int = 6500
    cells: int = 32
    grids: int = 16
    matrix_lr: float = 4e-3
    other_lr: float = 2e-3
    average: float = 0.998
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Latents of one step.

    Attributes:
        context: [B, 16, h, w].
        target: [B, 16, h, w].
        code: [B, 32].
        weights: [target tokens], of the loss.
        origin: the first row and column of the position ids.
    """

    context: Tensor
    target: Tensor
    code: Tensor
    weights: Tensor
    origin: int


def edit_code(edit: Edit | None, *, has_parameter: bool = True) -> Tensor:
    """Return the code [32] of an edit; None is the zero code, which means copy."""
    code = torch.zeros(CODE_DIM)
    if edit is None:
        return code
    code[KINDS.index(edit.kind)] = 1.0
    if edit.hue is not None and has_parameter:
        code[len(KINDS) : len(KINDS) + 3] = torch.from_numpy(hue_color(edit.hue)) * 2 - 1
    if edit.amount is not None and has_parameter:
        code[len(KINDS) + 3] = (edit.amount - 0.5) / 0.15
    return code


def draw_cells(rng: np.random.Generator, count: int) -> Batch:
    """Draw single pictures with their edits."""
    before, after, codes = [], [], []
    for _ in range(count):
        edit = draw_edit(rng)
        scene = draw(edit, rng)
        is_copy = rng.random() < COPY_SHARE
        before.append(scene.pixels)
        after.append(scene.pixels if is_copy else apply_edit(scene, edit))
        codes.append(edit_code(None if is_copy else edit))
    weights = torch.ones((ART_SIZE // 2) ** 2)
    return Batch(_latents(before), _latents(after), torch.stack(codes), weights, origin=ART_SIZE // 2)


def draw_grids(rng: np.random.Generator, count: int) -> Batch:
    """Draw whole analogies; the context shows b twice, the target shows b′ (or b again for the zero code)."""
    pictures: list[list[np.ndarray]] = [[], [], [], []]
    codes = []
    for _ in range(count):
        edit = draw_edit(rng)
        first, second = draw(edit, rng), draw(edit, rng)
        is_copy = rng.random() < COPY_SHARE
        answer = second.pixels if is_copy else apply_edit(second, edit)
        for place, pixels in zip(pictures, (first.pixels, apply_edit(first, edit), second.pixels, answer), strict=True):
            place.append(pixels)
        codes.append(edit_code(None if is_copy else edit, has_parameter=rng.random() >= PARAMETER_DROPOUT))
    a, a_prime, b, b_prime = (_latents(place) for place in pictures)
    weights = torch.full((ART_SIZE, ART_SIZE), COPIED_WEIGHT)
    weights[ART_SIZE // 2 :, ART_SIZE // 2 :] = 1.0
    context, target = tile_2x2(a, a_prime, b, b), tile_2x2(a, a_prime, b, b_prime)
    return Batch(context, target, torch.stack(codes), weights.flatten(), origin=0)


def draw_edit(rng: np.random.Generator) -> Edit:
    """Draw an edit: the kind by `KIND_WEIGHTS`, then its parameter."""
    weights = np.array([KIND_WEIGHTS.get(kind, 1.0) for kind in KINDS])
    kind = KINDS[int(rng.choice(len(KINDS), p=weights / weights.sum()))]
    candidates = edits_of(kinds=[kind])
    return candidates[int(rng.integers(len(candidates)))]


def base_loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
    """Return the weighted flow-matching loss of a batch, a scalar."""
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
    wanted = pack_latents(noise - batch.target)
    errors = (output[:, : wanted.shape[1]].float() - wanted).square().mean((0, 2))
    return (errors * batch.weights).sum() / batch.weights.sum()


def train_base(settings: BaseSettings, checkpoint: Path) -> nn.Module:
    """Return the trained base (moving average of its weights), resuming from `checkpoint` when it is there."""
    model = build_base(settings.seed).train()
    averaged = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizers = _optimizers(model, settings)
    first = _resume(checkpoint, model, averaged, optimizers) if checkpoint.exists() else 0
    started, smooth = time.monotonic(), float("nan")
    for step in range(first, settings.steps):
        rng = np.random.default_rng((settings.seed, step))
        batch = draw_grids(rng, settings.grids) if step % 2 else draw_cells(rng, settings.cells)
        _set_rates(optimizers, settings, step)
        loss = base_loss(model, batch, torch.Generator().manual_seed(settings.seed * 1_000_003 + step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        _average(averaged, model, min(settings.average, (1 + step) / (10 + step)))
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            seconds = (time.monotonic() - started) / (step + 1 - first)
            log.info("base step %d of %d: loss %.5f, %.2f s a step", step + 1, settings.steps, smooth, seconds)
        if (step + 1) % 500 == 0 or step + 1 == settings.steps:
            _save(checkpoint, step + 1, model, averaged, optimizers)
    model.load_state_dict(averaged)
    return model.eval()


def save_base(path: Path, model: nn.Module) -> None:
    """Write the base in bfloat16 under BFL names, for ComfyUI and `load_base`."""
    state = {name: tensor.detach().bfloat16().contiguous() for name, tensor in to_bfl(model.state_dict()).items()}
    write_safetensors_atomically(path, state, {"format": "pt", "title": "LoRWeB demo base (tiny FLUX.1-Kontext)"})


def _latents(pictures: list[np.ndarray]) -> Tensor:
    return encode_art(torch.from_numpy(np.stack(pictures)))


def _optimizers(model: nn.Module, settings: BaseSettings) -> list[torch.optim.Optimizer]:
    is_matrix = {
        name: parameter.dim() == 2 and "blocks." in name and "norm" not in name
        for name, parameter in model.named_parameters()
    }
    matrices = [parameter for name, parameter in model.named_parameters() if is_matrix[name]]
    others = [parameter for name, parameter in model.named_parameters() if not is_matrix[name]]
    muon = torch.optim.Muon(matrices, lr=settings.matrix_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=settings.other_lr, betas=(0.9, 0.99), weight_decay=0.0)]


def _set_rates(optimizers: list[torch.optim.Optimizer], settings: BaseSettings, step: int) -> None:
    factor = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / settings.steps)))
    for optimizer, rate in zip(optimizers, (settings.matrix_lr, settings.other_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def _average(averaged: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    names, parameters = zip(*model.named_parameters(), strict=True)
    with torch.no_grad():
        torch._foreach_lerp_([averaged[name] for name in names], [p.detach() for p in parameters], 1 - decay)


def _save(
    path: Path,
    step: int,
    model: nn.Module,
    averaged: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
) -> None:
    state = {"step": step, "model": model.state_dict(), "averaged": averaged}
    temporary = path.with_suffix(".part")
    torch.save(state | {"optimizers": [optimizer.state_dict() for optimizer in optimizers]}, temporary)
    temporary.replace(path)


def _resume(path: Path, model: nn.Module, averaged: dict[str, Tensor], optimizers: list[torch.optim.Optimizer]) -> int:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    averaged.update(state["averaged"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def main() -> None:
    """Command line: python -m training.demo.base --out FOLDER [--steps N]."""
    parser = argparse.ArgumentParser(description="Train the demo's base model on CPU; resumes when stopped.")
    parser.add_argument("--out", type=Path, required=True, help="folder for base.safetensors and the checkpoint")
    parser.add_argument("--steps", type=int, default=BaseSettings.steps)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = train_base(BaseSettings(steps=arguments.steps), arguments.out / "base_checkpoint.pt")
    save_base(arguments.out / "base.safetensors", model)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
