"""One-file FLUX transformers as ComfyUI users have them, read without loss or refused by their header.

Read: float32, float16, bfloat16, plain float8 (a cast), and ComfyUI's scaled float8, where weight = stored · scale.
diffusers 0.42's own reader ignores those scales silently. Refused: GGUF, pickles, nf4, fp4, int8 and other packed
layouts, another architecture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorweb_core.errors import CheckpointError, FileError, ModelError
from lorweb_core.files import parse_json
from lorweb_core.safetensors_file import read_header

# Names of Black Forest Labs' FLUX files ⇄ diffusers' names, for every width. A fused weight of the file holds several
# diffusers Linears, stacked by rows. The last modulation's halves are swapped: the file has (shift, scale), diffusers
# (scale, shift). diffusers' own converter knows the full width only.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
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
    """Return weights, given by the file's names without prefix, under diffusers' names.

    Raises ModelError, which names the file `source`, for names that mean nothing here.
    """
    width = weights["img_in.weight"].shape[0]
    result: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in weights.items():
        module, match = name.rpartition(".")[0], _BLOCK_NAME.fullmatch(name)
        parts: tuple[str, ...] = (OUTSIDE[module],) if module in OUTSIDE else ()
        if match:
            block_list, table = BLOCKS[match[1]]
            parts = tuple(f"{block_list}.{match[2]}.{part}" for part in table.get(match[3], ()))
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
            f"{len(unknown)} of the {len(weights)} tensors in {source} are not those of a FLUX transformer, first "
            f"{unknown[:3]}. Use the published FLUX.1-Kontext-dev file, not one with adapters or another model inside."
        )
    return result


_FLOAT_DTYPES = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
#: Names of a scale beside `x.weight`, in the order ComfyUI used them; both mean weight = stored · scale.
_SCALE_SUFFIXES = (".scale_weight", ".weight_scale")
#: Extra tensors of float8 files that do not change the weights: markers and scales of activations.
_IGNORED_SUFFIXES = ("scaled_fp8", ".scale_input", ".input_scale")
_FORMAT_SUFFIX = ".comfy_quant"
_READABLE_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def check_header(path: Path) -> None:
    """Raise ModelError for a file that `read_single_file` could not read exactly, by its header."""
    try:
        header = read_header(path).entries
    except (CheckpointError, FileError) as error:
        raise _refusal(path, str(error)) from error
    names = {_strip_prefix(name) for name in header}
    if "img_in.weight" not in names or not any(name.startswith("double_blocks.") for name in names):
        raise _refusal(path, f"no FLUX transformer (first names: {sorted(names)[:3]})")
    if "guidance_in.in_layer.weight" not in names:
        raise _refusal(path, "a FLUX model without guidance embedding (schnell)")
    dtypes = {name: entry.dtype for name, entry in header.items() if name.endswith((".weight", ".bias"))}
    packed = sorted(name for name, dtype in dtypes.items() if dtype not in _FLOAT_DTYPES)
    if packed:
        raise _refusal(path, f"{len(packed)} packed tensors of type {dtypes[packed[0]]}, first {packed[0]}")
    odd = [name for name, entry in header.items() if name.endswith(_SCALE_SUFFIXES) and math.prod(entry.shape) != 1]
    if odd:
        raise _refusal(path, f"{len(odd)} scales per row or block, first {odd[0]}")


def read_single_file(path: Path, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the transformer's weights under diffusers' names, dequantized.

    Args:
        path: `.safetensors` in Black Forest Labs' layout, with or without ComfyUI's `model.diffusion_model.` prefix.
        dtype: of the result; scales are applied in float32 before rounding to it.
    Raises ModelError, see `check_header`; also for tensors with no known meaning.
    """
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            stored = {_strip_prefix(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _refusal(path, f"a damaged file ({error})") from error
    weights = {}
    for name, tensor in stored.items():
        if name.endswith(_FORMAT_SUFFIX):
            try:
                packing = str(parse_json(bytes(tensor.tolist()).decode(), "the format")["format"])
            except (ValueError, TypeError, KeyError):
                packing = "something unreadable"
            if packing not in _READABLE_FORMATS:
                raise _refusal(path, f"weights packed as {packing} ({name})")
        elif not name.endswith((*_SCALE_SUFFIXES, *_IGNORED_SUFFIXES)):
            module = name.removesuffix(".weight")
            scale = next((stored[module + suffix] for suffix in _SCALE_SUFFIXES if module + suffix in stored), None)
            if scale is not None and module != name:
                tensor = tensor.float() * scale.float()
            weights[name] = tensor.to(dtype)
    return from_bfl(weights, path.name)


def _strip_prefix(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)


def _refusal(path: Path, found: str) -> ModelError:
    return ModelError(
        f"{path} cannot be read as a FLUX.1-Kontext-dev transformer: {found.rstrip('.')}. It must be bf16, fp16, fp8 "
        "or scaled fp8 .safetensors. Use flux1-dev-kontext_fp8_scaled.safetensors, the bf16 file, or the diffusers "
        "folder; base.quantize makes it smaller in memory."
    )
