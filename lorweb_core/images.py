"""Images at the border: the one reader of image files, and the check of IMAGE tensors.

A file becomes an upright 8-bit RGB image, for trainer, evaluation, command line and nodes alike. Only the formats of
`IMAGE_FORMATS` are opened, only regular files, only up to a number of pixels; of an animation the first frame counts.
A tensor is [B, H, W, C], float 0–1, as ComfyUI's IMAGE; inside the package C is always 3 (RGB). In both, what is
transparent is white. Nothing here resizes to a given size (`grid`, `preprocessing`).
"""

from __future__ import annotations

import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from .errors import ImageError, ShapeError, one_line

#: What is opened, as Pillow calls it, and how such files end.
IMAGE_FORMATS = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".jfif"), "WEBP": (".webp",), "BMP": (".bmp",), "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"), "AVIF": (".avif",),
}  # fmt: skip
IMAGE_SUFFIXES = frozenset(suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes)
#: Pillow's own limit against decompression bombs: 256 MiB as 24-bit RGB.
MAX_PIXELS = 89_478_485
#: 16-bit gray is scaled. 32-bit and float images have no fixed range, and Pillow would clip them at 255.
_READABLE_MODES = {
    "1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I;16B",
}  # fmt: skip
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
#: What Pillow's decoders raise on damaged files, seen or documented.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip

MIN_SIDE_PX = 2
#: A longer strip has no use in a 2×2 grid or a center crop, and its resized copies would fill the memory.
MAX_ASPECT = 100
#: Resampling overshoots 0–1 a little; values beyond this are another value range.
MAX_OVERSHOOT = 0.5


class ImageFileError(ImageError):
    """One image file cannot be used.

    Attributes:
        path: the file.
        kind: `missing`, `unreadable` (no image), `damaged` (truncated or corrupt), `too-large`, `wrong-mode`, or what
            the caller finds wrong.
        reason: what is wrong and what to do, without a full stop.
    """

    def __init__(self, path: Path, kind: str, reason: str) -> None:
        super().__init__(f"The image {path} cannot be used ({kind}): {reason}.")
        self.path, self.kind, self.reason = path, kind, reason

    def __reduce__(self) -> tuple[type[ImageFileError], tuple[Path, str, str]]:
        return ImageFileError, (self.path, self.kind, self.reason)


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS, at_least_px: int | None = None) -> Image.Image:
    """Return an image file in one of `IMAGE_FORMATS` as upright 8-bit RGB, transparency on white.

    Args:
        max_pixels: refuse larger ones by their header, before anything is decoded.
        at_least_px: shrink by a whole factor (JPEG while decoding, others after) while both sides stay at least this
            long: what follows is then faster by that factor squared. None keeps every pixel.
    Raises: ImageFileError: missing, unreadable, damaged, too large or of a wrong mode.
    """
    with _open(path, max_pixels) as image:
        orientation = _orientation(image)
        try:
            if at_least_px is not None:
                image.draft(None, (at_least_px, at_least_px))
            rgb = _to_rgb(image)
        except _DECODER_ERRORS as error:
            raise ImageFileError(path, "damaged", f"decoding stops with “{one_line(error)}”; copy it again") from error
    factor = 1 if at_least_px is None else min(rgb.size) // at_least_px
    if factor > 1:
        rgb = rgb.reduce(factor)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def read_image_size(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return upright width and height of an image file, from its header alone. Raises as `read_image`."""
    with _open(path, max_pixels) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def readable_formats() -> list[str]:
    """Return the formats of `IMAGE_FORMATS` that this Pillow can open (an older one has no AVIF)."""
    Image.init()
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def _open(path: Path, max_pixels: int) -> ImageFile.ImageFile:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageFileError(path, "unreadable", "it is not a regular file")
        image = Image.open(path, formats=readable_formats())
    except FileNotFoundError as error:
        raise ImageFileError(path, "missing", "there is no such file") from error
    except ImageFileError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFileError(path, "too-large", one_line(error)) from error
    except _DECODER_ERRORS as error:
        reason = f"it cannot be opened (“{one_line(error)}”)"
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is none of {', '.join(IMAGE_FORMATS)}; save it as PNG or JPEG"
        raise ImageFileError(path, "unreadable", reason) from error
    kind = reason = ""
    if image.width * image.height > max_pixels:
        kind, reason = "too-large", f"{image.width} × {image.height} is more than {max_pixels:,} pixels"
    elif image.mode not in _READABLE_MODES and (image.mode, image.format) != ("I", "PNG"):  # 16 bits, by older Pillows
        kind, reason = "wrong-mode", f"mode {image.mode} has no fixed range; save it with 8 or 16 bits per channel"
    if kind:
        image.close()
        raise ImageFileError(path, kind, reason)
    return image


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation 1–8; 1 where there is none or the EXIF block is damaged (the pixels may still be fine)."""
    try:
        if image.format == "PNG" and "exif" not in image.info:  # Pillow decodes all pixels to look behind them
            _find_late_exif(image)
        return int(Image.Image.getexif(image).get(_ORIENTATION_TAG, 1))
    except _DECODER_ERRORS:
        return 1


def _find_late_exif(png: ImageFile.ImageFile) -> None:
    """Skip from chunk to chunk of a PNG for the EXIF block, which may be behind the pixels."""
    file = png.fp
    assert file is not None  # open until its pixels are loaded
    position = file.tell()
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"eXIf":
            png.info["exif"] = b"Exif\x00\x00" + file.read(length)
            break
        file.seek(length + 4, 1)
    file.seek(position)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # gray 0–65535
        levels = np.asarray(image).astype(np.float32)
        if "transparency" in image.info:
            levels[levels == image.info["transparency"]] = 65535
        return Image.fromarray((levels / 257).round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba)
    return white


def require_images(name: str, images: Tensor) -> Tensor:
    """Return usable images as RGB: one channel is repeated, a fourth (alpha) is composed on white.

    images [B, H, W, C], float 0–1, C one of 1, 3, 4 → [B, H, W, 3], a view unless it has alpha. Raises ImageError,
    which calls them `name`, for anything else, for 1-pixel sides, and for values that are NaN, infinite or not 0–1.
    """
    if not isinstance(images, Tensor) or images.dim() != 4:
        found = f"has shape {list(images.shape)}" if isinstance(images, Tensor) else f"is a {type(images).__name__}"
        raise ImageError(f"{name} {found}, not [B, H, W, C]. Add a batch dimension to a single image.")
    batch, height, width, channels = images.shape
    if batch < 1:
        raise ImageError(f"{name} is an empty batch. Connect a node that gives an image.")
    if channels not in (1, 3, 4):
        raise ImageError(
            f"{name} has {channels} channels, not 3 (or 1: gray, 4: with alpha). Convert it to RGB; channels come last."
        )
    if min(height, width) < MIN_SIDE_PX:
        raise ImageError(
            f"{name} is {width}×{height} px, but its sides must be at least {MIN_SIDE_PX} px. Connect the real image; "
            "empty masks and placeholders are this small."
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(
            f"{name} is {width}×{height} px, a strip more than {MAX_ASPECT} times as long as wide. Crop it to the part "
            "that matters."
        )
    if not images.is_floating_point():
        raise ImageError(f"{name} holds {images.dtype}, not float values 0–1. Divide 8-bit images by 255.")
    lowest, highest = (value.item() for value in torch.aminmax(images.detach()))  # both are NaN when one value is
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ImageError(f"{name} holds NaN or infinite values. Check the node that made it.")
    if lowest < -MAX_OVERSHOOT or highest > 1 + MAX_OVERSHOOT:
        raise ImageError(
            f"{name} has values {lowest:.3g} … {highest:.3g}, not 0–1. Divide 8-bit values by 255; map -1…1 to 0…1."
        )
    if channels == 4:
        alpha = images[..., 3:].clamp(0, 1)
        return images[..., :3] * alpha + (1 - alpha)
    return images.expand(batch, height, width, 3)


def require_analogy(image_a: Tensor, image_a_prime: Tensor, image_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, a′ and b as RGB images whose batches pair: a and a′ have one image, or as many as b.

    Raises ImageError as `require_images`, ShapeError when the batches do not pair.
    """
    image_a = require_images("image_a", image_a)
    image_a_prime = require_images("image_a_prime", image_a_prime)
    image_b = require_images("image_b", image_b)
    batch = len(image_b)
    if len(image_a) not in (1, batch) or len(image_a_prime) not in (1, batch):
        raise ShapeError(
            f"image_a, image_a_prime and image_b are batches of {len(image_a)}, {len(image_a_prime)} and {batch} "
            "images. Use one pair for all b, or one pair per b; pick images out of a batch before this step."
        )
    return image_a, image_a_prime, image_b


def to_8bit(image: Tensor) -> np.ndarray:
    """Return one image [H, W, 3], float 0–1, as uint8 [H, W, 3]: rounded, clamped, on the CPU."""
    scaled = image.detach().to("cpu", torch.float32) * 255
    return scaled.round_().clamp_(0, 255).to(torch.uint8).numpy()


def to_pil(image: Tensor) -> Image.Image:
    """Return one image [H, W, 3], float 0–1, as an 8-bit RGB image."""
    return Image.fromarray(to_8bit(image))


def from_pil(image: Image.Image) -> Tensor:
    """Return an 8-bit image as [H, W, 3], float32 0–1, RGB."""
    return torch.from_numpy(np.array(image.convert("RGB"))).to(torch.float32).div_(255)
