"""The trained Linear: a frozen base plus the basis of one layer, and the one router that serves all layers.

    y = base(x) + ((x @ downᵀ) ∘ c) @ up        down [N·r, in], up [N·r, out], c [B, N·r] (each coefficient r times)

All coefficients of a step come from one stacked product outside the blocks, so gradient checkpointing recomputes
no routing. The adapters stay in float32; the computation runs in the dtype of the base. The formula for
coefficients is `lorweb_core.router`'s. Source: arXiv 2602.15727, Section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lorweb_core.errors import ModelError
from lorweb_core.mixing import add_low_rank
from lorweb_core.router import coefficients_from_queries
from lorweb_core.settings import RouterSettings


class LoRWeBLinear(nn.Module):
    """A frozen Linear with N trained adapters of rank r; `scale` must be set before each forward.

    Args:
        base: the Linear to extend, possibly quantized (so its weight does not show its sizes); it is frozen.
        in_features, out_features: its sizes.
        basis_size, rank: N and r.
        device: of the adapters, which are always float32.

    Shape: x [B, ..., in] or [B, in] → [B, ..., out].
    """

    def __init__(
        self, base: nn.Module, in_features: int, out_features: int, *, basis_size: int, rank: int,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = in_features, out_features
        self.basis_size, self.rank = basis_size, rank
        self.down = nn.Parameter(torch.zeros(basis_size * rank, in_features, device=device))
        self.up = nn.Parameter(torch.zeros(basis_size * rank, out_features, device=device))
        #: [B, N·r], this forward's coefficients; handed over by `hand_out_coefficients`.
        self.scale: Tensor | None = None

    @property
    def weight(self) -> Any:  # noqa: ANN401 (a parameter, or a quantizer's own tensor class)
        """The base's weight, for code that looks at a Linear's dtype or device."""
        return self.base.weight

    @property
    def bias(self) -> Any:  # noqa: ANN401 (a parameter or None)
        """The base's bias."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return base(x) plus the contribution of this forward's mix."""
        output = self.base(x)
        assert self.scale is not None, "hand_out_coefficients comes first"
        return add_low_rank(output, x.to(output.dtype), self.down, self.scale, self.up)

    def initialize(self, generator: torch.Generator) -> None:
        """Initialize as the reference: down uniform in ±1/√(in·r) (Kaiming on the file's [N, in, r]), up zero."""
        bound = 1 / math.sqrt(self.in_features * self.rank)
        with torch.no_grad():
            drawn = torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator)
            self.down.copy_(drawn)
            self.up.zero_()


class StackedRouter(nn.Module):
    """Keys and query projections of all layers, stacked, so that one product routes the whole model.

    Args:
        layer_count, basis_size, key_dim, query_dim: M, N, K and Q (the width of the query embedding).
        settings: heads, activation and reduction.
        gain: factor on all coefficients; 1 is the paper's, N undoes the dilution by softmax. Folded on saving.
        device: of the parameters, which are always float32.

    Shape: query_embedding [B, Q] → coefficients [M, B, N], float32.
    """

    def __init__(
        self, layer_count: int, basis_size: int, key_dim: int, *, query_dim: int, settings: RouterSettings,
        gain: float = 1.0, device: torch.device | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings, self.gain, self.layer_count = settings, gain, layer_count
        self.query_projection = nn.Parameter(torch.zeros(layer_count * key_dim, query_dim, device=device))
        self.keys = nn.Parameter(torch.zeros(layer_count, basis_size, key_dim, device=device))

    def forward(self, query_embedding: Tensor) -> Tensor:
        """Return the coefficients times the gain, [M, B, N] float32."""
        queries = nn.functional.linear(query_embedding.float(), self.query_projection.float())
        per_layer = queries.unflatten(1, (self.layer_count, -1)).transpose(0, 1)
        return self.gain * coefficients_from_queries(per_layer, self.keys, settings=self.settings)

    def initialize(self, generator: torch.Generator) -> None:
        """Initialize as the reference: keys from N(0, 1), projections uniform in ±1/√Q."""
        bound = 1 / math.sqrt(self.query_projection.shape[1])
        with torch.no_grad():
            self.keys.copy_(torch.randn(self.keys.shape, generator=generator))
            drawn = torch.empty(self.query_projection.shape).uniform_(-bound, bound, generator=generator)
            self.query_projection.copy_(drawn)


def hand_out_coefficients(linears: Mapping[str, LoRWeBLinear], coefficients: Tensor) -> None:
    """Give every Linear its slice [B, N·r] of the stacked coefficients [M, B, N]; order of layers is the mapping's."""
    rank = next(iter(linears.values())).rank
    scales = coefficients.repeat_interleave(rank, dim=-1)
    for linear, scale in zip(linears.values(), scales.unbind(0), strict=True):
        linear.scale = scale


def target_layers(transformer: nn.Module, *, include: Iterable[str] = ("*",)) -> dict[str, tuple[int, int]]:
    """Return the Linears of both block types that the patterns select, name → (in, out), in the model's order.

    Raises ModelError when none is left.
    """
    linears = {
        name: (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(("transformer_blocks.", "single_transformer_blocks."))
    }
    patterns = list(include)
    selected = {n: sizes for n, sizes in linears.items() if any(fnmatchcase(n, pattern) for pattern in patterns)}
    if not selected:
        raise ModelError(
            f"basis.include {patterns} selects none of the {len(linears)} Linears in the transformer blocks. Use layer "
            'names with wildcards, such as "*.attn.*" or "single_transformer_blocks.*".'
        )
    return selected
