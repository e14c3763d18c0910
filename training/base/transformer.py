"""The frozen base: FLUX.1-Kontext's transformer and codec, loaded from wherever they are, quantized if wished.

The transformer may have any size (tests and the demo use tiny ones); the codec is an `AutoencoderKL` or an
`AutoencoderTiny`. Everything is frozen here, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorweb_core.errors import ModelError
from lorweb_core.preprocessing import read_json_object

from ..config.schema import BaseModelConfig
from .flow import CONTEXT, TARGET, pack_latents, token_ids, unpack_latents
from .quantize import quantize_blocks
from .single_file import read_single_file
from .source import LOADING_ERRORS, ModelSource, damaged_part, read_transformer_config

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Codec:
    """Pixels ⇄ latents as the base was trained on them: z = (encoder(x) − shift) · scale.

    Attributes:
        model: the VAE, frozen, eval.
        scale: its scaling factor.
        shift: its shift factor.
        pixels_per_latent: 8 for FLUX.
        channels: 16 for FLUX.
    """

    model: Any
    scale: float
    shift: float
    pixels_per_latent: int
    channels: int

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, noise: Tensor | None = None) -> Tensor:
        """Return latents [B, C, H/8, W/8] float32 on the codec's device.

        Args:
            pixels: [B, 3, H, W] in −1…1.
            noise: shaped like the result, to sample the posterior mean + std · noise; None takes its mode.
        """
        output = self.model.encode(pixels.to(self.model.device, self.model.dtype))
        if not hasattr(output, "latent_dist"):
            return (output.latents.float() - self.shift) * self.scale
        latents = output.latent_dist.mean.float()
        if noise is not None:
            latents = latents + output.latent_dist.std.float() * noise.to(latents)
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels [B, H, W, 3] float 0–1 on the CPU of latents [B, C, h, w]."""
        latents = latents.to(self.model.device, torch.float32) / self.scale + self.shift
        pixels = self.model.decode(latents.to(self.model.dtype), return_dict=False)[0]
        return (pixels.float().cpu() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def load_transformer(config: BaseModelConfig, source: ModelSource, device: torch.device) -> Any:  # noqa: ANN401 (diffusers model)
    """Return the frozen transformer on its device, its block Linears quantized as the config says.

    Raises: ModelError: unreadable files, or a quantizer that is not installed.
    """
    from diffusers import FluxTransformer2DModel

    dtype = DTYPES[config.dtype]
    values = read_transformer_config(source)
    if source.is_single_file:
        state = read_single_file(source.transformer, dtype=dtype)
        with torch.device("meta"):
            model: Any = FluxTransformer2DModel(**values)
        _load_assigned(model, state, source.transformer)
        _rebuild_position_embedding(model, values)
    else:
        model = _from_folder(source.transformer, dtype)
    model.requires_grad_(False)
    quantize_blocks(model, config.quantize, device)
    model.to(device)
    return model


def load_codec(source: ModelSource, *, dtype: torch.dtype, device: torch.device) -> Codec:
    """Return the VAE of a base.

    Raises: ModelError: when `vae/` is missing or of another class.
    """
    import diffusers

    folder = source.components / "vae"
    try:
        config = read_json_object(folder / "config.json")
    except ModelError as error:
        raise ModelError(f"{error} Or set base.components to a diffusers folder or id that has this part.") from error
    name = config.get("_class_name", "AutoencoderKL")
    if name not in ("AutoencoderKL", "AutoencoderTiny"):
        raise ModelError(
            expected="a VAE of class AutoencoderKL or AutoencoderTiny",
            got=f"{name} in {folder}",
            remedy="Use the VAE of FLUX.1-Kontext-dev.",
        )
    try:
        model = getattr(diffusers, name).from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except LOADING_ERRORS as error:
        raise damaged_part(folder, error) from error
    model.eval().requires_grad_(False).to(device)
    values = model.config
    return Codec(
        model=model,
        scale=float(values.scaling_factor),
        shift=float(getattr(values, "shift_factor", None) or 0.0),
        pixels_per_latent=2 ** (len(values.block_out_channels) - 1),
        channels=int(values.latent_channels),
    )


def _from_folder(folder: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 (diffusers model)
    from diffusers import FluxTransformer2DModel

    try:
        return FluxTransformer2DModel.from_pretrained(
            folder, subfolder="transformer", torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except LOADING_ERRORS as error:
        raise damaged_part(folder / "transformer", error) from error


def _load_assigned(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in own.keys() | state.keys() if own.get(name) != getattr(state.get(name), "shape", 0))
    if wrong:
        raise ModelError(
            expected=f"the {len(own)} tensors of FLUX.1-Kontext-dev in {path.name}",
            got=f"{len(wrong)} missing, unexpected or of another shape, first {wrong[:3]}",
            remedy="Use the published FLUX.1-Kontext-dev file; pruned and merged architectures are not supported.",
        )
    model.load_state_dict(state, assign=True)


def _rebuild_position_embedding(model: Any, values: dict[str, Any]) -> None:  # noqa: ANN401 (diffusers model)
    """Replace what was built on the meta device and has no weights."""
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    model.pos_embed = FluxPosEmbed(theta=10000, axes_dim=values["axes_dims_rope"])


@dataclass(frozen=True)
class Conditioning:
    """What the base is told besides the noisy grid; row i belongs to sample i.

    Attributes:
        context_latents: [B, C, h, w], the grid a | a′ over b | b.
        prompt_embeds: [B, L, D].
        pooled_embeds: [B, D′].
        query_embedding: [B, Q] float32, or None to use the coefficients that were set already.
        guidance: value of the guidance embedding.
    """

    context_latents: Tensor
    prompt_embeds: Tensor
    pooled_embeds: Tensor
    query_embedding: Tensor | None
    guidance: float


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
