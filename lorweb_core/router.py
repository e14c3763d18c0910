"""From a query embedding to the coefficients of every layer.

    c = reduce_h( activation( (e · W_qᵀ)_h · k_hᵀ / √d ) ),   d = K / heads

e [Q] is the query embedding of one analogy, W_q [K, Q] the layer's query projection, k [N, K] its keys. The
scores depend on nothing else, so c holds for every step and token. Always float32, whatever the file's dtype:
bf16 costs up to 1e-3 on a coefficient.

Source: arXiv 2602.15727, Eq. 3 and 4; heads, tanh, sum and clamp as the published checkpoint format defines them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .basis import Basis, LayerBasis
from .errors import ShapeError
from .settings import RouterSettings

#: Float32 query projections stacked at a time; bounds the extra memory of routing a whole basis.
_STACK_BYTES = 16 * 2**20


@torch.no_grad()
def route_query(basis: Basis, query_embedding: Tensor) -> dict[str, Tensor]:
    """Return the coefficients for a batch of analogies: layer name → float32 CPU [B, N], in the basis' layer order.

    query_embedding is [B, images, P] (joined in their order) or [B, Q], any float dtype. Raises ShapeError when the
    width is not the basis' Q, or a value is NaN or infinite.
    """
    embedding = join_query_embedding(query_embedding, basis.query_dim).to("cpu", torch.float32)
    coefficients: dict[str, Tensor] = {}
    workspace = torch.empty(_STACK_BYTES // 4)
    for names, layers in _stackable_runs(basis):
        queries = _project_queries(embedding, layers, workspace)
        keys = torch.stack([layer.keys for layer in layers]).float()
        mixes = coefficients_from_queries(queries, keys, settings=basis.settings)
        coefficients.update(zip(names, mixes.unbind(0), strict=True))
    return coefficients


def join_query_embedding(query_embedding: Tensor, query_dim: int) -> Tensor:
    """Return the query embedding as [B, Q], checked to be finite and as wide as the basis expects."""
    if query_embedding.dim() not in (2, 3) or query_embedding.shape[0] == 0:
        raise ShapeError(
            f"The query embedding has shape {list(query_embedding.shape)}, not [batch, width] or [batch, images, "
            "width] with at least one row. Embed at least one triplet a, a', b and stack the results."
        )
    joined = query_embedding.flatten(1)
    if joined.shape[1] != query_dim:
        raise ShapeError(
            f"This basis needs a query embedding of width {query_dim}, but it is {joined.shape[1]} wide (shape "
            f"{list(query_embedding.shape)}). Use the image encoder and the query mode that the basis was trained with."
        )
    if not bool(torch.isfinite(joined).all()):
        raise ShapeError(
            "The query embedding holds NaN or infinity. Check the images and the image encoder's file; run the encoder "
            "in float32 or bfloat16."
        )
    return joined


def _project_queries(embedding: Tensor, layers: Sequence[LayerBasis], workspace: Tensor) -> Tensor:
    """The queries [layers, B, K] of layers of equal shapes for embeddings [B, Q], by one stacked product.

    The float32 copies of the projections lie in the workspace: a new block for every stack would fragment the heap
    until a whole second set of projections is held.
    """
    projections = [layer.query_projection for layer in layers if layer.query_projection is not None]
    if not projections:
        return embedding.expand(len(layers), *embedding.shape)
    shape = (len(layers), layers[0].key_dim, layers[0].query_dim)
    size = math.prod(shape)
    stacked = (workspace[:size] if size <= len(workspace) else workspace.new_empty(size)).view(shape)
    for matrix, projection in zip(stacked, projections, strict=True):
        matrix.copy_(projection)
    return (embedding @ stacked.flatten(0, 1).t()).unflatten(1, shape[:2]).transpose(0, 1)


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


def _stackable_runs(basis: Basis) -> Iterator[tuple[list[str], list[LayerBasis]]]:
    """Consecutive layers of equal N, K, Q, as many at a time as the stack's memory bound allows."""

    def routing_shape(layer: LayerBasis) -> tuple[int, int, int, bool]:
        return layer.basis_size, layer.key_dim, layer.query_dim, layer.query_projection is not None

    names: list[str] = []
    layers: list[LayerBasis] = []
    for name, layer in basis.layers.items():
        bytes_per_layer = 4 * layer.key_dim * (layer.query_dim if layer.query_projection is not None else 1)
        is_full = (len(layers) + 1) * bytes_per_layer > _STACK_BYTES
        if layers and (is_full or routing_shape(layer) != routing_shape(layers[0])):
            yield names, layers
            names, layers = [], []
        names.append(name)
        layers.append(layer)
    if layers:
        yield names, layers
