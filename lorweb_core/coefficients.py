"""The coefficients of one or several analogies: the socket `LORWEB_COEFFICIENTS`.

A plain dict, so that it can cross between the pack and other packs without sharing classes:

    {"format_version": 1, "basis_id": str, "layers": {layer name: float32 CPU [B, N]}, "settings": {…}}

They belong to the basis whose id they carry: another basis' adapters mean something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from .basis import Basis
from .errors import CheckpointError, ShapeError, printable
from .router import route_query

FORMAT_VERSION = 1


class Coefficients(TypedDict):
    """The dict's entries; `settings` holds the router settings and the basis' name, for people and messages."""

    format_version: int
    basis_id: str
    layers: dict[str, Tensor]
    settings: dict[str, Any]


def encode_coefficients(basis: Basis, query_embedding: Tensor) -> Coefficients:
    """Return the coefficients that the basis' router gives for query embeddings [B, Q] or [B, images, P]."""
    settings = {**asdict(basis.settings), "basis_name": basis.name}
    return Coefficients(
        format_version=FORMAT_VERSION,
        basis_id=basis.basis_id,
        layers=route_query(basis, query_embedding),
        settings=settings,
    )


def count_mixes(coefficients: Mapping[str, Any]) -> int:
    """Return B, how many analogies the coefficients hold."""
    return int(next(iter(coefficients["layers"].values())).shape[0])


def describe_origin(coefficients: Mapping[str, Any]) -> str:
    """Return how many mixes there are and of which basis, for people."""
    count = count_mixes(coefficients)
    return f"{count} {'mix' if count == 1 else 'mixes'} of {name_of_basis(coefficients)}"


def require_coefficients_of(basis: Basis, coefficients: Mapping[str, Any]) -> Coefficients:
    """Return the coefficients as typed, once they are known to belong to this basis and to be whole.

    Numbers that another pack left on another device or in another dtype come as float32 on the CPU.

    Raises:
        CheckpointError: for coefficients of another basis, of a newer format, or that are no coefficients.
        ShapeError: when layers are missing, batches differ, N is wrong or numbers are not finite.
    """
    _require_format(coefficients)
    if coefficients["basis_id"] != basis.basis_id:
        raise CheckpointError(
            expected=f"coefficients of the basis {basis.name} (id {basis.basis_id})",
            got=f"coefficients of {name_of_basis(coefficients)}",
            remedy="Connect the same basis to Encode Analogy and to this node, or encode the analogy again.",
        )
    layers: Mapping[str, Tensor] = coefficients["layers"]
    missing = [name for name in basis.layers if name not in layers]
    extra = [name for name in layers if name not in basis.layers]
    if missing or extra:
        raise ShapeError(
            expected=f"coefficients for the basis' {len(basis.layers)} layers",
            got=f"{len(missing)} missing and {len(extra)} unknown (such as {', '.join((missing + extra)[:3])})",
            remedy="Encode the analogy again with this basis.",
        )
    typed = _as_typed(layers)
    _require_tensors(basis, typed)
    return with_layers(coefficients, typed)


def require_whole_coefficients(coefficients: Mapping[str, Any]) -> Coefficients:
    """Return the coefficients as typed, once they are known to be whole in themselves; needs no basis.

    Numbers that another pack left on another device or in another dtype come as float32 on the CPU.

    Raises:
        CheckpointError: for coefficients of a newer format, or what is no coefficients.
        ShapeError: when layers are not [B, N] of one batch, or numbers are not finite.
    """
    require_layout(coefficients)
    return with_layers(coefficients, _require_finite(_as_typed(coefficients["layers"])))


def take_mix(coefficients: Mapping[str, Any], mix: int) -> Coefficients:
    """Return one of the mixes alone, whole as `require_whole_coefficients` has it; the others are not looked into.

    Raises: CheckpointError, ShapeError: as there, and for a mix that does not exist.
    """
    batch = require_layout(coefficients)
    if not 0 <= mix < batch:
        raise ShapeError(
            expected=f"mix to be one of 0 … {batch - 1}, since there are {batch}",
            got=str(mix),
            remedy="Choose a mix that exists; the first is 0.",
        )
    alone = {name: values[mix : mix + 1] for name, values in coefficients["layers"].items()}
    return with_layers(coefficients, _require_finite(_as_typed(alone)))


def require_layout(coefficients: Mapping[str, Any]) -> int:
    """Return B, once the entries and the shapes of all layers are known to be right; numbers are not looked at.

    Raises: CheckpointError, ShapeError: see `require_whole_coefficients`.
    """
    _require_format(coefficients)
    layers: Mapping[str, Tensor] = coefficients["layers"]
    batch = next(iter(layers.values())).shape[:1]
    for name, mix in layers.items():
        shape = mix.shape
        if len(shape) != 2 or not shape[0] or not shape[1] or shape[:1] != batch or not mix.is_floating_point():
            raise ShapeError(
                expected=f"coefficients [{batch[0] if batch and batch[0] else 'batch'}, N] of float numbers for {name}",
                got=f"shape {list(shape)} of {mix.dtype}",
                remedy="Give every layer the same batch of at least one mix, or encode the analogy again.",
            )
    return batch[0]


def is_all_finite(values: Tensor) -> bool:
    """Return whether there is neither NaN nor infinity among numbers; makes no second tensor of their size."""
    return all(math.isfinite(limit) for limit in torch.aminmax(values))  # NaN is both limits


def with_layers(coefficients: Mapping[str, Any], layers: dict[str, Tensor]) -> Coefficients:
    """Return other numbers for the same basis."""
    return Coefficients(
        format_version=FORMAT_VERSION,
        basis_id=str(coefficients["basis_id"]),
        layers=layers,
        settings=dict(coefficients["settings"]),
    )


def name_of_basis(coefficients: Mapping[str, Any]) -> str:
    """Return the basis' name and id, for messages."""
    name = coefficients["settings"].get("basis_name", "an unnamed basis")
    return printable(f"{name} (id {coefficients['basis_id']})")


def _require_format(coefficients: Mapping[str, Any]) -> None:
    got = _describe_oddity(coefficients)
    if got:
        raise CheckpointError(
            expected="a coefficients dict with format_version, basis_id, layers (of tensors) and settings (a dict)",
            got=got,
            remedy="Connect the output of Encode Analogy (CLIP).",
        )
    if coefficients["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            expected=f"coefficients of format version {FORMAT_VERSION}",
            got=f"version {coefficients['format_version']!r}",
            remedy="Update this node pack, or encode the analogy again with this version.",
        )


def _describe_oddity(value: object) -> str:
    """Return why a value cannot be a coefficients dict, or "" when its entries are of the right kinds."""
    if not isinstance(value, Mapping):
        return type(value).__name__
    if not {"format_version", "basis_id", "layers", "settings"} <= set(value):
        return f"{sorted(map(str, value))}"
    layers, settings = value["layers"], value["settings"]
    if not isinstance(layers, Mapping) or not isinstance(settings, Mapping):
        return f"layers as {type(layers).__name__}, settings as {type(settings).__name__}"
    odd = [name for name, mix in layers.items() if not isinstance(mix, Tensor)]
    if odd:
        return f"{odd[0]} as {type(layers[odd[0]]).__name__}"
    return "" if layers else "no layer"


def _as_typed(layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: mix.to("cpu", torch.float32) for name, mix in layers.items()}


def _require_finite(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    if not is_all_finite(torch.cat(list(layers.values()), dim=1)):
        damaged = [name for name, mix in layers.items() if not is_all_finite(mix)]
        raise _not_finite(damaged[0])
    return layers


def _require_tensors(basis: Basis, layers: Mapping[str, Tensor]) -> None:
    batch = next(iter(layers.values())).shape[:1]
    for name, layer in basis.layers.items():
        mix = layers[name]
        if mix.shape != (*batch, layer.basis_size) or not mix.shape[0]:
            raise ShapeError(
                expected=f"coefficients [{batch[0] if batch else 'batch'}, {layer.basis_size}] for {name}",
                got=f"shape {list(mix.shape)}",
                remedy="Give every layer the same batch, or encode the analogy again with this basis.",
            )
        if not bool(torch.isfinite(mix).all()):
            raise _not_finite(name)


def _not_finite(layer_name: str) -> ShapeError:
    return ShapeError(
        expected=f"finite coefficients for {layer_name}",
        got="NaN or infinity",
        remedy="Encode the analogy again; if it stays, the basis file is damaged.",
    )


# Coefficients of many layers as few tensors: layers of one basis size N are stacked to [L, B, N].
#
# A full-size basis has 494 layers of 32 numbers each; arithmetic on one stacked tensor takes a hundredth of the time of
# 494 small operations. Nothing here changes a number.


@dataclass(frozen=True, eq=False)
class LayerStack:
    """Layers of equal basis size.

    Attributes:
        names: L layer names.
        values: [L, B, N].
    """

    names: tuple[str, ...]
    values: Tensor


def stack_layers(layers: Mapping[str, Tensor]) -> list[LayerStack]:
    """Return the layers [B, N] stacked by basis size, in order of their first appearance."""
    by_size: dict[int, list[str]] = {}
    for name, mix in layers.items():
        by_size.setdefault(mix.shape[1], []).append(name)
    return [LayerStack(tuple(names), torch.stack([layers[name] for name in names])) for names in by_size.values()]


def unstack_layers(stacks: Iterable[LayerStack], order: Iterable[str]) -> dict[str, Tensor]:
    """Return layer name → [B, N] in the given order of names."""
    layers = {name: mix for stack in stacks for name, mix in zip(stack.names, stack.values.unbind(0), strict=True)}
    return {name: layers[name] for name in order}
