"""The best approximation of up @ down by fewer ranks, without ever forming the full product.

    up = Q_u R_u,   downᵀ = Q_d R_d,   R_u R_dᵀ = U S Vᵀ   (R × R)   ⇒   up @ down = (Q_u U) S (Q_d V)ᵀ

Keeping the largest singular values is optimal in the Frobenius norm (Eckart–Young). The split √S · √S balances the
two factors, which half precision likes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ReducedPair:
    """A factored matrix of lower rank and the share of its squared Frobenius norm that it keeps.

    Attributes:
        down: [k, in] float32.
        up: [out, k] float32.
        kept_energy: Σ_kept s² ÷ Σ_all s², in 0…1; 1.0 for a zero matrix.
    """

    down: Tensor
    up: Tensor
    kept_energy: float


def reduce_rank(down: Tensor, up: Tensor, *, rank: int) -> ReducedPair:
    """Return the best rank-`rank` approximation of up @ down.

    Args:
        down: [R, in], any float dtype.
        up: [out, R], any float dtype.
        rank: at least 1; more than R, in or out is cut to what the matrix can have.
    Source: SVD of a product through QR of its factors, Golub & Van Loan, Matrix Computations, section 8.6.
    """
    up_basis, up_core = torch.linalg.qr(up.float())
    down_basis, down_core = torch.linalg.qr(down.float().t())
    left, singular_values, right = torch.linalg.svd(up_core @ down_core.t(), full_matrices=False)
    root = singular_values[:rank].sqrt()
    energy = singular_values.double().square()
    total = float(energy.sum())
    return ReducedPair(
        down=root[:, None] * (right[:rank] @ down_basis.t()),
        up=(up_basis @ left[:, :rank]) * root,
        kept_energy=float(energy[:rank].sum()) / total if total else 1.0,
    )


def balance_pair(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return (down, up) of equal product in float32, with rows of down and columns of up equally long.

    Coefficients near zero folded into small weights would fall below half precision's range on one side alone.
    """
    down, up = down.float(), up.float()
    down_norms, up_norms = down.norm(dim=1), up.norm(dim=0)
    is_used = (down_norms > 0) & (up_norms > 0)
    ratio = torch.where(is_used, (up_norms / down_norms.clamp_min(1e-30)).sqrt(), torch.ones_like(up_norms))
    return down * ratio[:, None], up / ratio
