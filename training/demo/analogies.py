"""Analogies with known answers, the trained demo that answers them, and their scores.

PSNR of b′ over the whole image and over the art pixels that the edit changes; an edit counts as right if, among all
edits of b (and b itself), the true b′ is nearest to the generated one.
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
from lorweb_core.query import embed_analogy

from ..adapter.trainable import BasisShape, TrainableKontext
from ..base.flow import Predict, SigmaSchedule, sample_latents, target_tokens
from ..base.transformer import Conditioning
from .scenes import ART_SIZE, BLOCK_PX, MODEL_FOLDER, Edit, Pixels, Scene, all_edits, apply_edit, draw
from .tiny_kontext import CODE_DIM, load_base
from .vae import decode_art, encode_art

STEPS = 8
GUIDANCE = 2.5
PSNR_CEILING_DB = 60.0


@dataclass(frozen=True)
class Analogy:
    """One question with its answer."""

    edit: Edit
    scene_a: Scene
    scene_b: Scene

    @property
    def images(self) -> tuple[Pixels, Pixels, Pixels, Pixels]:
        """Art pixels [12, 12, 3] of a, a′, b and the true b′."""
        a, b = self.scene_a, self.scene_b
        return a.pixels, apply_edit(a, self.edit), b.pixels, apply_edit(b, self.edit)


@dataclass(frozen=True)
class Score:
    """One generated b′: PSNR in dB of the whole image and of the changed region, and whether the edit is right."""

    edit: Edit
    whole_db: float
    changed_db: float
    is_right: bool


def draw_analogies(edits: Sequence[Edit], *, per_edit: int, seed: int, photos: Sequence[str]) -> list[Analogy]:
    """`per_edit` analogies of every edit; both scenes of each are new."""
    rng = np.random.default_rng(seed)
    return [
        Analogy(edit, draw(edit, rng, photos=photos), draw(edit, rng, photos=photos))
        for edit in edits
        for _ in range(per_edit)
    ]


def stack_images(analogies: Sequence[Analogy]) -> list[Tensor]:
    """a, a′, b and b′ of all analogies, each [B, 12, 12, 3]."""
    return [torch.from_numpy(np.stack(part)) for part in zip(*(x.images for x in analogies), strict=True)]


def context_latents(a: Tensor, a_prime: Tensor, b: Tensor) -> Tensor:
    """Latents [B, 16, 24, 24] of the grids a | a′ over b | b, of art pixels [B, 12, 12, 3]."""
    top, bottom = torch.cat([a, a_prime], dim=2), torch.cat([b, b], dim=2)
    return encode_art(torch.cat([top, bottom], dim=1))


def generate(predict: Predict, context: Tensor, *, seed: int = 0) -> Tensor:
    """Latents [B, C, h, w] from Kontext's schedule; example i starts from the stock pipeline's noise of seed + i."""
    generators = (torch.Generator().manual_seed(seed + i) for i in range(context.shape[0]))
    noise = torch.cat([torch.randn(1, *context.shape[1:], generator=generator) for generator in generators])
    return sample_latents(predict, noise, SigmaSchedule().sigmas(STEPS, target_tokens(noise)))


def answers(latents: Tensor) -> Tensor:
    """The bottom-right quadrants [B, 12, 12, 3] of generated grids."""
    return decode_art(latents[..., ART_SIZE:, ART_SIZE:])


def null_prompt(count: int) -> tuple[Tensor, Tensor]:
    """The zero prompt [B, 1, 32] and zero pooled vector [B, 32] that stand for no text."""
    return torch.zeros(count, 1, CODE_DIM), torch.zeros(count, CODE_DIM)


def score(generated: Tensor, analogies: Sequence[Analogy]) -> list[Score]:
    """The score of every generated b′ [B, 12, 12, 3]."""
    scores = []
    for answer, analogy in zip(generated.numpy(), analogies, strict=True):
        _, _, b, truth = analogy.images
        errors = np.square(answer.astype(np.float64) - truth).mean(-1)
        is_changed = (truth != b).any(-1)
        changed = errors[is_changed] if is_changed.any() else errors
        candidates = [b, *(apply_edit(analogy.scene_b, edit) for edit in all_edits() if analogy.scene_b.takes(edit))]
        nearest = min(candidates, key=lambda candidate: float(np.square(candidate - answer).sum()))
        scores.append(Score(analogy.edit, _decibels(errors), _decibels(changed), bool(np.array_equal(nearest, truth))))
    return scores


def _decibels(errors: np.ndarray) -> float:
    return min(PSNR_CEILING_DB, -10 * math.log10(max(float(errors.mean()), 1e-12)))


@dataclass(frozen=True)
class DemoModel:
    """Base, basis and encoder: three small images in, the fourth out, without ComfyUI or a diffusers pipeline."""

    kontext: TrainableKontext
    basis: Basis
    encoder: ImageEncoder

    @torch.no_grad()
    def answer(self, image_a: Tensor, image_a_prime: Tensor, image_b: Tensor, *, seed: int = 0) -> Tensor:
        """b̂′ for art pixels a, a′, b; all are [B, 12, 12, 3] in 0–1."""
        context = context_latents(image_a, image_a_prime, image_b)
        query = self._query(image_a, image_a_prime, image_b)
        conditioning = Conditioning(context, *null_prompt(len(image_b)), query, GUIDANCE)
        latents = generate(lambda noisy, sigmas: self.kontext.predict(noisy, sigmas, conditioning), context, seed=seed)
        return answers(latents)

    def coefficients(self, image_a: Tensor, image_a_prime: Tensor, image_b: Tensor) -> Coefficients:
        """The coefficients of analogies given as art pixels."""
        return encode_coefficients(self.basis, self._query(image_a, image_a_prime, image_b))

    def _query(self, *images: Tensor) -> Tensor:
        blocks = [image.repeat_interleave(BLOCK_PX, 1).repeat_interleave(BLOCK_PX, 2) for image in images]
        return embed_analogy(self.basis.settings, self.encoder.embed, *blocks)


def load_demo(
    model: Path = MODEL_FOLDER, *, basis_file: Path | None = None, encoder: ImageEncoder | None = None
) -> DemoModel:
    """The demo of a folder with base.safetensors, basis.safetensors and encoder/, or another basis on the same base."""
    basis = load_basis(basis_file or model / "basis.safetensors")
    first = next(iter(basis.layers.values()))
    shape = BasisShape(first.basis_size, first.rank, first.key_dim, basis.query_dim)
    kontext = TrainableKontext(
        load_base(model / "base.safetensors"), shape, basis.settings, include=tuple(basis.layers)
    )
    kontext.load_basis(basis)
    return DemoModel(kontext.eval(), basis, encoder or load_image_encoder(model / "encoder"))


def to_art(image: Image.Image) -> Pixels:
    """The center square of any image as art pixels [12, 12, 3]: all that this model can see of it."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    small = image.convert("RGB").resize((ART_SIZE, ART_SIZE), Image.Resampling.BOX, box=box)
    return np.asarray(small, np.float32) / np.float32(255)
