"""The demo's picture codec: an AutoencoderTiny in closed form, exact on pictures of 8 × 8 px blocks.

    latent channels 0–14 = five copies of RGB in −1…1, channel 15 = their mean        (per block; 8 × 8 mean otherwise)

Encoding is three 2 × 2 means. Decoding undoes the decoder's built-in 3·tanh(z/3) by a piecewise linear function
(hinges, one ReLU each), then repeats each value over its block. Nothing is trained and nothing is shipped: the weights
are made here, for diffusers (`build_codec`) and under the names that ComfyUI reads (`comfyui_vae_tensors`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LATENT_CHANNELS = 16
COPIES = 5
#: ComfyUI's latent format of FLUX: model latent = (VAE latent − shift) · scale.
HOST_SCALE, HOST_SHIFT = 0.3611, 0.1159
_HINGES = 21
_CHANNELS = 64
#: Layers of an AutoencoderTiny, a letter each, see `_zero_layers`.
_ENCODER_LAYERS, _DECODER_LAYERS = "irsrrrsrrrsrrro", "i-rrr-srrr-srrr-sro"


def encode_art(pixels: Tensor) -> Tensor:
    """Return the latents [B, 16, h, w] of art pixels [B, h, w, 3], float 0–1: what the codec gives for their blocks."""
    colors = pixels.movedim(-1, 1) * 2 - 1
    return torch.cat([colors] * COPIES + [colors.mean(1, keepdim=True)], dim=1)


def decode_art(latents: Tensor) -> Tensor:
    """Return the art pixels [B, h, w, 3], float 0–1, of latents [B, 16, h, w]."""
    copies = latents[:, : 3 * COPIES].unflatten(1, (COPIES, 3)).mean(1)
    return ((copies.movedim(1, -1) + 1) / 2).clamp(0, 1)


def build_codec(*, encoder_channels: int = 4) -> nn.Module:
    """Return the codec as diffusers' AutoencoderTiny in float32, eval mode.

    Args:
        encoder_channels: width of the encoder; 4 is enough and two hundred times faster than ComfyUI's fixed 64.
    """
    from diffusers import AutoencoderTiny

    codec: Any = AutoencoderTiny(
        encoder_block_out_channels=(encoder_channels,) * 4,
        latent_channels=LATENT_CHANNELS,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    codec.load_state_dict(_codec_tensors(encoder_channels))
    return codec.eval()


def comfyui_vae_tensors() -> dict[str, Tensor]:
    """Return the codec under ComfyUI's names for a TAESD of FLUX, for `models/vae`; float32, needs no diffusers."""
    tensors = {"vae_scale": torch.tensor(HOST_SCALE), "vae_shift": torch.tensor(HOST_SHIFT)}
    for name, tensor in _codec_tensors(_CHANNELS).items():
        part, _, index, *rest = name.split(".")
        place = int(index) + (1 if part == "decoder" else 0)
        tensors[".".join([f"taesd_{part}", str(place), *rest])] = tensor
    return tensors


def _codec_tensors(encoder_channels: int) -> dict[str, Tensor]:
    """Return name (diffusers') → tensor, residual blocks left at zero: they add nothing."""
    tensors = _zero_layers("encoder", (3, encoder_channels, LATENT_CHANNELS), _ENCODER_LAYERS)
    tensors |= _zero_layers("decoder", (LATENT_CHANNELS, _CHANNELS, 3), _DECODER_LAYERS)
    _fill_encoder(tensors)
    _fill_decoder(tensors)
    return tensors


def _zero_layers(part: str, channels: tuple[int, int, int], layers: str) -> dict[str, Tensor]:
    """Return zeros for a list of layers: i(n), o(ut) and s(cale) convolutions, r(esidual) blocks, - without weights."""
    first, width, last = channels
    sizes = {"i": (width, first), "o": (last, width)}
    tensors = {}
    for index, kind in enumerate(layers):
        names = [f"conv.{i}" for i in (0, 2, 4)] if kind == "r" else [""] if kind != "-" else []
        for name in (".".join(filter(None, (part, "layers", str(index), inner))) for inner in names):
            rows, columns = sizes.get(kind, (width, width))
            tensors[f"{name}.weight"] = torch.zeros(rows, columns, 3, 3)
            if kind != "s":
                tensors[f"{name}.bias"] = torch.zeros(rows)
    return tensors


def _fill_encoder(state: dict[str, Tensor]) -> None:
    state["encoder.layers.0.weight"][:3, :, 1, 1] = torch.eye(3)
    for name in _names(state, "encoder", stride_only=True):
        state[name][:3, :3, 1:, 1:] = torch.eye(3)[:, :, None, None] / 4
    final = state[_names(state, "encoder")[-1]]
    rows = torch.cat([torch.eye(3)] * COPIES + [torch.full((1, 3), 1 / 3)])
    final[:, :3, 1, 1] = 2 * rows
    state[_names(state, "encoder")[-1].replace("weight", "bias")].fill_(-1.0)


def _fill_decoder(state: dict[str, Tensor]) -> None:
    thresholds, slopes = _hinges()
    names = _names(state, "decoder")
    first, first_bias = state[names[0]], state[names[0].replace("weight", "bias")]
    for color in range(3):
        rows = slice(color * _HINGES, (color + 1) * _HINGES)
        first[rows, color : 3 * COPIES : 3, 1, 1] = 1 / COPIES
        first_bias[rows] = -thresholds
    upsampling = _names(state, "decoder", stride_only=True)
    for color in range(3):
        state[upsampling[0]][color, color * _HINGES : (color + 1) * _HINGES, 1, 1] = slopes
    for name in (*upsampling[1:], names[-1]):
        state[name][:3, :3, 1, 1] = torch.eye(3)


def _hinges() -> tuple[Tensor, Tensor]:
    """Return (thresholds, slopes): Σ slope·relu(y − threshold) = (z + 1)/2 where y = 3·tanh(z/3), z from −1 up."""
    knots_z = np.linspace(-1.0, 1.25, _HINGES + 1)
    knots_y = 3 * np.tanh(knots_z / 3)
    steepness = np.diff(knots_z / 2) / np.diff(knots_y)
    slopes = np.diff(steepness, prepend=0.0)
    return torch.tensor(knots_y[:-1], dtype=torch.float32), torch.tensor(slopes, dtype=torch.float32)


def _names(state: dict[str, Tensor], part: str, *, stride_only: bool = False) -> list[str]:
    """Return weight names of the convolutions outside residual blocks; `stride_only` those that change the size."""
    names = [name for name in state if name.startswith(f"{part}.layers.") and name.count(".") == 3]
    weights = [name for name in names if name.endswith(".weight")]
    return [name for name in weights if name.replace("weight", "bias") not in names] if stride_only else weights


def psnr(produced: Tensor, wanted: Tensor) -> float:
    """Return the PSNR in dB of two pictures of the same shape, float 0–1."""
    error = float((produced.double() - wanted.double()).square().mean())
    return 10 * math.log10(1 / max(error, 1e-10))
