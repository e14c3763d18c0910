"""One-file FLUX transformers as ComfyUI users have them, read without loss or refused by their header.

Read: float32, float16, bfloat16, plain float8 (a cast), and ComfyUI's scaled float8, where weight = stored · scale.
diffusers 0.42's own reader drops those scales without a word. Refused: GGUF, pickles, nf4, fp4, int8 and other packed
layouts, another architecture. Names: `bfl_names`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorweb_core.errors import CheckpointError, FileError, ModelError
from lorweb_core.files import parse_json
from lorweb_core.header import read_header

from .bfl_names import PREFIXES, from_bfl

_FLOAT_DTYPES = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
_SCALED_DTYPES = {"F8_E4M3", "F8_E5M2"}
#: Names of a scale beside `x.weight`, in the order ComfyUI used them; both mean weight = stored · scale.
_SCALE_SUFFIXES = (".scale_weight", ".weight_scale")
#: Extra tensors of float8 files that do not change the weights: markers and scales of activations.
_IGNORED_SUFFIXES = ("scaled_fp8", ".scale_input", ".input_scale")
_FORMAT_SUFFIX = ".comfy_quant"
_READABLE_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def check_header(path: Path) -> None:
    """Refuse, by its header, a file that `read_single_file` could not read exactly.

    Raises: ModelError: says what was found and which files work.
    """
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
    odd = [name for name, entry in header.items() if _is_scale(name) and math.prod(entry.shape) != 1]
    if odd:
        raise _refusal(path, f"{len(odd)} scales per row or block, first {odd[0]}")


def read_single_file(path: Path, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the transformer's weights under diffusers' names, dequantised.

    Args:
        path: `.safetensors` in Black Forest Labs' layout, with or without ComfyUI's `model.diffusion_model.` prefix.
        dtype: of the result; scales are applied in float32 before rounding to it.
    Raises: ModelError: see `check_header`; also for tensors with no known meaning.
    """
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            stored = {_strip_prefix(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _refusal(path, f"a damaged file ({error})") from error
    _check_formats(path, stored)
    weights = {name: _dequantise(name, stored, dtype) for name in stored if not _is_auxiliary(name)}
    return from_bfl(weights, path.name)


def _dequantise(name: str, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    scales = [stored[name.removesuffix(".weight") + suffix] for suffix in _SCALE_SUFFIXES
              if name.endswith(".weight") and name.removesuffix(".weight") + suffix in stored]  # fmt: skip
    tensor = stored[name]
    return (tensor.float() * scales[0].float()).to(dtype) if scales else tensor.to(dtype)


def _check_formats(path: Path, stored: Mapping[str, Tensor]) -> None:
    for name, tensor in stored.items():
        if name.endswith(_FORMAT_SUFFIX):
            found = _format_of(tensor)
            if found not in _READABLE_FORMATS:
                raise _refusal(path, f"weights packed as {found} ({name})")


def _format_of(tensor: Tensor) -> str:
    try:
        return str(parse_json(bytes(tensor.tolist()).decode(), "the format")["format"])
    except (ValueError, TypeError, KeyError):
        return "something unreadable"


def _is_scale(name: str) -> bool:
    return name.endswith(_SCALE_SUFFIXES)


def _is_auxiliary(name: str) -> bool:
    return _is_scale(name) or name.endswith((*_IGNORED_SUFFIXES, _FORMAT_SUFFIX))


def _strip_prefix(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def _refusal(path: Path, found: str) -> ModelError:
    return ModelError(
        expected=f"{path} to be a FLUX.1-Kontext-dev transformer as bf16, fp16, fp8 or scaled fp8 .safetensors",
        got=found,
        remedy="Use flux1-dev-kontext_fp8_scaled.safetensors, the bf16 file, or the diffusers folder; "
        "base.quantize makes it smaller in memory.",
    )
