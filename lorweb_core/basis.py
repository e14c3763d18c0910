"""The learned objects: per targeted Linear a basis of N adapters with their keys and query projection.

Equation of one layer: y = base(x) + Σ_n c_n · (x A_n) B_n, with A_n [in, r] and B_n [r, out] as in the file and
c the coefficients of `router`. In code A and B are called `lora_down` [N, r, in] and `lora_up` [N, out, r].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from .errors import ShapeError
from .settings import RouterSettings

_DIMENSIONS = {
    "lora_down": ("N", "r", "in"),
    "lora_up": ("N", "out", "r"),
    "keys": ("N", "K"),
    "query_projection": ("K", "Q"),
    "lora_bias": ("N", "out"),
}


def describe_misfit(shapes: Mapping[str, Sequence[int]], dimensions: Mapping[str, Sequence[str]]) -> str:
    """Return the first shape that contradicts its dimensions or an earlier shape, or "" when all fit.

    `dimensions` names the dimensions of each tensor, such as N, r, in; equal names stand for equal sizes above 0.
    Example: "keys is [5, 8], not [N, K] with N = 4 as in lora_down".
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, letters in dimensions.items():
        if name not in shapes:
            continue
        shape = list(shapes[name])
        text = f"{name} is {shape!r:.80}, not [{', '.join(letters)}]"
        if len(shape) != len(letters) or 0 in shape:
            return text
        for letter, size in zip(letters, shape, strict=True):
            known, source = sizes.setdefault(letter, (size, name))
            if size != known:
                return f"{text} with {letter} = {known} as in {source}"
    return ""


@dataclass(frozen=True, eq=False)
class LayerBasis:
    """The N adapters of one Linear `in → out` and what routes among them; ShapeError when its tensors do not fit.

    Attributes:
        lora_down: [N, r, in]; row j of adapter n is column j of the file's lora_A[n].
        lora_up: [N, out, r]; a view of the file's lora_B [N, r, out] (so its memory order is N, r, out).
        keys: [N, K].
        query_projection: [K, Q], or None when the query embedding itself is the query (then Q = K).
        lora_bias: [N, out] or None; mixed with the same coefficients as the adapters.
    Source: arXiv 2602.15727, Section 3.2; their names in files: `checkpoint`.
    """

    lora_down: Tensor
    lora_up: Tensor
    keys: Tensor
    query_projection: Tensor | None = None
    lora_bias: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {name: tensor.shape for name in _DIMENSIONS if (tensor := getattr(self, name)) is not None}
        misfit = describe_misfit(shapes, _DIMENSIONS)
        if misfit:
            raise ShapeError(f"The tensors of a layer do not fit together: {misfit}. Take all from the same layer.")

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
        basis_id: short hash of header, keys and projections; ties coefficients to their basis.
        metadata: the file's own header strings, untouched.
        report: lines that say which settings were assumed, and why; empty when none was.
        settings_source: where the settings were stated (header, YAML files, defaults), for messages; empty for a basis
            that was not read from a file.
    """

    layers: Mapping[str, LayerBasis]
    settings: RouterSettings
    basis_id: str
    name: str = "basis"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    report: tuple[str, ...] = ()
    settings_source: str = ""

    @cached_property
    def query_dim(self) -> int:
        """Q, the width of the query embedding; equal in all layers (checked on loading)."""
        return next(iter(self.layers.values())).query_dim

    @property
    def embedding_dim(self) -> int:
        """P, the width of one image embedding: Q ÷ 3 for the joined modes, Q for the others."""
        return self.query_dim // self.settings.embeddings_per_query
