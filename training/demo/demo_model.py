"""The trained demo in a few lines: three small pictures in, the fourth out, no ComfyUI and no diffusers pipeline."""

from __future__ import annotations

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
from training.trainable import BasisShape, Conditioning, TrainableKontext

from .analogies import GUIDANCE, answers, generate, grid_latents, null_prompt, packed_noise
from .scenes import ART_SIZE, BLOCK_PX, MODEL_FOLDER, Pixels
from .tiny_flux import load_base


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
    """Return the centre square of any picture as art pixels [12, 12, 3]: all that this model can see of it."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    small = picture.convert("RGB").resize((ART_SIZE, ART_SIZE), Image.Resampling.BOX, box=box)
    return np.asarray(small, np.float32) / np.float32(255)
