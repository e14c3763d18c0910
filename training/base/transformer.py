"""The frozen base: FLUX.1-Kontext's transformer and VAE, loaded from wherever they are, quantized if wished.

The transformer may have any size (tests and the demo use tiny ones); the VAE is an `AutoencoderKL` or an
`AutoencoderTiny`. Everything is frozen here, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorweb_core.errors import ModelError
from lorweb_core.preprocessing import read_json_object

from ..config.schema import BaseModelConfig
from .flow import CONTEXT, TARGET, pack_latents, token_ids, unpack_latents
from .quantize import quantize_blocks
from .single_file import read_single_file
from .source import LOADING_ERRORS, ModelSource, damaged_part, read_transformer_config

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class VAE:
    """Pixels ⇄ latents as the base was trained on them: z = (encoder(x) − shift) · scale."""

    model: Any  # frozen, eval
    scale: float  # its scaling factor
    shift: float  # its shift factor

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return latents [B, C, H/8, W/8] float32 (the mode), on the VAE's device, of pixels [B, 3, H, W] in −1…1."""
        output = self.model.encode(pixels.to(self.model.device, self.model.dtype))
        latents = output.latent_dist.mean if hasattr(output, "latent_dist") else output.latents
        return (latents.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels [B, H, W, 3] float 0–1 on the CPU of latents [B, C, h, w]."""
        latents = latents.to(self.model.device, torch.float32) / self.scale + self.shift
        pixels = self.model.decode(latents.to(self.model.dtype), return_dict=False)[0]
        return (pixels.float().cpu() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def load_vae(source: ModelSource, *, dtype: torch.dtype, device: torch.device) -> VAE:
    """Return the VAE of a base. Raises ModelError when `vae/` is missing, damaged or of another class."""
    import diffusers

    folder = source.components / "vae"
    try:
        config = read_json_object(folder / "config.json")
    except ModelError as error:
        raise ModelError(f"{error} Or set base.components to a diffusers folder or id that has this part.") from error
    name = config.get("_class_name", "AutoencoderKL")
    if name not in ("AutoencoderKL", "AutoencoderTiny"):
        raise ModelError(
            f"{folder} holds a {name}, not an AutoencoderKL or AutoencoderTiny. Use the VAE of FLUX.1-Kontext-dev."
        )
    try:
        model = getattr(diffusers, name).from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except LOADING_ERRORS as error:
        raise damaged_part(folder, error) from error
    model.eval().requires_grad_(False).to(device)
    return VAE(model, float(model.config.scaling_factor), float(getattr(model.config, "shift_factor", None) or 0.0))


def load_transformer(config: BaseModelConfig, source: ModelSource, device: torch.device) -> Any:  # noqa: ANN401 (diffusers model)
    """Return the frozen transformer on its device, its block Linears quantized as the config says.

    Raises ModelError for unreadable files, and a quantizer that is not installed.
    """
    from diffusers import FluxTransformer2DModel
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    dtype, path = DTYPES[config.dtype], source.transformer
    values = read_transformer_config(source)
    if path.is_file():
        state = read_single_file(path, dtype=dtype)
        with torch.device("meta"):
            model: Any = FluxTransformer2DModel(**values)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        given = {name: tensor.shape for name, tensor in state.items()}
        wrong = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
        if wrong:
            raise ModelError(
                f"{path.name} does not have the {len(shapes)} tensors of FLUX.1-Kontext-dev: {len(wrong)} are missing, "
                f"unexpected or of another shape, first {wrong[:3]}. Use the published file; pruned and merged "
                "architectures are not supported."
            )
        model.load_state_dict(state, assign=True)
        model.pos_embed = FluxPosEmbed(theta=10000, axes_dim=values["axes_dims_rope"])  # has no weights; was on meta
    else:
        try:
            model = FluxTransformer2DModel.from_pretrained(
                path, subfolder="transformer", torch_dtype=dtype, local_files_only=True, use_safetensors=True
            )
        except LOADING_ERRORS as error:
            raise damaged_part(path / "transformer", error) from error
    model.requires_grad_(False)
    quantize_blocks(model, config.quantize, device)
    model.to(device)
    return model


@dataclass(frozen=True)
class Conditioning:
    """What the base gets besides the noisy grid; row i belongs to sample i."""

    context_latents: Tensor  # [B, C, h, w], the grid a | a′ over b | b
    prompt_embeds: Tensor  # [B, L, D]
    pooled_embeds: Tensor  # [B, D′]
    query_embedding: Tensor | None  # [B, Q] float32, or None to use the coefficients that were set already
    guidance: float  # value of the guidance embedding


def predict_velocity(
    transformer: Any,  # noqa: ANN401 (a FLUX transformer, maybe wrapped)
    noisy: Tensor,
    sigmas: Tensor,
    conditioning: Conditioning,
) -> Tensor:
    """Return the transformer's velocity [B, C, h, w] for the target tokens, in its own dtype.

    Sequence: target tokens, then context tokens; timestep is σ (the model multiplies by 1000).
    """
    dtype, device = conditioning.prompt_embeds.dtype, noisy.device
    height, width = noisy.shape[-2:]
    context_height, context_width = conditioning.context_latents.shape[-2:]
    tokens = pack_latents(noisy.to(dtype))
    context = pack_latents(conditioning.context_latents.to(dtype))
    ids = [
        token_ids(height, width, TARGET, device=device),
        token_ids(context_height, context_width, CONTEXT, device=device),
    ]
    guidance = None
    if transformer.config.guidance_embeds:
        guidance = torch.full((noisy.shape[0],), conditioning.guidance, device=device, dtype=torch.float32)
    output = transformer(
        hidden_states=torch.cat([tokens, context], dim=1),
        encoder_hidden_states=conditioning.prompt_embeds,
        pooled_projections=conditioning.pooled_embeds,
        timestep=sigmas.to(device=device, dtype=torch.float32),
        img_ids=torch.cat(ids).to(dtype),
        txt_ids=torch.zeros(conditioning.prompt_embeds.shape[1], 3, device=device, dtype=dtype),
        guidance=guidance,
        return_dict=False,
    )[0]
    return unpack_latents(output[:, : tokens.shape[1]], height, width)
