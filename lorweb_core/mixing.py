"""Coefficients and a basis → the one LoRA that an analogy stands for.

    delta = strength · Σ_n c_n · up_n @ down_n          (kept factored: rank N·r)
    y     = base(x) + (x @ downᵀ ∘ c) @ upᵀ  [+ Σ_n c_n · bias_n]

Three forms of the same thing: a factored pair with c folded in (`mix_layer`), the full weight change
(`layer_delta`), and the contribution to a forward pass with one c per sample (`add_contribution`). Source:
arXiv 2602.15727, Eq. 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .basis import LayerBasis
from .errors import ShapeError


@dataclass(frozen=True, eq=False)
class MixedLayer:
    """The mixed LoRA of one layer: delta = up [out, N·r] @ down [N·r, in], plus a bias [out] when the basis has one."""

    down: Tensor
    up: Tensor
    bias: Tensor | None = None


def mix_layer(layer: LayerBasis, coefficients: Tensor, *, strength: float = 1.0) -> MixedLayer:
    """Return the mixed LoRA of one layer as an ordinary (down, up) pair.

    delta = strength · Σ_n coefficients[n] · up[n] @ down[n]   (arXiv 2602.15727, Eq. 5), kept factored: rank N·r.
    The coefficients are folded, in float32, into the side with fewer numbers; the other side is a view of the basis
    in its dtype. A negative strength reverses the edit. Raises ShapeError if coefficients is not [N].
    """
    _require_coefficients(layer, coefficients, dimensions=1)
    scale = strength * coefficients.float()
    per_row = expand_to_ranks(layer, scale)
    down, up = stacked_down(layer), stacked_up(layer).t()
    if layer.in_features <= layer.out_features:
        down = down.float() * per_row[:, None]  # mixed dtypes would multiply ten times slower
    else:
        up = up.float() * per_row
    bias = None if layer.lora_bias is None else scale @ layer.lora_bias.float()
    return MixedLayer(down, up, bias)


def layer_delta(layer: LayerBasis, coefficients: Tensor, *, strength: float = 1.0) -> Tensor:
    """Return the weight change [out, in] of one layer's mixed LoRA in float32; bias not included."""
    mixed = mix_layer(layer, coefficients, strength=strength)
    return mixed.up.float() @ mixed.down.float()


def add_contribution(
    output: Tensor, x: Tensor, layer: LayerBasis, coefficients: Tensor, *, strength: float = 1.0
) -> Tensor:
    """Return output [B, ..., out] + the contribution for x [B, ..., in], one mix per sample; a new tensor.

    `layer` lies on x's device; coefficients are [mixes, N] (see `per_sample_scale`). Raises ShapeError when the batch
    is not a multiple of the mixes, or there are not N coefficients.
    """
    _require_coefficients(layer, coefficients, dimensions=2)
    scale = (strength * coefficients.float()).to(x.device)
    result = add_low_rank(output, x, stacked_down(layer), expand_to_ranks(layer, scale), stacked_up(layer))
    if layer.lora_bias is None:
        return result
    return result + per_sample_scale(scale @ layer.lora_bias.float(), x).to(output.dtype)


def add_low_rank(output: Tensor, x: Tensor, down: Tensor, scale: Tensor, up: Tensor) -> Tensor:
    """Return output + ((x @ downᵀ) ∘ scale) @ up, in output's dtype; differentiable.

    output [B, ..., out], x [B, ..., in], down [R, in], scale [mixes, R] (see `per_sample_scale`), up [R, out].
    """
    hidden = project_and_scale(x, down, scale).flatten(0, -2).to(output.dtype)
    return torch.addmm(output.flatten(0, -2), hidden, up.to(output.dtype)).view(output.shape)


def project_and_scale(x: Tensor, down: Tensor, scale: Tensor) -> Tensor:
    """Return (x @ downᵀ) ∘ scale, [B, ..., R] in x's dtype: what several up matrices can share."""
    return torch.nn.functional.linear(x, down.to(x)) * per_sample_scale(scale, x).to(x)


def stacked_down(layer: LayerBasis) -> Tensor:
    """Return all adapters' down matrices as one, [N·r, in]; a view of the basis."""
    return layer.lora_down.flatten(0, 1)


def stacked_up(layer: LayerBasis) -> Tensor:
    """Return all adapters' up matrices as one, transposed, [N·r, out]; a view of the basis as read from a file."""
    return layer.lora_up.transpose(1, 2).flatten(0, 1)


def expand_to_ranks(layer: LayerBasis, coefficients: Tensor) -> Tensor:
    """Return coefficients [..., N] repeated for each rank, [..., N·r], in the order of the stacked matrices."""
    return coefficients.repeat_interleave(layer.rank, dim=-1)


def per_sample_scale(scale: Tensor, x: Tensor) -> Tensor:
    """Return scale [mixes, R] shaped to multiply x's projection [B, ..., R], repeating the mixes over the batch.

    Row i gets mix i modulo the number of mixes. Samplers concatenate whole latent batches, conditional and
    unconditional: each latent gets its own mix only where the latent batch itself is a multiple of the mixes, which
    only the caller can check. Raises ShapeError when B is not such a multiple.
    """
    mixes, batch = scale.shape[0], x.shape[0]
    if batch % mixes:
        raise ShapeError(
            f"The latent batch is {batch}, not a multiple of the {mixes} mixes (one per analogy). "
            f"Make the latent batch {mixes}, or encode one analogy only."
        )
    repeated = scale if mixes in (1, batch) else scale.repeat(batch // mixes, 1)
    return repeated.reshape(repeated.shape[0], *(1,) * (x.dim() - 2), -1)


def _require_coefficients(layer: LayerBasis, coefficients: Tensor, *, dimensions: int) -> None:
    """Raise a ShapeError unless coefficients are [N] (dimensions 1) or [B, N] (dimensions 2)."""
    if coefficients.dim() == dimensions and coefficients.shape[-1] == layer.basis_size:
        return
    wanted = f"[{layer.basis_size}]" if dimensions == 1 else f"[batch, {layer.basis_size}]"
    raise ShapeError(
        f"The coefficients have shape {list(coefficients.shape)}, but the layer's adapters need {wanted}. "
        "Compute them with this basis' own router."
    )
