"""The coefficients of one or several analogies: the socket `LORWEB_COEFFICIENTS`.

A plain dict, so that other node packs can use it without our classes:

    {"format_version": 1, "basis_id": str, "layers": {layer name: float32 CPU [B, N]}, "settings": {…}}

They are valid only for the basis with this id; the adapters of another basis mean something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
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
    """Route query embeddings [B, Q] or [B, images, P] through the basis."""
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


def name_of_basis(coefficients: Mapping[str, Any]) -> str:
    """Return name and id of the basis, for messages."""
    name = coefficients["settings"].get("basis_name", "an unnamed basis")
    return printable(f"{name} (id {coefficients['basis_id']})")


def describe_origin(coefficients: Mapping[str, Any]) -> str:
    """Return how many mixes there are and of which basis, as text."""
    count = count_mixes(coefficients)
    return f"{count} {'mix' if count == 1 else 'mixes'} of {name_of_basis(coefficients)}"


def require_coefficients_of(basis: Basis, coefficients: Mapping[str, Any]) -> Coefficients:
    """Return the coefficients, checked against the basis, as float32 on the CPU.

    Raises:
        CheckpointError: for another basis, a newer format, or anything that is not a coefficients dict.
        ShapeError: if layers are missing, batches differ, N is wrong or numbers are not finite.
    """
    whole = require_whole_coefficients(coefficients)
    if whole["basis_id"] != basis.basis_id:
        raise CheckpointError(
            f"The basis is {basis.name} (id {basis.basis_id}), but the coefficients belong to "
            f"{name_of_basis(coefficients)}. Connect the same basis to Encode Analogy and to this node, or encode the "
            "analogy again."
        )
    layers = whole["layers"]
    missing = [name for name in basis.layers if name not in layers]
    extra = [name for name in layers if name not in basis.layers]
    if missing or extra:
        raise ShapeError(
            f"The coefficients do not match the basis' {len(basis.layers)} layers: {len(missing)} missing and "
            f"{len(extra)} unknown (such as {', '.join((missing + extra)[:3])}). Encode the analogy again with this "
            "basis."
        )
    for name, layer in basis.layers.items():
        if layers[name].shape[1] != layer.basis_size:
            raise ShapeError(
                f"The coefficients of {name} are {list(layers[name].shape)}, but this layer has {layer.basis_size} "
                "adapters. Encode the analogy again with this basis."
            )
    return whole


def require_whole_coefficients(coefficients: Mapping[str, Any]) -> Coefficients:
    """Return the coefficients, checked without a basis, as float32 on the CPU.

    Raises:
        CheckpointError: for a newer format, or anything that is not a coefficients dict.
        ShapeError: if layers are not [B, N] of one batch, or numbers are not finite.
    """
    problem = _describe_oddity(coefficients)
    if problem:
        raise CheckpointError(
            f"This input got {problem}, not coefficients with format_version, basis_id, layers (of tensors) and "
            "settings (a dict). Connect the output of Encode Analogy (CLIP)."
        )
    if coefficients["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"The coefficients have format version {coefficients['format_version']!r}, but this node pack reads "
            f"version {FORMAT_VERSION}. Update the pack, or encode the analogy again."
        )
    layers: Mapping[str, Tensor] = coefficients["layers"]
    batch = next(iter(layers.values())).shape[:1]
    for name, mix in layers.items():
        shape = mix.shape
        if len(shape) != 2 or not shape[0] or not shape[1] or shape[:1] != batch or not mix.is_floating_point():
            raise ShapeError(
                f"The coefficients of {name} are {list(shape)} of {mix.dtype}, not floating-point "
                f"[{batch[0] if batch and batch[0] else 'batch'}, N]. Give every layer the same batch of at least one "
                "mix, or encode the analogy again."
            )
    typed = {name: mix.to("cpu", torch.float32) for name, mix in layers.items()}
    if not is_all_finite(join_layers(typed)):
        damaged = next(name for name, mix in typed.items() if not is_all_finite(mix))
        raise ShapeError(
            f"The coefficients of {damaged} contain NaN or infinity, not only finite numbers. Encode the analogy "
            "again; if that does not help, the basis file is damaged."
        )
    return with_layers(coefficients, typed)


def _describe_oddity(value: object) -> str:
    """Return what keeps a value from being a coefficients dict, or ""."""
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


def is_all_finite(values: Tensor) -> bool:
    """Return whether there is neither NaN nor infinity; allocates no second tensor of this size."""
    return all(math.isfinite(limit) for limit in torch.aminmax(values))  # NaN is both limits


def with_layers(coefficients: Mapping[str, Any], layers: dict[str, Tensor]) -> Coefficients:
    """Return other numbers for the same basis."""
    return Coefficients(
        format_version=FORMAT_VERSION,
        basis_id=str(coefficients["basis_id"]),
        layers=layers,
        settings=dict(coefficients["settings"]),
    )


def join_layers(layers: Mapping[str, Tensor]) -> Tensor:
    """Return all layers side by side, [B, ΣN]: one operation on it replaces one per layer."""
    return torch.cat(list(layers.values()), dim=1)


def split_layers(joined: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return layer name → its part [B, N] of [B, ΣN], with the names and sizes of `like`."""
    parts = joined.split([mix.shape[1] for mix in like.values()], dim=1)
    return {name: part.contiguous() for name, part in zip(like, parts, strict=True)}
