"""A basis file ⇄ `Basis`.

Files are .safetensors in the reference's layout (`layer_tensors`), with settings in the header, a sidecar or nowhere
(`settings_sources`). Nothing is ever unpickled. While reading, the file is memory-mapped and copied tensor by tensor
into its final form; afterwards no byte of the basis depends on the file, which may be replaced or cut while the basis
is in use. The extra memory of loading is one tensor.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from .basis import Basis, LayerBasis
from .errors import CheckpointError, printable
from .layer_tensors import (
    SUFFIX_A,
    SUFFIX_B,
    SUFFIX_BIAS,
    SUFFIX_KEYS,
    SUFFIX_PROJECTION,
    LayerTensors,
    group_layers,
    require_one_query_width,
    tensor_name,
)
from .safetensors_file import open_tensors, read_header, write_safetensors_atomically
from .settings import RouterSettings
from .settings_sources import METADATA_KEY, encode_header_settings, require_fitting, resolve_settings, sizes_of

_logger = logging.getLogger(__name__)

#: Dtype → integer dtype of its bits, and the exponent's bits, which are all set in NaN and infinity.
_EXPONENT_BITS = {
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}


def load_basis(
    path: Path | str,
    *,
    settings: RouterSettings | Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Basis:
    """Return the basis of a .safetensors file, checked, in its own dtype (float8 becomes bfloat16, exactly).

    Args:
        settings: replace whatever the file or a sidecar says; or a YAML file whose entries go before theirs.
        on_progress: called after each layer with (layers done, layers in all); may raise to stop.
    Raises:
        FileError: when the file is missing or cannot be read.
        CheckpointError: when it is of another kind, damaged, incomplete, or holds NaN or infinity.
        SettingsError: when settings are unusable or contradict the tensors.
    """
    path = Path(path)
    header = read_header(path)
    groups = group_layers(header.entries, path.name)
    require_one_query_width(groups, path.name)
    resolved = resolve_settings(path, header.metadata, groups, settings)
    identity = hashlib.sha256(header.raw)
    layers: dict[str, LayerBasis] = {}
    with open_tensors(path) as file:
        for name, group in groups.items():
            layers[name] = _read_layer(file, name, group, identity)
            if on_progress is not None:
                on_progress(len(layers), len(groups))
    for line in resolved.report:
        _logger.warning(printable(line))
    return Basis(
        layers=layers,
        settings=resolved.settings,
        basis_id=identity.hexdigest()[:16],
        name=printable(path.name),
        metadata=header.metadata,
        report=resolved.report,
        settings_source=resolved.source,
    )


def save_basis(
    path: Path | str,
    layers: Mapping[str, LayerBasis],
    settings: RouterSettings,
    *,
    dtype: torch.dtype | None = None,
    training: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a basis under the reference's tensor names, with its settings in the header, whole or not at all.

    Args:
        dtype: of the written tensors; None keeps each as it is.
        training: free facts for the header (step, data set …), as JSON.
        metadata: further header strings.
        on_progress: called after each tensor with (tensors done, tensors in all); may raise to stop.
    Raises:
        CheckpointError, SettingsError: when there is no layer, or layers and settings contradict each other.
        OutputError: when the file cannot be written. RangeError: when numbers leave the dtype's range.
    """
    path = Path(path)
    tensors = {tensor_name(name, suffix): tensor for name in layers for suffix, tensor in _file_tensors(layers[name])}
    groups = {name: _describe_layer(layer) for name, layer in layers.items()}
    if not groups:
        raise CheckpointError(f"There is no layer to save as {path.name}. Choose the layers to train.")
    require_one_query_width(groups, path.name)
    require_fitting(settings, groups)
    strings = {**(metadata or {}), "format": "pt"}
    strings[METADATA_KEY] = encode_header_settings(settings, sizes_of(groups), training)
    write_safetensors_atomically(path, tensors, strings, dtype=dtype, on_progress=on_progress)


def _read_layer(file: safe_open, name: str, group: LayerTensors, identity: hashlib._Hash) -> LayerBasis:
    def read(suffix: str, *, transposed: bool = False) -> Tensor:
        tensor = file.get_tensor(tensor_name(name, suffix))
        if tensor.dtype.itemsize == 1:  # torch cannot compute with float8; bfloat16 holds all its numbers exactly
            tensor = tensor.to(torch.bfloat16)
        return _checked_copy(tensor.transpose(1, 2) if transposed else tensor, tensor_name(name, suffix))

    # [N·r, in] and [N·r, out] are then views, which is what mixing multiplies with.
    lora_down = read(SUFFIX_A, transposed=True)
    lora_up = read(SUFFIX_B).transpose(1, 2)
    keys = read(SUFFIX_KEYS)
    projection = read(SUFFIX_PROJECTION) if SUFFIX_PROJECTION in group.suffixes else None
    bias = read(SUFFIX_BIAS) if SUFFIX_BIAS in group.suffixes else None
    for tensor in (keys, projection):
        if tensor is not None:
            identity.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return LayerBasis(lora_down, lora_up, keys, projection, bias)


def _checked_copy(tensor: Tensor, name: str) -> Tensor:
    """A contiguous copy outside of the file's mapping, known to be finite.

    numpy copies and compares the bits with one thread; torch would start its thread pool for each of the 2,000 small
    tensors, which takes twenty times as long on a busy machine.
    """
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    bit_type, exponent = _EXPONENT_BITS[tensor.dtype]
    bits = copy.view(bit_type).numpy()
    np.copyto(bits, tensor.view(bit_type).numpy())
    if (bits & exponent).max() == exponent:  # all exponent bits set: NaN or infinity
        raise CheckpointError(
            f"{int((~torch.isfinite(copy)).sum())} of {copy.numel()} numbers of {name} are NaN or infinite. "
            "The training diverged or the file is damaged; use an earlier checkpoint or get the file again."
        )
    return copy


def _file_tensors(layer: LayerBasis) -> list[tuple[str, Tensor]]:
    tensors = [
        (SUFFIX_A, layer.lora_down.transpose(1, 2)),
        (SUFFIX_B, layer.lora_up.transpose(1, 2)),
        (SUFFIX_KEYS, layer.keys),
        (SUFFIX_PROJECTION, layer.query_projection),
        (SUFFIX_BIAS, layer.lora_bias),
    ]
    return [(suffix, tensor) for suffix, tensor in tensors if tensor is not None]


def _describe_layer(layer: LayerBasis) -> LayerTensors:
    sizes = {
        "N": layer.basis_size,
        "in": layer.in_features,
        "r": layer.rank,
        "out": layer.out_features,
        "K": layer.key_dim,
        "Q": layer.query_dim,
    }
    return LayerTensors(frozenset(suffix for suffix, _ in _file_tensors(layer)), sizes)
