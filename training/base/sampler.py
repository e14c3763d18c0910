"""Three pictures and a basis → the fourth, without ComfyUI: encode, route, mix, sample, undo the grid.

All parts are those of the nodes and the trainer: `lorweb_core`'s grid, encoder, router and mixing, and this package's
Euler steps. The mix is added in the forward pass, one per sample, so quantized bases and batches work alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorweb_core.basis import Basis, LayerBasis
from lorweb_core.encoder import ImageEncoder
from lorweb_core.errors import ModelError
from lorweb_core.grid import MEGAPIXELS_RANGE, build_grid, undo_grid
from lorweb_core.mixing import add_contribution
from lorweb_core.query import embed_analogy
from lorweb_core.router import route_query
from lorweb_core.settings_sources import read_training_facts

from .flow import SigmaSchedule, sample_latents, target_tokens
from .text import CaptionTable
from .transformer import Codec, Conditioning, predict_velocity


class MixedLinear(nn.Module):
    """A base Linear plus one mix of a finished basis per sample; without coefficients the base alone."""

    def __init__(self, base: nn.Module, layer: LayerBasis) -> None:
        super().__init__()
        self.base, self.layer = base, layer
        self.coefficients: Tensor | None = None
        self.strength = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return base(x) + strength · contribution; x [B, ..., in]."""
        output = self.base(x)
        if self.coefficients is None:
            return output
        return add_contribution(output, x, self.layer, self.coefficients, strength=self.strength)


@dataclass(frozen=True)
class DrawOptions:
    """How a picture is drawn.

    Attributes:
        steps: Euler steps.
        guidance: value of the guidance embedding; the published script uses 2.5.
        megapixels: of the whole grid; None: as the basis was trained, 1.0 where its file does not say.
        fit: how a and a′ of another shape than b are fitted: `pad`, `crop` or `stretch`.
        strength: factor on the mixed LoRA; 0 is the base, negative reverses.
        seed: of the noise.
    """

    steps: int = 28
    guidance: float = 2.5
    megapixels: float | None = None
    fit: str = "pad"
    strength: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class AnalogySampler:
    """Everything that drawing needs, loaded once.

    Attributes:
        transformer: the base with `attach_basis` applied.
        linears: what `attach_basis` returned.
        basis: for routing.
        encoder: the basis' image encoder.
        codec: the base's VAE.
        schedule: the base's sigmas.
        captions: embeddings of the prompts that will be used.
        device: of the base.
        dtype: of the base.
    """

    transformer: nn.Module
    linears: Mapping[str, MixedLinear]
    basis: Basis
    encoder: ImageEncoder
    codec: Codec
    schedule: SigmaSchedule
    captions: CaptionTable
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def draw(
        self,
        image_a: Tensor,
        image_a_prime: Tensor,
        image_b: Tensor,
        *,
        prompt: str = "",
        options: DrawOptions,
        on_step: Callable[[], object] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (b′ in b's size, the whole generated grid), [1, H, W, 3] float 0–1.

        Args:
            image_a, image_a_prime, image_b: [1, H, W, 3] float 0–1, of any sizes.
            prompt: one of `captions`.
            options: steps, guidance, size, strength, seed.
            on_step: called after every sampling step.
        """
        self._set_mix(image_a, image_a_prime, image_b, options.strength)
        grid, layout = build_grid(image_a, image_a_prime, image_b, megapixels=self.megapixels(options), fit=options.fit)
        context = self.codec.encode(grid.permute(0, 3, 1, 2) * 2 - 1).to(self.device)
        generator = torch.Generator().manual_seed(options.seed)
        noise = torch.randn(context.shape, generator=generator).to(self.device)
        prompt_embeds, pooled = self.captions.batch([prompt], self.device, self.dtype)
        conditioning = Conditioning(context, prompt_embeds, pooled, None, options.guidance)
        sigmas = self.schedule.sigmas(options.steps, target_tokens(context))
        latents = sample_latents(
            lambda x, sigma: predict_velocity(self.transformer, x, sigma, conditioning), noise, sigmas,
            on_step=None if on_step is None else lambda _latents: on_step(),
        )  # fmt: skip
        generated = self.codec.decode(latents)
        return undo_grid(generated, layout), generated

    def megapixels(self, options: DrawOptions) -> float:
        """Return the size of the whole grid in units of 1024² pixels; that of training is two cells a side."""
        if options.megapixels is not None:
            return options.megapixels
        cell_px = read_training_facts(self.basis.metadata).get("resolution_px")
        if not isinstance(cell_px, int):
            return 1.0
        lowest, highest = MEGAPIXELS_RANGE
        return min(max((2 * cell_px / 1024) ** 2, lowest), highest)

    def _set_mix(self, image_a: Tensor, image_a_prime: Tensor, image_b: Tensor, strength: float) -> None:
        query = embed_analogy(
            self.basis.settings, self.encoder.embed, image_a, image_a_prime, image_b,
            preprocessing=self.encoder.preprocessing,
        )  # fmt: skip
        set_coefficients(self.linears, route_query(self.basis, query), strength=strength)


def attach_basis(transformer: nn.Module, basis: Basis) -> dict[str, MixedLinear]:
    """Replace the basis' layers in the transformer by `MixedLinear`s, in place, and return them by name.

    Raises: ModelError: when the base has no such layer, or one of another shape.
    """
    device = next(transformer.parameters()).device
    modules = dict(transformer.named_modules())
    wrong = [name for name, layer in basis.layers.items() if not _fits(modules.get(name), layer)]
    if wrong:
        raise ModelError(
            expected=f"a base with the {len(basis.layers)} layers of {basis.name}",
            got=f"{len(wrong)} missing or of another shape, first {sorted(wrong)[:3]}",
            remedy=f"Use the base that the basis was trained on ({basis.settings.base_model}).",
        )
    linears = {}
    for name, layer in basis.layers.items():
        parent, _, child = name.rpartition(".")
        linears[name] = MixedLinear(modules[name], _on_device(layer, device))
        transformer.get_submodule(parent).register_module(child, linears[name])
    return linears


def set_coefficients(
    linears: Mapping[str, MixedLinear], coefficients: Mapping[str, Tensor], *, strength: float = 1.0
) -> None:
    """Give every layer its coefficients [B, N]."""
    for name, linear in linears.items():
        linear.coefficients, linear.strength = coefficients[name], strength


def _fits(module: Any, layer: LayerBasis) -> bool:  # noqa: ANN401 (any module or None)
    sizes = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return sizes == (layer.in_features, layer.out_features)


def _on_device(layer: LayerBasis, device: torch.device) -> LayerBasis:
    bias = None if layer.lora_bias is None else layer.lora_bias.to(device)
    return replace(layer, lora_down=layer.lora_down.to(device), lora_up=layer.lora_up.to(device), lora_bias=bias)
