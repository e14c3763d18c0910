"""Picture files → upright 8-bit RGB pictures, cells and 2×2 grids.

Order of work: refuse too large ones by their header, decode, apply EXIF rotation, lay alpha on white, convert to RGB,
cut strips in halves; then one single resize (Lanczos) of the centre crop into the cell, and tiling. What a picture
cannot be used for is told as `PictureError` with a kind, so that a check can list it and a run can skip it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lorweb_core.errors import ImageError

from .buckets import Cell
from .index import PairRecord

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
#: Pillow's own limit against decompression bombs: 256 MiB as 24-bit RGB.
MAX_PIXELS = 89_478_485
#: JPEGs much larger than this are decoded at a half, quarter or eighth of their size (see `load_picture`).
DECODE_AT_LEAST_PX = 1024
#: Modes whose conversion to 8-bit RGB loses nothing a person sees; 16- and 32-bit modes would be clipped.
_USABLE_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: What Pillow's decoders raise on damaged files, seen or documented; nothing else may stop a run.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


class PictureError(ImageError):
    """One picture file cannot be used.

    Attributes:
        path: the file.
        kind: `missing`, `unreadable` (no picture), `damaged` (truncated or corrupt), `too-large`,
            `wrong-mode` or `changed` (since the import).
        reason: one sentence without a full stop.
    """

    def __init__(self, path: Path, kind: str, reason: str) -> None:
        super().__init__(
            expected=f"a usable picture at {path}",
            got=f"{kind}: {reason}",
            remedy="Replace or remove it and import again; `python -m training.prepare check` lists all such files.",
        )
        self.path, self.kind, self.reason = path, kind, reason

    def __reduce__(self) -> tuple[type[PictureError], tuple[Path, str, str]]:
        return PictureError, (self.path, self.kind, self.reason)


@dataclass(frozen=True)
class PictureFacts:
    """What the header of a picture file says: upright size in pixels and Pillow mode."""

    width: int
    height: int
    mode: str


def read_facts(path: Path, *, max_pixels: int = MAX_PIXELS) -> PictureFacts:
    """Upright size and mode of a picture, from its header alone.

    Raises: PictureError: when it is missing, no picture, too large or of a mode that would be clipped.
    """
    with _open(path, max_pixels) as image:
        width, height = image.size
        if _orientation(image) >= 5:
            width, height = height, width
        return PictureFacts(width, height, image.mode)


def load_picture(path: Path, *, max_pixels: int = MAX_PIXELS, at_least_px: int | None = None) -> Image.Image:
    """An upright RGB picture, alpha laid on white.

    Args:
        path: any format that Pillow reads; of an animation the first frame.
        max_pixels: refuse larger ones by their header, before anything is decoded.
        at_least_px: decode a JPEG at a half, quarter or eighth while both sides stay at least this long;
            several times faster for photographs straight from a camera. None decodes in full.
    Raises: PictureError: missing, unreadable, damaged, too large or of a wrong mode.
    """
    with _open(path, max_pixels) as image:
        orientation = _orientation(image)
        try:
            if at_least_px is not None:
                image.draft(None, (at_least_px, at_least_px))
            image.load()
            upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
            return _on_white(upright)
        except _DECODER_ERRORS as error:
            raise PictureError(path, "damaged", f"decoding stopped with “{_one_line(error)}”") from error


def load_pair(
    record: PairRecord, *, max_pixels: int = MAX_PIXELS, at_least_px: int | None = DECODE_AT_LEAST_PX
) -> tuple[Image.Image, Image.Image]:
    """The before and after picture of a pair, upright and RGB.

    Raises: PictureError: when either file cannot be used.
    """
    if not record.strip:
        before = load_picture(record.before, max_pixels=max_pixels, at_least_px=at_least_px)
        return before, load_picture(record.after, max_pixels=max_pixels, at_least_px=at_least_px)
    whole_px = None if at_least_px is None else 2 * at_least_px
    return cut_strip(load_picture(record.before, max_pixels=max_pixels, at_least_px=whole_px))


def cut_strip(strip: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Left and right half, equal in width; of an odd width the middle column is left out."""
    half = max(1, strip.width // 2)
    right = max(0, strip.width - half)
    return strip.crop((0, 0, half, strip.height)), strip.crop((right, 0, right + half, strip.height))


def fit_cell(picture: Image.Image, cell: Cell) -> np.ndarray:
    """The centre crop of a picture in the cell's aspect, resized once (Lanczos).

    Returns: uint8 [height, width, 3], RGB.
    """
    return np.asarray(ImageOps.fit(picture, (cell.width, cell.height), method=Image.Resampling.LANCZOS))


def tile_grid(top_left: np.ndarray, top_right: np.ndarray, bottom_left: np.ndarray, bottom_right: np.ndarray) -> Tensor:
    """Four cells [h, w, 3] as one grid, uint8 [3, 2h, 2w]."""
    rows = (np.concatenate(row, axis=1) for row in ((top_left, top_right), (bottom_left, bottom_right)))
    return as_channels_first(np.concatenate(tuple(rows), axis=0))


def as_channels_first(pixels: np.ndarray) -> Tensor:
    """uint8 [h, w, 3] → uint8 [3, h, w], contiguous and owning its memory."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)).copy())


def to_model_range(grid: Tensor) -> Tensor:
    """uint8 0…255 of any shape → float32 −1…1, as the VAE takes it."""
    return grid.to(torch.float32) / 127.5 - 1.0


def _open(path: Path, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(path)
    except FileNotFoundError as error:
        raise PictureError(path, "missing", "there is no such file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(path, "too-large", f"more than {max_pixels:,} pixels") from error
    except _DECODER_ERRORS as error:
        raise PictureError(path, "unreadable", f"no picture that Pillow can open (“{_one_line(error)}”)") from error
    try:
        _require_usable_header(image, path, max_pixels)
    except PictureError:
        image.close()
        raise
    return image


def _require_usable_header(image: Image.Image, path: Path, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        reason = f"{image.width} × {image.height} is more than {max_pixels:,} pixels"
        raise PictureError(path, "too-large", reason)
    if image.mode not in _USABLE_MODES:
        raise PictureError(path, "wrong-mode", f"mode {image.mode} would be clipped; save it with 8 bits per channel")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1…8; 1 where there is none or the EXIF block is damaged (the pixels may still be fine)."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DECODER_ERRORS:
        return 1


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("LA", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
