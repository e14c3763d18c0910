"""From a query embedding to the coefficients of every layer.

    c = reduce_h( activation( (e · W_qᵀ)_h · k_hᵀ / √d ) ),   d = K / heads

e [Q] is the query embedding of one analogy, W_q [K, Q] the layer's query projection, k [N, K] its keys. The
scores depend on nothing else, so c holds for every step and token. Always float32, whatever the file's dtype:
bf16 costs up to 1e-3 on a coefficient.

Source: arXiv 2602.15727, Eq. 3 and 4; heads, tanh, sum and clamp as the published checkpoint format defines them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .basis import Basis
from .errors import ShapeError
from .settings import RouterSettings


@torch.no_grad()
def route_query(basis: Basis, query_embedding: Tensor) -> dict[str, Tensor]:
    """Return the coefficients for a batch of analogies: layer name → float32 CPU [B, N], in the basis' layer order.

    query_embedding is [B, images, P] (joined in their order) or [B, Q], any float dtype. Raises ShapeError when the
    width is not the basis' Q, or a value is NaN or infinite.
    """
    if query_embedding.dim() not in (2, 3) or query_embedding.shape[0] == 0:
        raise ShapeError(
            f"The query embedding has shape {list(query_embedding.shape)}, not [batch, width] or [batch, images, "
            "width] with at least one row. Embed at least one triplet a, a', b and stack the results."
        )
    embedding = query_embedding.flatten(1).to("cpu", torch.float32)
    if embedding.shape[1] != basis.query_dim:
        raise ShapeError(
            f"This basis needs a query embedding of width {basis.query_dim}, but it is {embedding.shape[1]} wide "
            f"(shape {list(query_embedding.shape)}). Use the image encoder and the query mode that the basis was "
            "trained with."
        )
    if not bool(torch.isfinite(embedding).all()):
        raise ShapeError(
            "The query embedding holds NaN or infinity. Check the images and the image encoder's file; run the encoder "
            "in float32 or bfloat16."
        )
    coefficients = {}
    for name, layer in basis.layers.items():
        projection = layer.query_projection
        query = embedding if projection is None else embedding @ projection.float().t()
        coefficients[name] = coefficients_from_queries(query, layer.keys, settings=basis.settings)
    return coefficients


def coefficients_from_queries(queries: Tensor, keys: Tensor, *, settings: RouterSettings) -> Tensor:
    """Return coefficients [..., B, N] from projected queries [..., B, K] and keys [..., N, K].

    Differentiable and free of in-place work, so the trainer uses it as it is. float32 inside and out.
    """
    heads = settings.heads
    query_heads = queries.float().unflatten(-1, (heads, -1)).transpose(-2, -3)  # [..., H, B, d]
    key_heads = keys.float().unflatten(-1, (heads, -1)).transpose(-2, -3)  # [..., H, N, d]
    scores = query_heads @ key_heads.transpose(-1, -2) / math.sqrt(query_heads.shape[-1])
    is_softmax = settings.activation == "softmax"
    activated = scores.softmax(-1) if is_softmax else scores.tanh()
    if settings.reduction == "mean":
        return activated.mean(-3)
    return activated.sum(-3).clamp(0.0 if is_softmax else -1.0, 1.0)
