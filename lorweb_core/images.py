"""Pictures at the border: what comes in as `image_a`, `image_a_prime` or `image_b`, checked once.

Pictures are tensors [B, H, W, C], float 0–1, as ComfyUI's IMAGE; inside the package C is always 3 (RGB).
Nothing here resizes (`grid`, `preprocessing`).
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import ImageError, ShapeError

MIN_SIDE_PX = 2
#: A longer strip has no use in a 2×2 grid or a centre crop, and its resized copies would fill the memory.
MAX_ASPECT = 100
#: Resampling overshoots 0–1 a little; values beyond this are another value range.
MAX_OVERSHOOT = 0.5


def require_images(name: str, images: Tensor) -> Tensor:
    """Return usable pictures as RGB: one channel is repeated, a fourth (alpha) is dropped as the host's own nodes do.

    Args:
        name: what the user calls these pictures, for the message.
        images: [B, H, W, C], float 0–1, C one of 1, 3, 4.
    Returns: [B, H, W, 3], a view of the input.
    Raises: ImageError: for anything else, for 1-pixel sides, and for values that are NaN, infinite or not 0–1.
    """
    _require_shape(name, images)
    if not images.is_floating_point():
        raise _image_error(name, "of float values 0–1", f"{images.dtype}", "Divide 8-bit pictures by 255.")
    lowest, highest = (value.item() for value in torch.aminmax(images.detach()))  # both are NaN when one value is
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise _image_error(name, "of finite values", "NaN or infinite ones", "Look at the node that made them.")
    if lowest < -MAX_OVERSHOOT or highest > 1 + MAX_OVERSHOOT:
        remedy = "Divide 8-bit values by 255; map values of -1…1 to 0…1."
        raise _image_error(name, "with values 0–1", f"{lowest:.3g} … {highest:.3g}", remedy)
    return images.expand(*images.shape[:3], 3) if images.shape[3] == 1 else images[..., :3]


def require_analogy(image_a: Tensor, image_a_prime: Tensor, image_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, a′ and b as RGB pictures whose batches pair: a and a′ have one picture, or as many as b.

    Raises: ImageError: see `require_images`. ShapeError: when the batches do not pair.
    """
    image_a = require_images("image_a", image_a)
    image_a_prime = require_images("image_a_prime", image_a_prime)
    image_b = require_images("image_b", image_b)
    batch = len(image_b)
    if len(image_a) not in (1, batch) or len(image_a_prime) not in (1, batch):
        raise ShapeError(
            expected="image_a and image_a_prime with one picture each, or with as many as image_b",
            got=f"{len(image_a)}, {len(image_a_prime)} and {batch} pictures",
            remedy="Use one pair for all b, or one pair per b; pick pictures out of a batch before this step.",
        )
    return image_a, image_a_prime, image_b


def to_8bit(picture: Tensor) -> np.ndarray:
    """Return one picture [H, W, 3], float 0–1, as uint8 [H, W, 3]: rounded, clamped, on the CPU."""
    scaled = picture.detach().to("cpu", torch.float32) * 255
    return scaled.round_().clamp_(0, 255).to(torch.uint8).numpy()


def to_pil(picture: Tensor) -> Image.Image:
    """Return one picture [H, W, 3], float 0–1, as an 8-bit RGB image."""
    return Image.fromarray(to_8bit(picture))


def from_pil(picture: Image.Image) -> Tensor:
    """Return an 8-bit image as [H, W, 3], float32 0–1, RGB."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).to(torch.float32).div_(255)


def _require_shape(name: str, images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dim() != 4:
        got = f"shape {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise _image_error(name, "as a tensor [B, H, W, C]", got, "Add a batch dimension to a single picture.")
    batch, height, width, channels = images.shape
    if batch < 1:
        raise _image_error(name, "with at least one picture", "an empty batch", "Connect a node that gives a picture.")
    if channels not in (1, 3, 4):
        remedy = "Convert the pictures to RGB; channels come last."
        raise _image_error(name, "with 3 channels (or 1: grey, 4: with alpha)", f"{channels} channels", remedy)
    if min(height, width) < MIN_SIDE_PX:
        remedy = "Connect the real picture; empty masks and placeholders are this small."
        raise _image_error(name, f"with sides of at least {MIN_SIDE_PX} px", f"{width}×{height} px", remedy)
    if max(height, width) > MAX_ASPECT * min(height, width):
        remedy = "Crop the strip to the part that matters."
        raise _image_error(name, f"no longer than {MAX_ASPECT} times their width", f"{width}×{height} px", remedy)


def _image_error(name: str, wanted: str, got: str, remedy: str) -> ImageError:
    return ImageError(expected=f"{name}: pictures {wanted}", got=got, remedy=remedy)
