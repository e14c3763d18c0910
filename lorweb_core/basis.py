"""The learned objects: per targeted Linear a basis of N adapters with their keys and query projection.

Equation of one layer: y = base(x) + Σ_n c_n · (x A_n) B_n, with A_n [in, r] and B_n [r, out] as in the file and
c the coefficients of `router`. In code A and B are called `lora_down` [N, r, in] and `lora_up` [N, out, r].
Nothing here reads files (`checkpoint`) or computes (`router`, `mixing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from .errors import ShapeError
from .settings import RouterSettings


@dataclass(frozen=True, eq=False)
class LayerBasis:
    """The N adapters of one Linear `in → out` and what is needed to choose among them.

    Attributes:
        lora_down: [N, r, in]; row j of adapter n is column j of the file's lora_A[n].
        lora_up: [N, out, r]; a view of the file's lora_B [N, r, out] (so its memory order is N, r, out).
        keys: [N, K].
        query_projection: [K, Q], or None when the query embedding itself is the query (then Q = K).
        lora_bias: [N, out] or None; mixed with the same coefficients as the adapters.
    Raises: ShapeError: when the tensors contradict each other.
    Source: arXiv 2602.15727, Section 3.2; file names in `checkpoint`.
    """

    lora_down: Tensor
    lora_up: Tensor
    keys: Tensor
    query_projection: Tensor | None = None
    lora_bias: Tensor | None = None

    def __post_init__(self) -> None:
        size, rank, _ = _require_dimensions("lora_down", self.lora_down, 3)
        up_size, out_features, up_rank = _require_dimensions("lora_up", self.lora_up, 3)
        key_size, key_dim = _require_dimensions("keys", self.keys, 2)
        wanted = {"lora_up": (up_size, size), "lora_up's rank": (up_rank, rank), "keys": (key_size, size)}
        if self.query_projection is not None:
            wanted["query_projection"] = (_require_dimensions("query_projection", self.query_projection, 2)[0], key_dim)
        if self.lora_bias is not None:
            bias_size, bias_out = _require_dimensions("lora_bias", self.lora_bias, 2)
            wanted |= {"lora_bias": (bias_size, size), "lora_bias's width": (bias_out, out_features)}
        for name, (got, expected) in wanted.items():
            if got != expected:
                raise ShapeError(
                    expected=f"{name} to have {expected} entries, as the layer's other tensors",
                    got=str(got),
                    remedy="The file was written wrongly or edited; get it again or convert it from its source.",
                )

    @property
    def basis_size(self) -> int:
        """N, how many adapters the layer has."""
        return self.lora_down.shape[0]

    @property
    def rank(self) -> int:
        """r, the rank of one adapter."""
        return self.lora_down.shape[1]

    @property
    def total_rank(self) -> int:
        """N·r, the rank of the mixed LoRA."""
        return self.basis_size * self.rank

    @property
    def in_features(self) -> int:
        """Width of the Linear's input."""
        return self.lora_down.shape[2]

    @property
    def out_features(self) -> int:
        """Width of the Linear's output."""
        return self.lora_up.shape[1]

    @property
    def key_dim(self) -> int:
        """K, the width of keys and projected queries."""
        return self.keys.shape[1]

    @property
    def query_dim(self) -> int:
        """Q, the width of the query embedding that this layer takes."""
        return self.key_dim if self.query_projection is None else self.query_projection.shape[1]


@dataclass(frozen=True, eq=False)
class Basis:
    """All layers of one trained basis, and how their coefficients are computed.

    Attributes:
        layers: layer name (diffusers module path without the file's `transformer.` prefix) → `LayerBasis`.
        settings: how a query becomes coefficients.
        basis_id: short hash of header, keys and projections; ties coefficients to their basis.
        name: file name without folder, for messages and reports.
        metadata: the file's own header strings, untouched.
        report: lines that say which settings were assumed, and why; empty when none was.
        settings_source: where the settings were stated (header, sidecar, argument, defaults), for people.
    """

    layers: Mapping[str, LayerBasis]
    settings: RouterSettings
    basis_id: str
    name: str = "basis"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    report: tuple[str, ...] = ()
    settings_source: str = "argument"

    @cached_property
    def query_dim(self) -> int:
        """Q, the width of the query embedding; equal in all layers (checked on loading)."""
        return next(iter(self.layers.values())).query_dim

    @property
    def embedding_dim(self) -> int:
        """P, the width of one image embedding: Q ÷ 3 for the joined modes, Q for the others."""
        return self.query_dim // self.settings.embeddings_per_query


def _require_dimensions(name: str, tensor: Tensor, dimensions: int) -> tuple[int, ...]:
    if tensor.dim() != dimensions or 0 in tensor.shape:
        raise ShapeError(
            expected=f"{name} with {dimensions} non-empty dimensions",
            got=f"shape {list(tensor.shape)}",
            remedy="The file was written wrongly or edited; get it again or convert it from its source.",
        )
    return tuple(tensor.shape)
