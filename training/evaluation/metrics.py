"""Numbers from pixels and image embeddings; every function gives a number or says why there is none.

LPIPS(b, b̂′): how far the result went from b (see `lpips`). CLIP direction: cos(E(a′)−E(a), E(b̂′)−E(b)).
Where the true b′ is known also PSNR(b′, b̂′) and SSIM(b′, b̂′). Pictures of other sizes are brought to b's first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

#: Mean squared error of rounding to 8 bits; below it two pictures count as equal, so PSNR ends at 58.9 dB.
ROUNDING_ERROR = 1 / (12 * 255**2)
_WINDOW_PX, _WINDOW_SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
#: Lengths of embedding differences below this share of the embedding's own length are rounding noise.
_ZERO_SHARE = 1e-5


@dataclass(frozen=True)
class NoNumber:
    """Why a measure has no value for a sample; equal reasons are counted together."""

    reason: str


def psnr(first: Tensor, second: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, at most 58.9 (see ROUNDING_ERROR).

    Args:
        first, second: [H, W, 3], float 0–1, of one size.
    """
    error = float((first.double() - second.double()).square().mean())
    return -10 * math.log10(max(error, ROUNDING_ERROR))


def ssim(first: Tensor, second: Tensor) -> float | NoNumber:
    """Return the structural similarity, mean over positions and channels.

    Args:
        first, second: [H, W, 3], float 0–1, of one size.
    Source: Wang et al. 2004: Gaussian window of 11 px, σ 1.5, K = 0.01 and 0.03, no padding.
    """
    if min(first.shape[:2]) < _WINDOW_PX:
        return NoNumber(f"SSIM needs sides of at least {_WINDOW_PX} px")
    x, y = (picture.double().permute(2, 0, 1)[:, None] for picture in (first, second))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    below = (mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2)
    return float((above / below).mean())


def clip_direction(a: Tensor, a_prime: Tensor, b: Tensor, result: Tensor) -> float | NoNumber:
    """Return the cosine between the two changes in embedding space.

    Args:
        a, a_prime, b, result: [P], image embeddings, not normalised.
    """
    shown, made = (a_prime - a).double(), (result - b).double()
    if float(shown.norm()) <= _ZERO_SHARE * float(a.norm()):
        return NoNumber("zero-length CLIP direction: a′ equals a")
    if float(made.norm()) <= _ZERO_SHARE * float(b.norm()):
        return NoNumber("zero-length CLIP direction: the result equals b")
    return float(functional.cosine_similarity(shown, made, dim=0))


def to_size(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a picture stretched to (width, height); the same picture when it has that size."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _blur(pictures: Tensor) -> Tensor:
    """Gaussian mean of [C, 1, H, W] over the window, without padding."""
    offsets = torch.arange(_WINDOW_PX, dtype=pictures.dtype) - _WINDOW_PX // 2
    weights = torch.exp(-(offsets**2) / (2 * _WINDOW_SIGMA**2))
    weights = weights / weights.sum()
    rows = functional.conv2d(pictures, weights.view(1, 1, -1, 1))
    return functional.conv2d(rows, weights.view(1, 1, 1, -1))
