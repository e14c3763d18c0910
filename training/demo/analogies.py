"""Analogies with known answers, their generation with the tiny base, and their scores.

PSNR of b′ over the whole picture and over the art pixels that the edit changes; an edit counts as right when, among
all edits of b (and b itself), the true b′ is nearest to the produced one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lorweb_core.basis import Basis
from lorweb_core.checkpoint import load_basis
from lorweb_core.coefficients import Coefficients, encode_coefficients
from lorweb_core.encoder import ImageEncoder, load_image_encoder
from lorweb_core.grid import tile_2x2
from lorweb_core.query import embed_analogy

from ..adapter.trainable import BasisShape, TrainableKontext
from ..base.flow import Predict, SigmaSchedule, sample_latents, target_tokens
from ..base.transformer import Conditioning
from .codec import decode_art, encode_art
from .scenes import ART_SIZE, BLOCK_PX, MODEL_FOLDER, Edit, Pixels, Scene, all_edits, apply_edit, draw
from .tiny_flux import CODE_DIM, load_base

STEPS = 8
GUIDANCE = 2.5
PSNR_CEILING_DB = 60.0


@dataclass(frozen=True)
class Analogy:
    """One question with its answer; pictures are art pixels [12, 12, 3]."""

    edit: Edit
    scene_a: Scene
    scene_b: Scene

    @property
    def pictures(self) -> tuple[Pixels, Pixels, Pixels, Pixels]:
        """a, a′, b and the true b′."""
        a, b = self.scene_a, self.scene_b
        return a.pixels, apply_edit(a, self.edit), b.pixels, apply_edit(b, self.edit)


@dataclass(frozen=True)
class Score:
    """Scores of one produced b′: PSNR in dB of the whole picture and the changed region, and whether it is right."""

    edit: Edit
    whole_db: float
    changed_db: float
    is_right: bool


def draw_analogies(edits: Sequence[Edit], *, per_edit: int, seed: int, photos: Sequence[str]) -> list[Analogy]:
    """Draw `per_edit` analogies of every edit; both scenes of one analogy are new."""
    rng = np.random.default_rng(seed)
    return [
        Analogy(edit, draw(edit, rng, photos=photos), draw(edit, rng, photos=photos))
        for edit in edits
        for _ in range(per_edit)
    ]


def grid_latents(top_left: Tensor, top_right: Tensor, bottom_left: Tensor, bottom_right: Tensor) -> Tensor:
    """Return the latents [B, 16, 24, 24] of the 2 × 2 grids of art pixels [B, 12, 12, 3]."""
    return encode_art(tile_2x2(top_left, top_right, bottom_left, bottom_right, dims=(1, 2)))


def context_latents(analogies: Sequence[Analogy]) -> Tensor:
    """Return the latents [B, 16, 24, 24] of the grids a | a′ over b | b."""
    a, a_prime, b, _ = (torch.from_numpy(np.stack(part)) for part in zip(*(x.pictures for x in analogies), strict=True))
    return grid_latents(a, a_prime, b, b)


def packed_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Return noise [B, C, h, w]; sample i is what the stock pipeline draws with a CPU generator seeded `seed + i`."""
    _, *size = shape
    return torch.cat(
        [torch.randn(1, *size, generator=torch.Generator().manual_seed(seed + i)) for i in range(shape[0])]
    )


def generate(predict: Predict, noise: Tensor, *, steps: int = STEPS) -> Tensor:
    """Return the latents [B, C, h, w] that Kontext's schedule reaches from noise alike."""
    return sample_latents(predict, noise, SigmaSchedule().sigmas(steps, target_tokens(noise)))


def answers(latents: Tensor) -> Tensor:
    """Return the bottom-right quadrants [B, 12, 12, 3] of generated grids."""
    return decode_art(latents[..., ART_SIZE:, ART_SIZE:])


def score(produced: Tensor, analogies: Sequence[Analogy]) -> list[Score]:
    """Return the score of every produced b′ [B, 12, 12, 3]."""
    return [_score(answer.numpy(), analogy) for answer, analogy in zip(produced, analogies, strict=True)]


def _score(answer: Pixels, analogy: Analogy) -> Score:
    _, _, b, wanted = analogy.pictures
    is_changed = (wanted != b).any(-1)
    errors = np.square(answer.astype(np.float64) - wanted).mean(-1)
    candidates = [b, *(apply_edit(analogy.scene_b, edit) for edit in all_edits() if analogy.scene_b.takes(edit))]
    nearest = min(candidates, key=lambda candidate: float(np.square(candidate - answer).sum()))
    changed = errors[is_changed] if is_changed.any() else errors
    return Score(analogy.edit, _decibels(errors), _decibels(changed), bool(np.array_equal(nearest, wanted)))


def _decibels(errors: np.ndarray) -> float:
    return min(PSNR_CEILING_DB, -10 * math.log10(max(float(errors.mean()), 1e-12)))


def null_prompt(count: int) -> tuple[Tensor, Tensor]:
    """Return the zero prompt [B, 1, 32] and pooled vector [B, 32] that stand for no text."""
    return torch.zeros(count, 1, CODE_DIM), torch.zeros(count, CODE_DIM)


# The trained demo in a few lines: three small pictures in, the fourth out, no ComfyUI and no diffusers pipeline.


@dataclass(frozen=True)
class DemoModel:
    """Base, basis and encoder, ready to answer."""

    kontext: TrainableKontext
    basis: Basis
    encoder: ImageEncoder

    @torch.no_grad()
    def answer(self, image_a: Tensor, image_a_prime: Tensor, image_b: Tensor, *, seed: int = 0) -> Tensor:
        """Return b̂′ as art pixels [B, 12, 12, 3], float 0–1, of art pixels a, a′, b alike."""
        prompt, pooled = null_prompt(image_b.shape[0])
        context = grid_latents(image_a, image_a_prime, image_b, image_b)
        query = self._query(image_a, image_a_prime, image_b)
        conditioning = Conditioning(context, prompt, pooled, query, GUIDANCE)
        noise = packed_noise(context.shape, seed)
        return answers(generate(lambda noisy, sigmas: self.kontext.predict(noisy, sigmas, conditioning), noise))

    def coefficients(self, image_a: Tensor, image_a_prime: Tensor, image_b: Tensor) -> Coefficients:
        """Return the coefficients of analogies given as art pixels; the trainer's gain lies in the basis."""
        return encode_coefficients(self.basis, self._query(image_a, image_a_prime, image_b))

    def _query(self, *pictures: Tensor) -> Tensor:
        blocks = [part.repeat_interleave(BLOCK_PX, 1).repeat_interleave(BLOCK_PX, 2) for part in pictures]
        return embed_analogy(self.basis.settings, self.encoder.embed, *blocks)


def load_demo(
    model: Path = MODEL_FOLDER, *, basis_file: Path | None = None, encoder: ImageEncoder | None = None
) -> DemoModel:
    """Return the shipped demo, or another basis on the same base.

    Args:
        model: folder with base.safetensors, encoder/ and basis.safetensors.
        basis_file: instead of the folder's.
        encoder: instead of loading the folder's once more.
    """
    basis = load_basis(basis_file or model / "basis.safetensors")
    first = next(iter(basis.layers.values()))
    shape = BasisShape(first.basis_size, first.rank, first.key_dim, basis.query_dim)
    kontext = TrainableKontext(
        load_base(model / "base.safetensors"), shape, basis.settings, include=tuple(basis.layers)
    )
    kontext.load_basis(basis)
    return DemoModel(kontext.eval(), basis, encoder or load_image_encoder(model / "encoder"))


def to_art(picture: Image.Image) -> Pixels:
    """Return the center square of any picture as art pixels [12, 12, 3]: all that this model can see of it."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    small = picture.convert("RGB").resize((ART_SIZE, ART_SIZE), Image.Resampling.BOX, box=box)
    return np.asarray(small, np.float32) / np.float32(255)
