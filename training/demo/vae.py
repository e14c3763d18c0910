"""The demo's VAE: an AutoencoderTiny in closed form, exact on images of 8 × 8 px blocks.

    latent channels 0–14 = five copies of RGB in −1…1, channel 15 = their mean        (per block; 8 × 8 mean otherwise)

Encoding is three 2 × 2 means. Decoding undoes the decoder's built-in 3·tanh(z/3) by a piecewise linear function
(hinges, one ReLU each), then repeats each value over its block. The weights are computed here, not trained or shipped.
"""

from __future__ import annotations

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
#: Layers of an AutoencoderTiny: i(n), o(ut) and s(cale) convolutions, r(esidual) blocks, - without weights.
_ENCODER_LAYERS, _DECODER_LAYERS = "irsrrrsrrrsrrro", "i-rrr-srrr-srrr-sro"


def encode_art(pixels: Tensor) -> Tensor:
    """Latents [B, 16, h, w] of art pixels [B, h, w, 3] in 0–1: what the VAE gives for their blocks."""
    colors = pixels.movedim(-1, 1) * 2 - 1
    return torch.cat([colors] * COPIES + [colors.mean(1, keepdim=True)], dim=1)


def decode_art(latents: Tensor) -> Tensor:
    """Art pixels [B, h, w, 3] in 0–1 of latents [B, 16, h, w]."""
    copies = latents[:, : 3 * COPIES].unflatten(1, (COPIES, 3)).mean(1)
    return ((copies.movedim(1, -1) + 1) / 2).clamp(0, 1)


def build_vae() -> nn.Module:
    """The VAE as diffusers' AutoencoderTiny, float32, eval mode."""
    from diffusers import AutoencoderTiny

    channels = 4  # enough for the encoder, and two hundred times faster than ComfyUI's fixed 64
    vae: Any = AutoencoderTiny(
        encoder_block_out_channels=(channels,) * 4, latent_channels=LATENT_CHANNELS, scaling_factor=1.0,
        shift_factor=0.0,
    )  # fmt: skip
    vae.load_state_dict(_vae_tensors(channels))
    return vae.eval()


def comfyui_vae_tensors() -> dict[str, Tensor]:
    """The VAE under ComfyUI's names for a TAESD of FLUX, for `models/vae`; float32, needs no diffusers."""
    tensors = {"vae_scale": torch.tensor(HOST_SCALE), "vae_shift": torch.tensor(HOST_SHIFT)}
    for name, tensor in _vae_tensors(_CHANNELS).items():
        part, _, index, *rest = name.split(".")
        position = int(index) + (1 if part == "decoder" else 0)
        tensors[".".join([f"taesd_{part}", str(position), *rest])] = tensor
    return tensors


def _vae_tensors(encoder_channels: int) -> dict[str, Tensor]:
    """Diffusers' name → tensor; residual blocks stay zero, so they add nothing."""
    state = _zero_layers("encoder", (3, encoder_channels, LATENT_CHANNELS), _ENCODER_LAYERS)
    state |= _zero_layers("decoder", (LATENT_CHANNELS, _CHANNELS, 3), _DECODER_LAYERS)
    encoder = [f"encoder.layers.{index}" for index, kind in enumerate(_ENCODER_LAYERS) if kind in "iso"]
    decoder = [f"decoder.layers.{index}" for index, kind in enumerate(_DECODER_LAYERS) if kind in "iso"]

    state[f"{encoder[0]}.weight"][:3, :, 1, 1] = torch.eye(3)
    for layer in encoder[1:-1]:  # each halves the size: the mean of 2 × 2 pixels
        state[f"{layer}.weight"][:3, :3, 1:, 1:] = torch.eye(3)[:, :, None, None] / 4
    rows = torch.cat([torch.eye(3)] * COPIES + [torch.full((1, 3), 1 / 3)])
    state[f"{encoder[-1]}.weight"][:, :3, 1, 1] = 2 * rows
    state[f"{encoder[-1]}.bias"].fill_(-1.0)

    # Hinges: Σ slope·relu(y − threshold) = (z + 1)/2 where y = 3·tanh(z/3), for z from −1 up.
    knots_z = np.linspace(-1.0, 1.25, _HINGES + 1)
    knots_y = 3 * np.tanh(knots_z / 3)
    slopes = torch.tensor(np.diff(np.diff(knots_z / 2) / np.diff(knots_y), prepend=0.0), dtype=torch.float32)
    thresholds = torch.tensor(knots_y[:-1], dtype=torch.float32)
    for color in range(3):
        rows_of_color = slice(color * _HINGES, (color + 1) * _HINGES)
        state[f"{decoder[0]}.weight"][rows_of_color, color : 3 * COPIES : 3, 1, 1] = 1 / COPIES
        state[f"{decoder[0]}.bias"][rows_of_color] = -thresholds
        state[f"{decoder[1]}.weight"][color, rows_of_color, 1, 1] = slopes
    for layer in decoder[2:]:
        state[f"{layer}.weight"][:3, :3, 1, 1] = torch.eye(3)
    return state


def _zero_layers(part: str, channels: tuple[int, int, int], layers: str) -> dict[str, Tensor]:
    first, width, last = channels
    sizes = {"i": (width, first), "o": (last, width)}
    tensors = {}
    for index, kind in enumerate(layers):
        names = [f".conv.{i}" for i in (0, 2, 4)] if kind == "r" else [] if kind == "-" else [""]
        for name in (f"{part}.layers.{index}{inner}" for inner in names):
            rows, columns = sizes.get(kind, (width, width))
            tensors[f"{name}.weight"] = torch.zeros(rows, columns, 3, 3)
            if kind != "s":
                tensors[f"{name}.bias"] = torch.zeros(rows)
    return tensors
