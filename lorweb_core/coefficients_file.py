"""An analogy as a small file to keep and to send: .safetensors with one float32 tensor [B, N] per layer.

Header strings: `lorweb_coefficients`, a JSON object {"format_version": 1, "basis_id", "settings", "note"}; and, with
an image, `modelspec.thumbnail`, a data URI as in other model files. The tensors are those of the
coefficients dict under the basis' layer names, so saving and loading changes no bit. 494 layers of 32 take 0.1 MB.
The basis itself is not in the file: the reader needs the basis whose id it carries.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from .coefficients import Coefficients, require_whole_coefficients
from .errors import CheckpointError, one_line
from .files import parse_json
from .images import require_images, to_pil
from .safetensors_file import Header, open_tensors, read_header, write_safetensors_atomically

METADATA_KEY = "lorweb_coefficients"
THUMBNAIL_KEY = "modelspec.thumbnail"
THUMBNAIL_SIDE_PX = 256
MAX_NOTE_CHARACTERS = 10_000
#: As long as a file's name can be.
MAX_NAME_CHARACTERS = 255
_ASK = "The file was edited or damaged; ask its sender for it again."


@dataclass(frozen=True, eq=False)
class CoefficientsFile:
    """What a file holds; the thumbnail is a small RGB image."""

    coefficients: Coefficients
    note: str = ""
    thumbnail: Image.Image | None = None


def save_coefficients(
    path: Path, coefficients: Mapping[str, Any], *, note: str = "", thumbnail: Tensor | None = None
) -> None:
    """Write coefficients to a file atomically, replacing an existing one.

    Of the thumbnail images [B, H, W, C], float 0–1, the first is shrunk to 256 px and kept as JPEG in the header.

    Raises:
        CheckpointError, ShapeError: for damaged coefficients, or too long a note or basis name.
        ImageError: for an unusable thumbnail.
        OutputError: if the file cannot be written.
    """
    whole = require_whole_coefficients(coefficients)
    content = {name: value for name, value in whole.items() if name != "layers"} | {"note": note}
    _require_texts(content, path)
    metadata = {METADATA_KEY: json.dumps(content, ensure_ascii=False)}
    if thumbnail is not None:
        image = to_pil(require_images("thumbnail", thumbnail)[0])
        image.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        metadata[THUMBNAIL_KEY] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    write_safetensors_atomically(path, whole["layers"], metadata)


def load_coefficients(path: Path) -> CoefficientsFile:
    """Read a coefficients file; `require_coefficients_of` checks whether it fits a basis.

    Texts are of bounded length but may hold control characters, see `errors.printable`.

    Raises:
        FileError: if the file is missing or cannot be read.
        CheckpointError: if it is damaged, of a newer version or not a coefficients file.
        ShapeError: if its tensors are not [B, N] of one batch and finite.
    """
    header = read_header(path)
    if METADATA_KEY not in header.metadata:
        is_basis = any(name.endswith(("lora_keys", "lora_A")) for name in header.entries)
        kind = "a LoRWeB basis" if is_basis else f"a file of {len(header.entries)} tensors without {METADATA_KEY}"
        raise CheckpointError(
            f"{path.name} is {kind}, not a coefficients file. Load a basis with Load LoRWeB Basis, and here a file "
            "written by Save Coefficients."
        )
    content = parse_json(header.metadata[METADATA_KEY], f"The header key {METADATA_KEY} of {path.name}")
    is_whole = isinstance(content, dict) and {"format_version", "basis_id", "settings"} <= set(content)
    if not is_whole or not isinstance(content["settings"], dict):
        text = header.metadata[METADATA_KEY][:80]
        raise CheckpointError(
            f"The header key {METADATA_KEY} of {path.name} lacks format_version, basis_id or settings: {text!r}. {_ASK}"
        )
    _require_texts(content, path)
    odd = [
        name
        for name, entry in header.entries.items()
        if entry.dtype != "F32" or len(entry.shape) != 2 or 0 in entry.shape
    ]
    if odd or not header.entries:
        found = f"{len(odd)} other tensors (such as {', '.join(odd[:3])})" if odd else "no tensor"
        raise CheckpointError(f"{path.name} has {found}, not one float32 tensor [B, N] per layer. {_ASK}")
    with open_tensors(path) as file:
        layers = {name: file.get_tensor(name).clone() for name in header.entries}
    coefficients = require_whole_coefficients({**content, "layers": layers})
    return CoefficientsFile(coefficients, content.get("note", ""), _decode_thumbnail(header, path))


def _require_texts(content: Mapping[str, Any], path: Path) -> None:
    texts = {
        "note": (content.get("note", ""), MAX_NOTE_CHARACTERS),
        "basis_id": (content["basis_id"], MAX_NAME_CHARACTERS),
        "basis_name": (content["settings"].get("basis_name", ""), MAX_NAME_CHARACTERS),
    }
    for name, (text, limit) in texts.items():
        if not isinstance(text, str):
            raise CheckpointError(f"{name} in {path.name} is a {type(text).__name__}, not text. {_ASK}")
        if len(text) > limit:
            raise CheckpointError(f"{name} in {path.name} has {len(text):,} characters. Shorten it to {limit:,}.")


def _decode_thumbnail(header: Header, path: Path) -> Image.Image | None:
    text = header.metadata.get(THUMBNAIL_KEY, "")
    if not text:
        return None
    try:
        data = base64.b64decode(text.partition(";base64,")[2], validate=True)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            if max(image.size) > 4 * THUMBNAIL_SIDE_PX:
                raise ValueError(f"{image.size[0]}×{image.size[1]} px")
            return image.convert("RGB")
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CheckpointError(
            f"{THUMBNAIL_KEY} in {path.name} is not a small image: {one_line(error, 80)}. {_ASK}"
        ) from error
