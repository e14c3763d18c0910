"""Three images and a basis → the fourth, without ComfyUI: encode, route, mix, sample, undo the grid.

All parts are those of the nodes and the trainer: `lorweb_core`'s grid, encoder, router and mixing, and this package's
Euler steps. The mix is added in the forward pass, one per sample, so quantized bases and batches work alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lorweb_core.basis import Basis, LayerBasis
from lorweb_core.checkpoint import load_basis
from lorweb_core.encoder import ImageEncoder, load_image_encoder
from lorweb_core.errors import ModelError
from lorweb_core.grid import MEGAPIXELS_RANGE, build_grid, undo_grid
from lorweb_core.mixing import add_contribution
from lorweb_core.query import embed_analogy
from lorweb_core.router import route_query
from lorweb_core.settings_sources import PIPELINE_TOKENS, read_training_facts, trained_text_tokens

from ..config.schema import BaseModelConfig
from .flow import SigmaSchedule, read_schedule, sample_latents, target_tokens
from .source import find_source, read_transformer_config
from .text import CaptionTable, encode_captions
from .transformer import DTYPES, VAE, Conditioning, load_transformer, load_vae, predict_velocity


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
class SamplingOptions:
    """How an image is generated."""

    steps: int = 28  # Euler steps
    guidance: float = 2.5  # value of the guidance embedding; the published script uses 2.5
    megapixels: float | None = None  # of the whole grid; None: as in training, 1.0 if the basis does not say
    fit: str = "pad"  # how a and a′ of another shape than b are fitted: `pad`, `crop` or `stretch`
    strength: float = 1.0  # factor on the mixed LoRA; 0 is the base, negative reverses
    seed: int = 0  # of the noise


@dataclass(frozen=True)
class AnalogySampler:
    """Everything that generating needs, loaded once by `load_sampler`."""

    transformer: nn.Module  # the base with `attach_basis` applied
    linears: Mapping[str, MixedLinear]  # what `attach_basis` returned
    basis: Basis
    encoder: ImageEncoder
    vae: VAE
    schedule: SigmaSchedule
    captions: CaptionTable  # embeddings of the prompts that will be used
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def generate(
        self, image_a: Tensor, image_a_prime: Tensor, image_b: Tensor, *, prompt: str = "", options: SamplingOptions,
        on_step: Callable[[], object] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return (b′ in b's size, the whole generated grid), [1, H, W, 3] float 0–1.

        Args:
            image_a, image_a_prime, image_b: [1, H, W, 3] float 0–1, of any sizes.
            prompt: one of `captions`.
            options: steps, guidance, size, strength, seed.
            on_step: called after every sampling step.
        """
        images = (image_a, image_a_prime, image_b)
        query = embed_analogy(
            self.basis.settings, self.encoder.embed, *images, preprocessing=self.encoder.preprocessing
        )
        set_coefficients(self.linears, route_query(self.basis, query), strength=options.strength)
        grid, layout = build_grid(*images, megapixels=self.megapixels(options), fit=options.fit)
        context = self.vae.encode(grid.permute(0, 3, 1, 2) * 2 - 1).to(self.device)
        generator = torch.Generator().manual_seed(options.seed)
        noise = torch.randn(context.shape, generator=generator).to(self.device)
        prompt_embeds, pooled = self.captions.batch([prompt], self.device, self.dtype)
        conditioning = Conditioning(context, prompt_embeds, pooled, None, options.guidance)
        latents = sample_latents(
            lambda x, sigma: predict_velocity(self.transformer, x, sigma, conditioning),
            noise,
            self.schedule.sigmas(options.steps, target_tokens(context)),
            on_step=None if on_step is None else lambda _latents: on_step(),
        )
        generated = self.vae.decode(latents)
        return undo_grid(generated, layout), generated

    def megapixels(self, options: SamplingOptions) -> float:
        """Return the size of the whole grid in units of 1024² pixels; that of training is two cells a side."""
        if options.megapixels is not None:
            return options.megapixels
        cell_px = read_training_facts(self.basis.metadata).get("resolution_px")
        if not isinstance(cell_px, int):
            return 1.0
        lowest, highest = MEGAPIXELS_RANGE
        return min(max((2 * cell_px / 1024) ** 2, lowest), highest)


def load_sampler(
    base: BaseModelConfig, basis_file: Path, prompts: Sequence[str], *, encoder: str | None = None,
    max_tokens: int | None = None, device: torch.device,
) -> AnalogySampler:  # fmt: skip
    """Return a sampler with everything loaded.

    Args:
        base: which base, in which precision.
        basis_file: trained basis.
        prompts: all that will be used; their text encoders are freed before the base is loaded.
        encoder: folder or id of the image encoder; without it the one named in the basis.
        max_tokens: T5 tokens per prompt, pads included; without it as many as the basis was trained with.
        device: of the base.
    Raises LoRWeBError for files that are unusable or do not fit together.
    """
    dtype, basis = DTYPES[base.dtype], load_basis(basis_file)
    name = encoder or basis.settings.encoder_id
    try:
        image_encoder = load_image_encoder(name, device=device)  # before the minutes that the base takes
    except ModelError as error:
        if encoder is not None:
            raise
        raise ModelError(
            f"{basis.name} was trained with the image encoder {name}, which cannot be loaded: {error} "
            "Give its folder or Hugging Face id with --encoder."
        ) from error
    source = find_source(base.model, base.components)
    embeddings = encode_captions(
        prompts, source.components, read_transformer_config(source),
        max_tokens=max_tokens or trained_text_tokens(basis.metadata) or PIPELINE_TOKENS, dtype=dtype, device=device,
    )  # fmt: skip
    captions = dict(embeddings)  # all of them before the base is loaded: the text encoders are gone by then
    transformer = load_transformer(base, source, device).eval()
    return AnalogySampler(
        transformer=transformer,
        linears=attach_basis(transformer, basis),
        basis=basis,
        encoder=image_encoder,
        vae=load_vae(source, dtype=dtype, device=device),
        schedule=read_schedule(source.components),
        captions=CaptionTable(captions.__getitem__),
        device=device,
        dtype=dtype,
    )


def attach_basis(transformer: nn.Module, basis: Basis) -> dict[str, MixedLinear]:
    """Replace the basis' layers in the transformer by `MixedLinear`s, in place, and return them by name.

    Raises ModelError when the base has no such layer, or one of another shape.
    """
    device = next(transformer.parameters()).device
    modules = dict(transformer.named_modules())
    shapes = {name: (getattr(m, "in_features", 0), getattr(m, "out_features", 0)) for name, m in modules.items()}
    layers = basis.layers
    wrong = sorted(n for n, layer in layers.items() if shapes.get(n) != (layer.in_features, layer.out_features))
    if wrong:
        raise ModelError(
            f"The base does not have the {len(layers)} layers of {basis.name}: {len(wrong)} are missing or of another "
            f"shape, first {wrong[:3]}. Use the base that the basis was trained on ({basis.settings.base_model})."
        )
    linears = {}
    for name, layer in layers.items():
        bias = None if layer.lora_bias is None else layer.lora_bias.to(device)
        moved = replace(layer, lora_down=layer.lora_down.to(device), lora_up=layer.lora_up.to(device), lora_bias=bias)
        linears[name] = MixedLinear(modules[name], moved)
        transformer.set_submodule(name, linears[name])
    return linears


def set_coefficients(
    linears: Mapping[str, MixedLinear], coefficients: Mapping[str, Tensor], *, strength: float = 1.0
) -> None:
    """Give every layer its coefficients [B, N]."""
    for name, linear in linears.items():
        linear.coefficients, linear.strength = coefficients[name], strength
