"""A basis file ⇄ `Basis`: the reference's layout in a .safetensors file.

    transformer.<layer>.lora_A                 [N, in, r]
    transformer.<layer>.lora_B                 [N, r, out]
    transformer.<layer>.lora_keys              [N, K]
    transformer.<layer>.att_lora_to_q.weight   [K, Q]      absent when the query embedding itself is the query
    transformer.<layer>.lora_B_bias            [N, out]    optional

Settings are in the header, a sidecar or nowhere (`settings_sources`). The last part of a name is taken from the end:
the layer itself may be called `….attn.to_q`. Names and shapes are checked before a weight is read, and all errors of
one kind are reported at once. Nothing is ever unpickled.

While reading, the file is memory-mapped and copied tensor by tensor into its final form; afterwards no byte of the
returned basis depends on the file. The extra memory is one tensor.
Source: docs/file-format.md.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from .basis import Basis, LayerBasis, describe_misfit
from .errors import CheckpointError, printable
from .layer_names import sort_layer_names
from .safetensors_file import TensorEntry, open_tensors, read_header, write_safetensors_atomically
from .settings import RouterSettings
from .settings_sources import METADATA_KEY, encode_header_settings, require_fitting, resolve_settings

_logger = logging.getLogger(__name__)

PREFIX = "transformer."
#: Last part of a tensor's name → attribute of `LayerBasis`, where lora_A and lora_B are transposed.
_ATTRIBUTES = {
    "lora_A": "lora_down",
    "lora_B": "lora_up",
    "lora_keys": "keys",
    "att_lora_to_q.weight": "query_projection",
    "lora_B_bias": "lora_bias",
}
_DIMENSIONS = {
    "lora_A": ("N", "in", "r"),
    "lora_B": ("N", "r", "out"),
    "lora_keys": ("N", "K"),
    "att_lora_to_q.weight": ("K", "Q"),
    "lora_B_bias": ("N", "out"),
}
_FLOAT_DTYPES = ("F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
_REQUIRED = ("lora_A", "lora_B", "lora_keys")
_ORDINARY_LORA = re.compile(r".*\.(lora_[AB](\.default)?|lora_(down|up)|lora\.(down|up))\.weight", re.DOTALL)
_REWRITE = "The file was written wrongly or edited; get it again or convert it from its source."
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
    settings: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Basis:
    """Return the basis of a .safetensors file, checked, in its own dtype (float8 becomes bfloat16, exactly).

    Args:
        settings: a YAML file whose entries go before those of the file and its sidecar.
        on_progress: called after each layer with (layers done, layers in all); may raise to stop.
    Raises:
        FileError: when the file is missing or cannot be read.
        CheckpointError: when it is of another kind, damaged, incomplete, or holds NaN or infinity.
        SettingsError: when settings are unusable or contradict the tensors.
    """
    path = Path(path)
    header = read_header(path)
    shapes = _read_shapes(header.entries, path.name)
    _require_one_query_width(shapes, path.name)
    resolved, source, report = resolve_settings(path, header.metadata, shapes, settings)
    identity = hashlib.sha256(header.raw)
    layers: dict[str, LayerBasis] = {}
    with open_tensors(path) as file:
        for name in shapes:
            names = {attribute: f"{PREFIX}{name}.{part}" for part, attribute in _ATTRIBUTES.items()}
            layer = LayerBasis(
                **{attribute: _read_tensor(file, key) for attribute, key in names.items() if key in header.entries}
            )
            for tensor in (layer.keys, layer.query_projection):
                if tensor is not None:
                    identity.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            layers[name] = layer
            if on_progress is not None:
                on_progress(len(layers), len(shapes))
    for line in report:
        _logger.warning(printable(line))
    return Basis(
        layers=layers,
        settings=resolved,
        basis_id=identity.hexdigest()[:16],
        name=printable(path.name),
        metadata=header.metadata,
        report=report,
        settings_source=source,
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
    if not layers:
        raise CheckpointError(f"There is no layer to save as {path.name}. Choose the layers to train.")
    _require_one_query_width(layers, path.name)
    require_fitting(settings, layers)
    tensors = {}
    for name, layer in layers.items():
        for part, attribute in _ATTRIBUTES.items():
            tensor = getattr(layer, attribute)
            if tensor is not None:
                tensors[f"{PREFIX}{name}.{part}"] = tensor.transpose(1, 2) if tensor.dim() == 3 else tensor
    strings = {**(metadata or {}), "format": "pt"}
    strings[METADATA_KEY] = encode_header_settings(settings, layers, training)
    write_safetensors_atomically(path, tensors, strings, dtype=dtype, on_progress=on_progress)


def _read_shapes(entries: Mapping[str, TensorEntry], file_name: str) -> dict[str, LayerBasis]:
    """Return layer name → tensors of the right shapes without memory (device meta), in computing order.

    Raises CheckpointError for an ordinary LoRA, missing or extra tensors, dtypes other than floats, and shapes that
    contradict each other.
    """
    by_layer: dict[str, dict[str, TensorEntry]] = {}
    unknown = []
    for name, entry in entries.items():
        part = next((part for part in _ATTRIBUTES if name.endswith(f".{part}")), "")
        layer_name = name[len(PREFIX) : len(name) - len(part) - 1]
        if part and layer_name and name.startswith(PREFIX):
            by_layer.setdefault(layer_name, {})[part] = entry
        else:
            unknown.append(name)
    basis = f"a LoRWeB basis ({PREFIX}<layer>.lora_A, .lora_keys …)"
    if not by_layer and any(_ORDINARY_LORA.fullmatch(name) for name in unknown):
        raise CheckpointError(
            f"{file_name} is an ordinary LoRA ({_first_three(unknown)}), not {basis}. Load it with an ordinary LoRA "
            "loader; a basis holds several adapters per layer and their keys."
        )
    if not by_layer:
        found = f"{len(unknown)} other tensors ({_first_three(unknown)})" if unknown else "no tensor"
        raise CheckpointError(f"{file_name} has {found}, and is not {basis}. Choose the basis file.")
    if unknown:
        raise CheckpointError(
            f"{file_name} has {len(unknown)} unexpected tensors ({_first_three(unknown)}) beside those of "
            f"{len(by_layer)} layers. {_REWRITE}"
        )
    missing = [f"{PREFIX}{name}.{part}" for name, parts in by_layer.items() for part in _REQUIRED if part not in parts]
    if missing:
        raise CheckpointError(f"{file_name} lacks {len(missing)} tensors ({_first_three(missing)}). {_REWRITE}")
    odd = [f"{name}: {entry.dtype}" for name, entry in entries.items() if entry.dtype not in _FLOAT_DTYPES]
    if odd:
        raise CheckpointError(
            f"{file_name} has {len(odd)} tensors that are not floating-point numbers ({_first_three(odd)}). Use the "
            "file before it was quantized; this format has no scales."
        )
    shapes = {}
    for layer_name in sort_layer_names(by_layer):
        parts = by_layer[layer_name]
        # Before torch sees a shape: with a 0 in it, the others may be larger than any that torch can have.
        misfit = describe_misfit({part: entry.shape for part, entry in parts.items()}, _DIMENSIONS)
        if misfit:
            raise CheckpointError(f"In layer {layer_name} of {file_name}, {misfit}. {_REWRITE}")
        tensors = {}
        for part, entry in parts.items():
            tensor = torch.empty(entry.shape, device="meta")
            tensors[_ATTRIBUTES[part]] = tensor.transpose(1, 2) if tensor.dim() == 3 else tensor
        shapes[layer_name] = LayerBasis(**tensors)
    return shapes


def _require_one_query_width(layers: Mapping[str, LayerBasis], file_name: str) -> None:
    """Raise a CheckpointError unless all layers take query embeddings of the same width."""
    widths = [layer.query_dim for layer in layers.values()]
    if len(set(widths)) == 1:
        return
    if all(layer.query_dim == layer.in_features for layer in layers.values()):
        raise CheckpointError(
            f"In {file_name} every layer's query is as wide as its own input (internal query): its coefficients "
            "depend on the activations and cannot be computed once per analogy. Use a basis trained with "
            "external_query: true."
        )
    usual = max(sorted(set(widths)), key=widths.count)
    odd = [name for name, layer in layers.items() if layer.query_dim != usual]
    bare = sum(layers[name].query_projection is None for name in odd)
    why = f", {bare} of them without att_lora_to_q.weight" if bare else ""
    raise CheckpointError(
        f"Layers of {file_name} take query embeddings of width {usual}, but {len(odd)} of {len(layers)} another "
        f"({_first_three(odd)}){why}. {_REWRITE}"
    )


def _first_three(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _read_tensor(file: safe_open, key: str) -> Tensor:
    """Return a contiguous copy outside of the file's mapping, known to be finite, in our orientation.

    numpy copies and compares the bits with one thread; torch would start its thread pool for each of the 2,000 small
    tensors, which takes twenty times as long on a busy machine.
    """
    tensor = file.get_tensor(key)
    if tensor.dtype.itemsize == 1:  # torch cannot compute with float8; bfloat16 holds all its numbers exactly
        tensor = tensor.to(torch.bfloat16)
    if key.endswith(".lora_A"):  # [N·r, in] is then a view, which is what mixing multiplies with
        tensor = tensor.transpose(1, 2)
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    bit_type, exponent = _EXPONENT_BITS[tensor.dtype]
    bits = copy.view(bit_type).numpy()
    np.copyto(bits, tensor.view(bit_type).numpy())
    if (bits & exponent).max() == exponent:  # all exponent bits set: NaN or infinity
        raise CheckpointError(
            f"{int((~torch.isfinite(copy)).sum())} of {copy.numel()} numbers of {key} are NaN or infinite. "
            "The training diverged or the file is damaged; use an earlier checkpoint or get the file again."
        )
    return copy.transpose(1, 2) if key.endswith(".lora_B") else copy
