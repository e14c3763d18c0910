"""Stage 2, first half: the numbers of every picture, one record each; what is measured already stays.

A measure whose weights are missing is null with the reason, in the record and in the tables.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lorweb_core.encoder import ImageEncoder, load_image_encoder
from lorweb_core.errors import LoRWeBError
from lorweb_core.images import from_pil

from ..data.pictures import load_picture
from .folder import EvaluationFolder, file_hash, fingerprint
from .generation import picture_hash
from .lpips import MIN_SIDE_PX, Lpips, load_lpips
from .metrics import NoNumber, clip_direction, psnr, ssim, to_size
from .samples import Sample

logger = logging.getLogger(__name__)
MEASURES = ("lpips", "clip_direction", "psnr", "ssim")
Number = float | NoNumber
LoadedT = TypeVar("LoadedT", Lpips, ImageEncoder)


@dataclass
class Meter:
    """What measures pictures.

    Attributes:
        lpips: the network, or why there is none.
        encoder: the image encoder of the CLIP direction, or why there is none.
        made_of: names both; part of a record's fingerprint.
    """

    lpips: Lpips | NoNumber
    encoder: ImageEncoder | NoNumber
    made_of: str
    _embeddings: dict[Path, Tensor] = field(default_factory=dict, repr=False)

    def measure(self, folder: EvaluationFolder, sample: Sample, picture: Image.Image) -> dict[str, Number]:
        """Return every measure of one b̂′."""
        b = load_picture(folder.inputs(sample.id) / "b.png")
        result, pixels_b = from_pil(to_size(picture, b.size)), from_pil(b)
        numbers: dict[str, Number] = {
            "lpips": self.distance(pixels_b, result),
            "clip_direction": self._direction(folder, sample, from_pil(picture)),
        }
        if not sample.has_truth:
            return numbers | dict.fromkeys(("psnr", "ssim"), NoNumber("the set has no true b′"))
        truth = from_pil(to_size(load_picture(folder.truth(sample.id)), b.size))
        return numbers | {"psnr": psnr(truth, result), "ssim": ssim(truth, result)}

    def distance(self, first: Tensor, second: Tensor) -> Number:
        """Return LPIPS of two pictures [H, W, 3] of one size."""
        if isinstance(self.lpips, NoNumber):
            return self.lpips
        if min(first.shape[:2]) < MIN_SIDE_PX:
            return NoNumber(f"LPIPS needs sides of at least {MIN_SIDE_PX} px")
        return float(self.lpips.distance(first[None], second[None])[0])

    def _direction(self, folder: EvaluationFolder, sample: Sample, result: Tensor) -> Number:
        if isinstance(self.encoder, NoNumber):
            return self.encoder
        paths = [folder.inputs(sample.id) / f"{part}.png" for part in ("a", "a_prime", "b")]
        a, a_prime, b = (self._embed_file(self.encoder, path) for path in paths)
        return clip_direction(a, a_prime, b, self.encoder.embed(result[None])[0])

    def _embed_file(self, encoder: ImageEncoder, path: Path) -> Tensor:
        """Embed a picture that every method shares; once."""
        if path not in self._embeddings:
            self._embeddings[path] = encoder.embed(from_pil(load_picture(path))[None])[0]
        return self._embeddings[path]


def load_meter(
    *, lpips_backbone: Path | None, lpips_heads: Path | None, clip_encoder: str | None, device: str = "cpu"
) -> Meter:
    """Return a meter with whatever can be loaded; what cannot is told in the log and becomes the reason of its nulls.

    Args:
        lpips_backbone: see `load_lpips`; None: no LPIPS.
        lpips_heads: see `load_lpips`.
        clip_encoder: folder or id of the image encoder; None: no CLIP direction.
        device: of the encoder.
    """

    def lpips() -> Lpips | NoNumber:
        if lpips_backbone is None:
            return NoNumber("LPIPS has no weights: give --lpips-backbone")
        return load_lpips(lpips_backbone, lpips_heads)

    def encoder() -> ImageEncoder | NoNumber:
        if clip_encoder is None:
            return NoNumber("CLIP direction is switched off")
        return load_image_encoder(clip_encoder, device=device)

    network, tower = _or_reason(lpips, "LPIPS"), _or_reason(encoder, "CLIP direction")
    backbone = file_hash(lpips_backbone) if lpips_backbone is not None and isinstance(network, Lpips) else ""
    identity = tower.encoder_id if isinstance(tower, ImageEncoder) else ""
    return Meter(network, tower, fingerprint(backbone, identity))


def measure_all(folder: EvaluationFolder, meter: Meter, methods: Sequence[str], samples: Sequence[Sample]) -> None:
    """Measure every picture that has no current record."""
    for method in methods:
        for sample in tqdm(samples, desc=f"measuring {method}", unit="picture", disable=None):
            digest = picture_hash(folder, method, sample.id)
            found = folder.measurements.find(method, sample.id)
            wanted = fingerprint(digest, meter.made_of)
            if digest is None or (found is not None and found["source"] == wanted):
                continue
            picture = load_picture(folder.picture(method, sample.id))
            numbers = meter.measure(folder, sample, picture)
            folder.measurements.append(
                {
                    "method": method, "sample": sample.id, "task": sample.task, "source": wanted,
                    "picture_sha256": digest,
                    "numbers": {name: None if isinstance(n, NoNumber) else n for name, n in numbers.items()},
                    "reasons": {name: n.reason for name, n in numbers.items() if isinstance(n, NoNumber)},
                }
            )  # fmt: skip


def _or_reason(load: Callable[[], LoadedT | NoNumber], name: str) -> LoadedT | NoNumber:
    """What was loaded, or why it was not; said in the log."""
    try:
        loaded = load()
    except LoRWeBError as error:
        loaded = NoNumber(f"{name}: {error}")
    if isinstance(loaded, NoNumber):
        logger.warning("%s is reported as null: %s", name, loaded.reason)
    return loaded
