"""Names of Black Forest Labs' FLUX files ⇄ diffusers' names, for every width.

A fused weight of the file holds several diffusers Linears, stacked by rows. The last modulation's halves are swapped:
the file has (shift, scale), diffusers (scale, shift). diffusers' own converter knows the full width only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lorweb_core.errors import ModelError

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
#: Modules outside the blocks: the file's name → diffusers' name.
OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
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
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
_SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
#: The file's block list → (diffusers' block list, the file's part → the diffusers Linears or norms stacked in it).
BLOCKS = {"double_blocks": ("transformer_blocks", _DOUBLE), "single_blocks": ("single_transformer_blocks", _SINGLE)}
_BLOCK_NAME = re.compile(r"(double_blocks|single_blocks)\.(\d+)\.(.+)\.(weight|bias|scale)")


def from_bfl(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return weights under diffusers' names.

    Args:
        weights: by the file's names, without prefix.
        source: name of the file, for messages.
    Raises: ModelError: lists names that mean nothing here.
    """
    width = weights["img_in.weight"].shape[0]
    result: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in weights.items():
        parts = _diffusers_names(name)
        if not parts:
            unknown.append(name)
            continue
        kind = "bias" if name.endswith(".bias") else "weight"
        if parts == ("norm_out.linear",):
            tensor = torch.cat(tensor.chunk(2)[::-1])
        rows = [width] * 3 + [tensor.shape[0] - 3 * width]
        pieces = tensor.split(rows[: len(parts)]) if len(parts) > 1 else (tensor,)
        result |= {f"{part}.{kind}": piece.contiguous() for part, piece in zip(parts, pieces, strict=True)}
    if unknown:
        raise ModelError(
            expected=f"the tensors of a FLUX transformer in {source}",
            got=f"{len(unknown)} of {len(weights)} unknown, first {unknown[:3]}",
            remedy="Use the published FLUX.1-Kontext-dev file, not a file with adapters or another model inside.",
        )
    return result


def _diffusers_names(name: str) -> tuple[str, ...]:
    module = name.rpartition(".")[0]
    if module in OUTSIDE:
        return (OUTSIDE[module],)
    match = _BLOCK_NAME.fullmatch(name)
    if match is None:
        return ()
    block_list, parts = BLOCKS[match[1]]
    return tuple(f"{block_list}.{match[2]}.{part}" for part in parts.get(match[3], ()))
