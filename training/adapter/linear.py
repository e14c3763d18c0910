"""The trained Linear: a frozen base plus the basis of one layer, and the one router that serves all layers.

    y = base(x) + ((x @ downᵀ) ∘ c) @ up        down [N·r, in], up [N·r, out], c [B, N·r] (each coefficient r times)

All coefficients of a step come from one stacked product outside the blocks, so gradient checkpointing recomputes
no routing, and the same tensors reach every recomputation. The weights stay in their master dtype; the maths runs
in the dtype of the base. The formula for coefficients is `lorweb_core.router`'s.
Source: arXiv 2602.15727, Section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
        base: the Linear to extend, possibly quantized; it is kept as it is and frozen.
        in_features: width of the input (a quantized Linear's weight does not show it).
        out_features: width of the output.
        basis_size: N.
        rank: r.
        device: where the adapters live.
        dtype: their master dtype, float32 or bfloat16.

    Shape: x [B, ..., in] or [B, in] → [B, ..., out].
    """

    def __init__(
        self,
        base: nn.Module,
        in_features: int,
        out_features: int,
        *,
        basis_size: int,
        rank: int,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = in_features, out_features
        self.basis_size, self.rank = basis_size, rank
        self.down = nn.Parameter(torch.zeros(basis_size * rank, in_features, device=device, dtype=dtype))
        self.up = nn.Parameter(torch.zeros(basis_size * rank, out_features, device=device, dtype=dtype))
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
        """Return base(x) plus the mix of this step; without `scale` the base alone."""
        output = self.base(x)
        if self.scale is None:
            return output
        return add_low_rank(output, x.to(output.dtype), self.down, self.scale, self.up)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw down within ±1/√(in·r) (Kaiming on the file's [N, in, r]) and set up to zero, as the reference does."""
        bound = 1 / math.sqrt(self.in_features * self.rank)
        with torch.no_grad():
            drawn = torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator)
            self.down.copy_(drawn)
            self.up.zero_()


class StackedRouter(nn.Module):
    """Keys and query projections of all layers, stacked, so that one product routes the whole model.

    Args:
        layer_count: M.
        basis_size: N.
        key_dim: K.
        query_dim: Q, width of the query embedding.
        settings: heads, activation and reduction.
        gain: factor on all coefficients; 1 is the paper's, N undoes the dilution by softmax. Folded on saving.
        device: where the parameters live. They are float32 always.

    Shape: query_embedding [B, Q] → coefficients [M, B, N], float32.
    """

    def __init__(
        self,
        layer_count: int,
        basis_size: int,
        key_dim: int,
        *,
        query_dim: int,
        settings: RouterSettings,
        gain: float = 1.0,
        device: torch.device | None = None,
    ) -> None:
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
        """Draw keys from N(0, 1) and projections within ±1/√Q, as the reference does."""
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


def take_coefficients_back(linears: Mapping[str, LoRWeBLinear]) -> None:
    """Let every Linear act as its base alone again."""
    for linear in linears.values():
        linear.scale = None


# Which Linears of a FLUX transformer are trained, and putting the trained ones in their place.


BLOCK_LISTS = ("transformer_blocks.", "single_transformer_blocks.")


def target_layers(transformer: nn.Module, *, include: tuple[str, ...] = ("*",)) -> dict[str, tuple[int, int]]:
    """Return the Linears of both block types that the patterns select, name → (in, out), in the model's order.

    Raises: ModelError: when none is left.
    """
    linears = {
        name: (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(BLOCK_LISTS)
    }
    selected = {name: sizes for name, sizes in linears.items() if _matches(name, include)}
    if not selected:
        raise ModelError(
            expected="at least one Linear of the transformer blocks to match basis.include",
            got=f"{len(linears)} Linears, none selected by {list(include)}",
            remedy='Use layer names with wildcards, such as "*.attn.*" or "single_transformer_blocks.*".',
        )
    return selected


def attach_linears(
    transformer: nn.Module,
    names: Mapping[str, tuple[int, int]],
    *,
    basis_size: int,
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, LoRWeBLinear]:
    """Replace the named Linears (name → (in, out)) by trained ones, in place, and return these by name."""
    linears = {}
    for name, (in_features, out_features) in names.items():
        parent_name, _, child = name.rpartition(".")
        parent = transformer.get_submodule(parent_name)
        linears[name] = LoRWeBLinear(
            parent.get_submodule(child), in_features, out_features,
            basis_size=basis_size, rank=rank, device=device, dtype=dtype,
        )  # fmt: skip
        parent.register_module(child, linears[name])
    return linears


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
