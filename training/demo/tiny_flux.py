"""The demo's base: a FLUX.1-Kontext transformer of the true architecture with 2.1 M parameters, and its shipped file.

The file carries the names of Black Forest Labs' code, which ComfyUI's UNETLoader reads as it is; `load_base` maps them
to diffusers' names (diffusers' own converter only knows the full width). One line of `_LINEARS` is one fused weight of
the file and the diffusers Linears that it stacks, row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

CONFIG = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
CODE_DIM = 32

_OUTSIDE = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_DOUBLE = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
_DOUBLE_SCALES = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
_SINGLE_SCALES = {"norm.query_norm.scale": "attn.norm_q.weight", "norm.key_norm.scale": "attn.norm_k.weight"}
#: FLUX's last modulation gives (shift, scale); diffusers keeps (scale, shift).
_SWAPPED_HALVES = "final_layer.adaLN_modulation.1"


def build_base(seed: int) -> FluxTransformer2DModel:
    """Return an untrained base, initialised so that the edit code enters linearly and steers through modulation.

    The pooled vector passes the flat part of SiLU (large bias, undone behind it), and the time embedding sits at +2:
    so the input of every modulation Linear is nearly constant plus a linear function of the code. A low-rank change of
    these Linears can therefore do what the code does.
    """
    from diffusers import FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FluxTransformer2DModel(**CONFIG)
        with torch.no_grad():
            _initialise(model)
    return model


def load_base(path: Path, *, dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    """Return the shipped base (BFL names) as a diffusers model in eval mode."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import load_file

    model = FluxTransformer2DModel(**CONFIG)
    model.load_state_dict(from_bfl(load_file(path)))
    return model.to(dtype).eval()


def to_bfl(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a diffusers state dict under BFL names, fused Linears stacked."""
    result = {}
    for name, parts in _fused_linears().items():
        for kind in ("weight", "bias"):
            stacked = torch.cat([state[f"{part}.{kind}"] for part in parts])
            result[f"{name}.{kind}"] = _swap_halves(stacked) if name == _SWAPPED_HALVES else stacked
    return result | {name: state[part] for name, part in _scales().items()}


def from_bfl(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a BFL state dict under diffusers' names, the inverse of `to_bfl`."""
    sizes = {name: parameter.shape[0] for name, parameter in _meta_model().named_parameters()}
    result = {}
    for name, parts in _fused_linears().items():
        for kind in ("weight", "bias"):
            stacked = state[f"{name}.{kind}"]
            stacked = _swap_halves(stacked) if name == _SWAPPED_HALVES else stacked
            pieces = stacked.split([sizes[f"{part}.{kind}"] for part in parts])
            result |= {f"{part}.{kind}": piece for part, piece in zip(parts, pieces, strict=True)}
    return result | {part: state[name] for name, part in _scales().items()}


def _initialise(model: FluxTransformer2DModel) -> None:
    text, time = model.time_text_embed.text_embedder, model.time_text_embed.timestep_embedder
    nn.init.orthogonal_(text.linear_1.weight)
    text.linear_1.bias.fill_(3.0)
    text.linear_2.weight.normal_(std=0.1)
    text.linear_2.bias.copy_(-text.linear_2.weight @ nn.functional.silu(text.linear_1.bias))
    time.linear_2.bias.fill_(2.0)
    model.time_text_embed.guidance_embedder.linear_2.weight.zero_()
    model.time_text_embed.guidance_embedder.linear_2.bias.zero_()
    for name, module in model.named_modules():
        if name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear")):
            module.weight.normal_(std=0.02)
            module.bias.zero_()
            chunks = module.bias.chunk(module.bias.shape[0] // 128)
            for gate in chunks[2::3]:
                gate.fill_(0.5)
    model.proj_out.weight.zero_()
    model.proj_out.bias.zero_()


def _meta_model() -> FluxTransformer2DModel:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(**CONFIG)


def _fused_linears() -> dict[str, tuple[str, ...]]:
    names = dict(_OUTSIDE)
    for file_prefix, prefix, table in _blocks(_DOUBLE, _SINGLE):
        names |= {f"{file_prefix}.{name}": tuple(f"{prefix}.{part}" for part in parts) for name, parts in table.items()}
    return names


def _scales() -> dict[str, str]:
    names = {}
    for file_prefix, prefix, table in _blocks(_DOUBLE_SCALES, _SINGLE_SCALES):
        names |= {f"{file_prefix}.{name}": f"{prefix}.{part}" for name, part in table.items()}
    return names


def _blocks(double: dict, single: dict) -> list[tuple[str, str, dict]]:
    doubles = [(f"double_blocks.{i}", f"transformer_blocks.{i}", double) for i in range(CONFIG["num_layers"])]
    singles = [
        (f"single_blocks.{i}", f"single_transformer_blocks.{i}", single) for i in range(CONFIG["num_single_layers"])
    ]
    return doubles + singles


def _swap_halves(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.cat([second, first])
