"""Metrics of every generated image; what is measured and unchanged stays.

    lpips            LPIPS(b, b̂′): how far the result is from b (see `lpips`); needs weights
    gmsd             the same question without weights: gradient magnitude similarity deviation (arXiv 1308.3052)
    clip_direction   cos(E(a′) − E(a), E(b̂′) − E(b)) with image embeddings E
    psnr, ssim       of b̂′ and the true b′, if it is known

b̂′ is resized to b first, except for the encoder. Every function returns a number, or the reason why there is none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lorweb_core.encoder import ImageEncoder, load_image_encoder
from lorweb_core.errors import LoRWeBError
from lorweb_core.images import from_pil, read_image

from .folder import EvaluationFolder, Record, fingerprint, model_key
from .lpips import MIN_SIDE_PX, Lpips, load_lpips
from .test_set import Sample

logger = logging.getLogger(__name__)
METRICS = ("lpips", "gmsd", "clip_direction", "psnr", "ssim")
NOT_MEASURED = "not measured"
Number = float | str
#: Mean squared error of rounding to 8 bits: two images that are closer count as equal, so PSNR is at most 58.9 dB.
ROUNDING_ERROR = 1 / (12 * 255**2)
_WINDOW_PX, _WINDOW_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_GMSD_C = 170 / 255**2
#: A difference of embeddings below this share of the embedding's length is rounding noise.
_ZERO_SHARE = 1e-5


def psnr(first: Tensor, second: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of two images [H, W, 3], float 0-1; see ROUNDING_ERROR."""
    error = float((first.double() - second.double()).square().mean())
    return -10 * math.log10(max(error, ROUNDING_ERROR))


def ssim(first: Tensor, second: Tensor) -> Number:
    """Return the structural similarity of two images [H, W, 3], float 0-1, mean over positions and channels.

    Source: Wang et al. 2004: Gaussian window of 11 px, sigma 1.5, K = 0.01 and 0.03, no padding.
    """
    if min(first.shape[:2]) < _WINDOW_PX:
        return f"SSIM needs sides of at least {_WINDOW_PX} px"
    offsets = torch.arange(_WINDOW_PX, dtype=torch.float64) - _WINDOW_PX // 2
    window = torch.exp(-(offsets**2) / (2 * _WINDOW_SIGMA**2))
    window = window / window.sum()

    def blur(images: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(images, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    x, y = (image.double().permute(2, 0, 1)[:, None] for image in (first, second))
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    below = (mean_x**2 + mean_y**2 + _SSIM_C1) * (variance_x + variance_y + _SSIM_C2)
    return float((above / below).mean())


def gmsd(first: Tensor, second: Tensor) -> Number:
    """Return the gradient magnitude similarity deviation of two images [H, W, 3], float 0-1; 0 if they are equal.

    s = (2 g₁ g₂ + c) / (g₁² + g₂² + c) with Prewitt gradients g of the gray images at half size; the result is the
    standard deviation of s over positions, without padding. It sees structure, not color.
    """
    if min(first.shape[:2]) < 8:
        return "GMSD needs sides of at least 8 px"
    gray = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    prewitt = torch.tensor([[1.0, 0.0, -1.0]] * 3, dtype=torch.float64)[None, None] / 3
    magnitudes = []
    for image in (first, second):
        half = functional.avg_pool2d((image.double() @ gray)[None, None], 2)
        across, down = functional.conv2d(half, prewitt), functional.conv2d(half, prewitt.transpose(2, 3))
        magnitudes.append((across**2 + down**2).sqrt())
    one, two = magnitudes
    similarity = (2 * one * two + _GMSD_C) / (one**2 + two**2 + _GMSD_C)
    return float(similarity.std(correction=0))


def clip_direction(a: Tensor, a_prime: Tensor, b: Tensor, result: Tensor) -> Number:
    """Return the cosine of the two changes of image embeddings [P], which are not normalized."""
    shown, made = (a_prime - a).double(), (result - b).double()
    if float(shown.norm()) <= _ZERO_SHARE * float(a.norm()):
        return "a′ equals a"
    if float(made.norm()) <= _ZERO_SHARE * float(b.norm()):
        return "the result equals b"
    return float(functional.cosine_similarity(shown, made, dim=0))


@dataclass
class Meter:
    """Computes metrics; without LPIPS or an encoder those metrics are not measured."""

    lpips: Lpips | None
    encoder: ImageEncoder | None
    weights: dict[str, str]  # metric → identifies the content of its weights
    _embeddings: dict[Path, Tensor] = field(default_factory=dict, repr=False)

    @property
    def metrics(self) -> list[str]:
        """The metrics it can compute."""
        lacking = {"lpips": self.lpips is None, "clip_direction": self.encoder is None}
        return [name for name in METRICS if not lacking.get(name)]

    def measure(self, folder: EvaluationFolder, sample: Sample, image: Image.Image, metric: str) -> Number:
        """Return one metric of a generated image."""
        b = read_image(folder.inputs(sample.id) / "b.png")
        result = from_pil(image if image.size == b.size else image.resize(b.size, Image.Resampling.LANCZOS))
        if metric == "gmsd":
            return gmsd(from_pil(b), result)
        if metric == "lpips":
            assert self.lpips is not None
            if min(b.size) < MIN_SIDE_PX:
                return f"LPIPS needs sides of at least {MIN_SIDE_PX} px"
            return float(self.lpips.distance(from_pil(b)[None], result[None])[0])
        if metric == "clip_direction":
            assert self.encoder is not None
            paths = folder.triplet(sample.id)
            for path in paths:
                if path not in self._embeddings:  # shared by all methods
                    self._embeddings[path] = self.encoder.embed(from_pil(read_image(path))[None])[0]
            a, a_prime, b_embedding = (self._embeddings[path] for path in paths)
            return clip_direction(a, a_prime, b_embedding, self.encoder.embed(from_pil(image)[None])[0])
        if sample.truth is None:
            return "the true b′ is not known"
        truth = read_image(folder.truth(sample.id))
        expected = from_pil(truth if truth.size == b.size else truth.resize(b.size, Image.Resampling.LANCZOS))
        return psnr(expected, result) if metric == "psnr" else ssim(expected, result)


def load_meter(
    *, lpips_backbone: Path | None, lpips_heads: Path | None = None, clip_encoder: str | None,
    is_encoder_required: bool = False, device: torch.device | str = "cpu",
) -> Meter:  # fmt: skip
    """Return a meter; metrics that it cannot compute are logged.

    Without `lpips_backbone` there is no LPIPS, without `clip_encoder` (folder or id) no CLIP direction. Raises
    LoRWeBError if LPIPS, or an encoder that is required because the user named it, cannot be loaded.
    """
    lpips = None if lpips_backbone is None else load_lpips(lpips_backbone, lpips_heads)
    if lpips is None:
        logger.warning("LPIPS is not measured: it needs --lpips-backbone")
    encoder = None
    if clip_encoder is not None:
        try:
            encoder = load_image_encoder(clip_encoder, device=device)
        except LoRWeBError as error:
            if is_encoder_required:
                raise
            logger.warning("CLIP direction is not measured: %s", error)
    weights = {
        "lpips": fingerprint(model_key(lpips_backbone), model_key(lpips_heads)),
        "clip_direction": fingerprint(model_key(clip_encoder)),
    }
    return Meter(lpips, encoder, weights)


def measure_all(folder: EvaluationFolder, meter: Meter, methods: Sequence[str], samples: Sequence[Sample]) -> None:
    """Compute every metric that is missing, or is of other images or by other weights."""
    for method in methods:
        for sample in tqdm(samples, desc=f"measuring {method}", unit="image", disable=None):
            of = measured_images(folder, method, sample)
            if of is None:
                continue
            image = None
            for metric in meter.metrics:
                found, weights = folder.measurements.get(method, sample.id, metric), meter.weights.get(metric)
                if found is not None and (found["of"], found["weights"]) == (of, weights):
                    continue
                image = image or read_image(folder.image(method, sample.id))
                number = meter.measure(folder, sample, image, metric)
                record: Record = {"method": method, "sample": sample.id, "metric": metric, "of": of, "weights": weights}
                record |= {"value": None, "reason": number} if isinstance(number, str) else {"value": number}
                folder.measurements.append(record)


def read_number(folder: EvaluationFolder, method: str, sample: Sample, metric: str) -> Number:
    """Return a metric of a method's image as it is now, or the reason why there is none."""
    record = folder.measurements.get(method, sample.id, metric)
    if record is None or record["of"] != measured_images(folder, method, sample):
        return NOT_MEASURED
    return str(record["reason"]) if record["value"] is None else float(record["value"])


def measured_images(folder: EvaluationFolder, method: str, sample: Sample) -> str | None:
    """Identifies the images that a measurement depends on; None if the method has none."""
    sha256 = folder.image_sha256(method, sample.id)
    return None if sha256 is None else fingerprint(sha256, sample.inputs, sample.truth)
