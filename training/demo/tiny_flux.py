"""The demo's base: a FLUX.1-Kontext transformer of the true architecture with 2.1 M parameters, and its shipped file.

The file carries the names of Black Forest Labs' code, which ComfyUI's UNETLoader reads as it is; `load_base` maps them
to diffusers' names (diffusers' own converter only knows the full width).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.bfl_names import BLOCKS, OUTSIDE, from_bfl

CONFIG: dict[str, Any] = {
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


def build_base(seed: int) -> nn.Module:
    """Return an untrained base, initialised so that the edit code enters linearly and steers through modulation.

    The pooled vector passes the flat part of SiLU (large bias, undone behind it), and the time embedding sits at +2:
    so the input of every modulation Linear is nearly constant plus a linear function of the code. A low-rank change of
    these Linears can therefore do what the code does.
    """
    from diffusers import FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = FluxTransformer2DModel(**CONFIG)
        with torch.no_grad():
            _initialise(model)
    return model


def load_base(path: Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the shipped base (BFL names) as a diffusers model in eval mode."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import load_file

    model: Any = FluxTransformer2DModel(**CONFIG)
    model.load_state_dict(from_bfl(load_file(path), path.name))
    if dtype != torch.float32:  # diffusers warns of any cast, though no module here has to stay in float32
        model.to(dtype)
    return model.eval()


def to_bfl(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a diffusers state dict under BFL names, fused Linears stacked; `from_bfl` undoes it."""
    result = {}
    for name, parts in _file_modules().items():
        for kind in ("weight", "bias"):
            if f"{parts[0]}.{kind}" not in state:
                continue
            stacked = torch.cat([state[f"{part}.{kind}"] for part in parts])
            if parts == ("norm_out.linear",):  # FLUX gives (shift, scale); diffusers keeps (scale, shift)
                stacked = torch.cat(stacked.chunk(2)[::-1])
            result[f"{name}.{'scale' if name.endswith('_norm') else kind}"] = stacked.contiguous()
    return result


def _initialise(model: Any) -> None:  # noqa: ANN401 (diffusers has no types)
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


def _file_modules() -> dict[str, tuple[str, ...]]:
    """Return each module of the file → the diffusers modules that it stacks."""
    names: dict[str, tuple[str, ...]] = {name: (part,) for name, part in OUTSIDE.items()}
    for file_list, count in (("double_blocks", CONFIG["num_layers"]), ("single_blocks", CONFIG["num_single_layers"])):
        block_list, table = BLOCKS[file_list]
        for index in range(count):
            for name, parts in table.items():
                names[f"{file_list}.{index}.{name}"] = tuple(f"{block_list}.{index}.{part}" for part in parts)
    return names
