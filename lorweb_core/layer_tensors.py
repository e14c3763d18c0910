"""Which tensor of a basis file belongs to which layer, and whether their shapes fit; from names and shapes alone.

    transformer.<layer>.lora_A                 [N, in, r]
    transformer.<layer>.lora_B                 [N, r, out]
    transformer.<layer>.lora_keys              [N, K]
    transformer.<layer>.att_lora_to_q.weight   [K, Q]      absent when the query embedding itself is the query
    transformer.<layer>.lora_B_bias            [N, out]    optional

A suffix is taken from the end only: the layer itself may be called `….attn.to_q`. All errors of one kind are reported
at once, before a weight is read. Source: docs/file-format.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import CheckpointError
from .layer_names import sort_layer_names
from .safetensors_file import FLOAT_DTYPES, TensorEntry

PREFIX = "transformer."
SUFFIX_A = ".lora_A"
SUFFIX_B = ".lora_B"
SUFFIX_KEYS = ".lora_keys"
SUFFIX_PROJECTION = ".att_lora_to_q.weight"
SUFFIX_BIAS = ".lora_B_bias"

_DIMENSIONS = {
    SUFFIX_A: "N,in,r",
    SUFFIX_B: "N,r,out",
    SUFFIX_KEYS: "N,K",
    SUFFIX_PROJECTION: "K,Q",
    SUFFIX_BIAS: "N,out",
}
_REQUIRED = (SUFFIX_A, SUFFIX_B, SUFFIX_KEYS)
_ORDINARY_LORA = re.compile(r".*\.(lora_[AB](\.default)?|lora_(down|up)|lora\.(down|up))\.weight", re.DOTALL)
_REWRITE = "The file was written wrongly or edited; get it again or convert it from its source."


@dataclass(frozen=True)
class LayerTensors:
    """Which of the format's tensors a layer has, and its sizes N, in, r, out, K, Q by their letters."""

    suffixes: frozenset[str]
    sizes: Mapping[str, int]


def group_layers(entries: Mapping[str, TensorEntry], file_name: str) -> dict[str, LayerTensors]:
    """Return layer name → its tensors, in computing order.

    Raises CheckpointError for an ordinary LoRA, missing or extra tensors, dtypes other than floats, and shapes that
    contradict each other.
    """
    by_layer: dict[str, dict[str, TensorEntry]] = {}
    unknown = []
    for name, entry in entries.items():
        layer_name, suffix = _split_tensor_name(name)
        if suffix:
            by_layer.setdefault(layer_name, {})[suffix] = entry
        else:
            unknown.append(name)
    basis = f"a LoRWeB basis ({PREFIX}<layer>{SUFFIX_A}, {SUFFIX_KEYS} …)"
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
    missing = [tensor_name(name, part) for name, parts in by_layer.items() for part in _REQUIRED if part not in parts]
    if missing:
        raise CheckpointError(f"{file_name} lacks {len(missing)} tensors ({_first_three(missing)}). {_REWRITE}")
    odd = [
        f"{tensor_name(name, suffix)}: {entry.dtype}"
        for name, parts in by_layer.items()
        for suffix, entry in parts.items()
        if entry.dtype not in FLOAT_DTYPES
    ]
    if odd:
        raise CheckpointError(
            f"{file_name} has {len(odd)} tensors that are not floating-point numbers ({_first_three(odd)}). Use the "
            "file before it was quantized; this format has no scales."
        )
    return {name: _fit_shapes(name, by_layer[name]) for name in sort_layer_names(by_layer)}


def tensor_name(layer_name: str, suffix: str) -> str:
    """Return the file's name of a layer's tensor."""
    return f"{PREFIX}{layer_name}{suffix}"


def query_widths(layers: Mapping[str, LayerTensors]) -> set[int]:
    """Return the widths Q that the layers take; one in a usable basis."""
    return {tensors.sizes["Q"] for tensors in layers.values()}


def require_one_query_width(layers: Mapping[str, LayerTensors], file_name: str) -> None:
    """Raise a CheckpointError unless all layers take query embeddings of the same width."""
    widths = [tensors.sizes["Q"] for tensors in layers.values()]
    if len(set(widths)) == 1:
        return
    if all(tensors.sizes["Q"] == tensors.sizes["in"] for tensors in layers.values()):
        raise CheckpointError(
            f"In {file_name} every layer's query is as wide as its own input (internal query): its coefficients "
            "depend on the activations and cannot be computed once per analogy. Use a basis trained with "
            "external_query: true."
        )
    usual = max(sorted(set(widths)), key=widths.count)
    odd = [name for name, tensors in layers.items() if tensors.sizes["Q"] != usual]
    bare = [name for name in odd if SUFFIX_PROJECTION not in layers[name].suffixes]
    why = f", {len(bare)} of them without {SUFFIX_PROJECTION[1:]}" if bare else ""
    raise CheckpointError(
        f"Layers of {file_name} take query embeddings of width {usual}, but {len(odd)} of {len(layers)} another "
        f"({_first_three(odd)}){why}. {_REWRITE}"
    )


def _split_tensor_name(name: str) -> tuple[str, str]:
    if name.startswith(PREFIX):
        for suffix in _DIMENSIONS:
            if name.endswith(suffix) and len(name) > len(PREFIX) + len(suffix):
                return name[len(PREFIX) : -len(suffix)], suffix
    return name, ""


def _fit_shapes(layer_name: str, parts: Mapping[str, TensorEntry]) -> LayerTensors:
    sizes: dict[str, int] = {}
    stated_by: dict[str, str] = {}
    for suffix, letters in _DIMENSIONS.items():
        if suffix not in parts:
            continue
        shape, names = parts[suffix].shape, letters.split(",")
        if len(shape) != len(names) or 0 in shape:
            raise CheckpointError(f"{suffix[1:]} of layer {layer_name} is {list(shape)}, not [{letters}]. {_REWRITE}")
        for letter, size in zip(names, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise CheckpointError(
                    f"{suffix[1:]} of layer {layer_name} is {list(shape)}; as [{letters}] with {letter} = "
                    f"{sizes[letter]} in {stated_by[letter]} it does not fit. {_REWRITE}"
                )
            stated_by.setdefault(letter, suffix[1:])
    sizes.setdefault("Q", sizes["K"])
    return LayerTensors(frozenset(parts), sizes)


def _first_three(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
