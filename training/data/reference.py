"""The reference's triplets (`control/` strips a|a'|b and `target/` pictures b'), with the reference's own geometry.

For comparisons with the published recipe, pixel for pixel: the strip is stretched to three target sizes, tiled
a | a' over b | b', the whole grid resized (bicubic, a second time) to cover one of the SDXL sizes and center-cropped.
Pairs in a `PairIndex` are resized once and cropped per picture instead; prefer them for new data.
Source: golden/dataset.*; list of sizes: SDXL, arXiv 2307.01952, appendix I.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lorweb_core.images import MAX_PIXELS, ImageFileError, read_image
from lorweb_core.preprocessing import Preprocessing

from .buckets import Cell
from .images import as_channels_first
from .index import DataError, OnBadData, TripletRecord
from .pairing import DrawSettings, choose, uniforms
from .quadruplets import BrokenPictureError, DrawKey, Item, fit_for_encoder, read_or_replace

logger = logging.getLogger(__name__)

#: Landscape half of SDXL's training sizes, (width, height); each also stands upright.
_SDXL_SIZES = (
    (2048, 512), (1984, 512), (1920, 512), (1856, 512), (1792, 576), (1728, 576), (1664, 576), (1600, 640),
    (1536, 640), (1472, 704), (1408, 704), (1344, 704), (1344, 768), (1280, 768), (1216, 832), (1152, 832),
    (1152, 896), (1088, 896), (1088, 960), (1024, 960), (1024, 1024),
)  # fmt: skip
_SDXL_RESOLUTION_PX = 1024
_DIVISOR_PX = 16


@dataclass(frozen=True)
class GridGeometry:
    """How the reference brings a grid to its bucket: resize to `scale_to`, then cut `crop` (x, y, width, height)."""

    scale_to: tuple[int, int]
    crop: tuple[int, int, int, int]


@lru_cache(maxsize=4096)
def grid_geometry(width: int, height: int, resolution_px: int) -> GridGeometry:
    """The bucket of a target picture: of the sizes scaled to the resolution, the one that loses the fewest pixels.

    Args:
        width: of the target picture b' in pixels; its grid is twice as wide.
        height: likewise.
        resolution_px: of the whole grid; lowered to √(width·height) for a small picture.
    """
    factor = min(resolution_px, math.sqrt(width * height)) / _SDXL_RESOLUTION_PX
    sizes = (size for pair in _SDXL_SIZES for size in (pair, pair[::-1]))
    geometries = (_cover(width, height, *(_floor_to_divisor(side * factor) for side in size)) for size in sizes)
    return min(geometries, key=lambda geometry: math.prod(geometry.scale_to) - math.prod(geometry.crop[2:]))


def reference_grids(strip: Image.Image, target: Image.Image, resolution_px: int) -> tuple[Tensor, Tensor]:
    """Target and context grid as the reference's loader makes them.

    Args:
        strip: a | a' | b, three equal panels, RGB.
        target: b', RGB.
        resolution_px: of the whole grid, 512 in the reference.
    Returns: target and context, uint8 [3, H, W]; the context's bottom-right quarter repeats b.
    """
    width, height = target.size
    panels = strip.resize((3 * width, height), Image.Resampling.BICUBIC)
    grid = Image.new("RGB", (2 * width, 2 * height))
    for panel, corner in enumerate(((0, 0), (width, 0), (0, height))):
        grid.paste(panels.crop((panel * width, 0, (panel + 1) * width, height)), corner)
    grid.paste(target, (width, height))
    geometry = grid_geometry(width, height, resolution_px)
    x, y, crop_width, crop_height = geometry.crop
    pixels = np.asarray(grid.resize(geometry.scale_to, Image.Resampling.BICUBIC))[
        y : y + crop_height, x : x + crop_width
    ]
    context = pixels.copy()
    context[crop_height // 2 :, crop_width // 2 :] = context[crop_height // 2 :, : crop_width // 2]
    return as_channels_first(pixels), as_channels_first(context)


class ReferenceDataset(Dataset[Item | None]):
    """Triplets as training items of the same form as `QuadrupletDataset`'s.

    Indexed by `DrawKey` (drawn: every triplet equally often, captions dropped) or by position (fixed: for validation;
    None for a broken picture with `skip`). `images` are the quadrants of the context grid, as in the reference.

    Args:
        records: triplets of one split.
        settings: seed and caption dropout are used, and `none` as caption source; the caption is the stored one.
        resolution_px: of the whole grid.
        preprocessing, on_bad_data, max_pixels: see `QuadrupletDataset`.
    Raises: DataError: when there are no records.
    """

    def __init__(
        self,
        records: Sequence[TripletRecord],
        settings: DrawSettings,
        *,
        resolution_px: int = 512,
        preprocessing: Preprocessing | None = None,
        on_bad_data: OnBadData = "skip",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not records:
            raise DataError(
                expected="at least one triplet to draw from",
                got="none in this split",
                remedy="Import the folder again with `python -m training.prepare reference`.",
            )
        self.records, self.settings, self.resolution_px = tuple(records), settings, resolution_px
        self.preprocessing, self.on_bad_data, self.max_pixels = preprocessing, on_bad_data, max_pixels
        cells = [_cell_of(record, resolution_px) for record in self.records]
        self.buckets = tuple(sorted(set(cells)))
        self.bucket_of = tuple(self.buckets.index(cell) for cell in cells)
        bucket_of = np.array(self.bucket_of)
        self._members = [np.flatnonzero(bucket_of == bucket) for bucket in range(len(self.buckets))]
        self._cumulative = np.cumsum([len(members) for members in self._members], dtype=np.float64)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: DrawKey | tuple[int, int, int] | int) -> Item | None:
        if isinstance(key, int):
            return self._read_fixed(key)
        epoch, place, bucket = key

        def read(attempt: int) -> Item:
            for_triplet, for_caption = uniforms(self.settings.seed, "triplet", epoch, place, bucket, attempt)[:2]
            members = self._members[bucket]
            position = int(members[int(for_triplet * len(members))])
            is_dropped = for_caption < self.settings.caption_dropout
            return self._read(position, "" if is_dropped else self.records[position].caption)

        return read_or_replace(read, self.on_bad_data)

    def draw_bucket(self, epoch: int, batch: int) -> int:
        """The grid size of a whole batch; what `BucketBatchSampler` asks for."""
        return choose(self._cumulative, uniforms(self.settings.seed, "bucket", epoch, batch)[0])

    def captions(self) -> tuple[str, ...]:
        """Every prompt an item can have, "" included."""
        stored = () if self.settings.caption_source == "none" else (record.caption for record in self.records)
        return tuple(sorted({"", *stored}))

    def _read_fixed(self, position: int) -> Item | None:
        try:
            return self._read(position, self.records[position].caption)
        except ImageFileError as error:
            if self.on_bad_data == "stop":
                raise BrokenPictureError(str(error)) from error
            logger.warning("item %d is left out: %s", position, error)
            return None

    def _read(self, position: int, caption: str) -> Item:
        record = self.records[position]
        strip = read_image(record.control, max_pixels=self.max_pixels)
        b_prime = read_image(record.target, max_pixels=self.max_pixels)
        if b_prime.size != (record.width, record.height):
            reason = f"{b_prime.width} × {b_prime.height}, but {record.width} × {record.height} when it was imported"
            raise ImageFileError(record.target, "changed", reason)
        target, context = reference_grids(strip, b_prime, self.resolution_px)
        height, width = context.shape[1] // 2, context.shape[2] // 2
        name = f"{record.sha256 or record.id}@{2 * width}x{2 * height}"
        item: Item = {
            "target": target,
            "context": context,
            "image_keys": [f"{name}.{picture}" for picture in ("a", "a_prime", "b")],
            "caption": "" if self.settings.caption_source == "none" else caption,
            "task": record.task,
            "pair_a": record.id,
            "pair_b": record.id,
            "skipped": [],
        }
        if self.preprocessing is not None:
            quadrants = (context[:, :height, :width], context[:, :height, width:], context[:, height:, :width])
            pictures = (Image.fromarray(quadrant.permute(1, 2, 0).contiguous().numpy()) for quadrant in quadrants)
            item["images"] = torch.stack([fit_for_encoder(picture, self.preprocessing) for picture in pictures])
        return item


def tidy_caption(text: str) -> str:
    """A caption as the reference reads it: parts between commas trimmed and joined with ", "."""
    return ", ".join(part.strip() for part in text.split(","))


def _cell_of(record: TripletRecord, resolution_px: int) -> Cell:
    _, _, width, height = grid_geometry(record.width, record.height, resolution_px).crop
    return Cell(width // 2, height // 2)


def _floor_to_divisor(side: float) -> int:
    return max(_DIVISOR_PX, int(side) // _DIVISOR_PX * _DIVISOR_PX)


def _cover(width: int, height: int, bucket_width: int, bucket_height: int) -> GridGeometry:
    scale = max(bucket_width / width, bucket_height / height)
    scaled = (max(bucket_width, round(width * scale)), max(bucket_height, round(height * scale)))
    corner = ((scaled[0] - bucket_width) // 2, (scaled[1] - bucket_height) // 2)
    return GridGeometry(scaled, (*corner, bucket_width, bucket_height))
