"""Images → the pixels an image encoder was trained on.

resize with PIL (8 bit, the short edge or both) → center crop → ÷ 255 → (x - mean) / std, equal bit for bit to
Hugging Face's PIL image processors, without torchvision. ComfyUI's own resize differs by up to half a pixel on
non-square images; `fit_images` gives it images on which it has nothing left to resize.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import FileError, ModelError, printable
from .files import read_json
from .images import require_images, to_8bit
from .settings import CLIP_ENCODER_ID, SIGLIP_ENCODER_ID

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the square input of an image encoder.

    Attributes:
        size_px: side S of the encoder's input.
        shortest_edge_px: the short edge is resized to this and the center S×S is kept; None: the whole image is
            resized to S×S and its aspect is lost.
        resample: PIL's number of the filter: 2 bilinear, 3 bicubic.
        mean, std: per channel, of values 0–1.
    """

    size_px: int
    shortest_edge_px: int | None
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


#: openai/clip-vit-large-patch14.
CLIP_PREPROCESSING = Preprocessing(
    size_px=224,
    shortest_edge_px=224,
    resample=Image.Resampling.BICUBIC.value,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
#: google/siglip2-base-patch16-224.
SIGLIP2_PREPROCESSING = Preprocessing(
    size_px=224,
    shortest_edge_px=None,
    resample=Image.Resampling.BILINEAR.value,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
#: Hugging Face multiplies in float64 and rounds once; a table of the 256 results is the same and faster.
_UNIT_VALUES = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)


def preprocess_images(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return `pixel_values` [B, 3, S, S], float32 on the CPU, of images [B, H, W, C], float 0–1."""
    pixels = _UNIT_VALUES[_fit(images, preprocessing)]
    mean, std = (np.asarray(values, dtype=np.float32) for values in (preprocessing.mean, preprocessing.std))
    normalized = (pixels - mean) / std
    return torch.from_numpy(np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)))


def fit_images(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return images [B, H, W, C] as the encoder sees them: [B, S, S, 3], float32 0–1 on the CPU, in 8-bit steps.

    Fitting twice changes nothing, and ComfyUI's CLIP vision encoder resizes nothing on these.
    """
    return torch.from_numpy(_UNIT_VALUES[_fit(images, preprocessing)])


def fit_image(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return one 8-bit image resized and cropped to S×S."""
    size, edge = preprocessing.size_px, preprocessing.shortest_edge_px
    if edge is None:
        return image.resize((size, size), preprocessing.resample)
    width, height = image.size
    long_edge = int(edge * max(width, height) / min(width, height))  # truncated, as Hugging Face does
    resized = image.resize((edge, long_edge) if width <= height else (long_edge, edge), preprocessing.resample)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def read_preprocessing(folder: Path, preset: Preprocessing) -> Preprocessing:
    """Return the preprocessing that a model folder asks for, or the preset (and a log line) when it says nothing.

    `preset` also fills in what the files leave out. Raises ModelError when a file is unreadable or asks for something
    else than resize, crop, rescale, normalize.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        values = read_json_object(path)
        values = values.get("image_processor", values)
        if isinstance(values, dict) and "image_mean" in values:
            return _parse_preprocessing(values, preset, path)
    _logger.info(
        "%s has no preprocessor_config.json; using the published values for %d px",
        printable(str(folder)),
        preset.size_px,
    )
    return preset


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a model folder's file. Raises ModelError when it is unreadable or not an object."""
    try:
        values = read_json(path)
    except FileError as error:
        raise ModelError(f"{error} Copy the model folder again, whole.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds {values!r:.100}, not a JSON object. Copy the model folder again, whole.")
    return values


def _fit(images: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """Images as uint8 [B, S, S, 3]; one at a time, so that no resized copy of a batch exists."""
    whole = (Image.fromarray(to_8bit(image)) for image in require_images("images", images))
    return np.stack([np.asarray(fit_image(image, preprocessing)) for image in whole])


def _parse_preprocessing(values: Mapping[str, Any], preset: Preprocessing, path: Path) -> Preprocessing:
    values = {name: value for name, value in values.items() if value is not None}

    def square(size: int | Mapping[str, int]) -> int:
        if isinstance(size, Mapping) and size["height"] != size["width"]:
            raise ValueError("not square")
        return int(size["height"] if isinstance(size, Mapping) else size)

    try:
        size = values.get("size", preset.shortest_edge_px or preset.size_px)
        crops = values.get("do_center_crop", preset.shortest_edge_px is not None)
        crop = square(values.get("crop_size", preset.size_px)) if crops else None
        edge = size.get("shortest_edge") if isinstance(size, Mapping) else size if crop else None
        if edge is None:  # a resize to a fixed square; a crop must leave all of it
            size_px, shortest_edge_px = square(size), None
            is_usual = crop in (None, size_px)
        else:
            size_px, shortest_edge_px = crop or 0, int(edge)
            is_usual = size_px <= shortest_edge_px
        mean, std = ([float(value) for value in values[name]] for name in ("image_mean", "image_std"))
        resample = Image.Resampling(int(values.get("resample", preset.resample))).value
        is_usual &= all(values.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize"))
        is_usual &= abs(float(values.get("rescale_factor", 1 / 255)) * 255 - 1) < 1e-6
        is_usual &= len(mean) == len(std) == 3 and min(std) > 0 and size_px > 0
    except (TypeError, ValueError, KeyError, OverflowError):  # OverflowError: int() of 1e999
        is_usual = False
    if not is_usual:
        raise ModelError(
            f"{path} does more than resize, crop to a square, divide by 255 and normalize three channels: "
            f"{json.dumps(values)[:300]}. Use the folder of {CLIP_ENCODER_ID} or {SIGLIP_ENCODER_ID}."
        )
    return Preprocessing(size_px, shortest_edge_px, resample, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
