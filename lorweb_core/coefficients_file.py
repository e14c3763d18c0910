"""An analogy as a small file to keep and to send: .safetensors with one float32 tensor [B, N] per layer.

Header strings: `lorweb_coefficients`, a JSON object {"format_version": 1, "basis_id", "settings", "note"}; and, when
there is a picture, `modelspec.thumbnail`, a data URI as other model files have it. The tensors are those of the
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
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .coefficients import FORMAT_VERSION, Coefficients, require_whole_coefficients
from .errors import CheckpointError
from .files import write_safetensors_atomically
from .header import Header, read_header
from .images import require_images, to_pil

METADATA_KEY = "lorweb_coefficients"
THUMBNAIL_KEY = "modelspec.thumbnail"
THUMBNAIL_SIDE_PX = 256
MAX_NOTE_CHARACTERS = 10_000
#: As long as a file's name can be.
MAX_NAME_CHARACTERS = 255
_DATA_URI = "data:image/jpeg;base64,"


@dataclass(frozen=True, eq=False)
class CoefficientsFile:
    """What a file holds.

    Attributes:
        coefficients: as they were saved.
        note: the sender's words, or "".
        thumbnail: a small RGB picture, or None.
    """

    coefficients: Coefficients
    note: str = ""
    thumbnail: Image.Image | None = None


def save_coefficients(
    path: Path, coefficients: Mapping[str, Any], *, note: str = "", thumbnail: Tensor | None = None
) -> None:
    """Write coefficients as a file, whole or not at all.

    Args:
        path: target; an existing file is replaced.
        coefficients: B mixes of one basis.
        note: words for people, kept in the header.
        thumbnail: pictures [B, H, W, C], float 0–1; the first is shrunk to 256 px and kept as JPEG in the header.
    Raises:
        CheckpointError, ShapeError: for damaged coefficients, too long a note and a basis' name that is none.
        ImageError: for an unusable picture.
        OutputError: when the file cannot be written.
    """
    whole = require_whole_coefficients(coefficients)
    if len(note) > MAX_NOTE_CHARACTERS:
        raise CheckpointError(
            expected=f"a note of at most {MAX_NOTE_CHARACTERS:,} characters",
            got=f"{len(note):,}",
            remedy="Shorten the note; long texts belong into a file of their own.",
        )
    _require_names(whole, path)
    content = {
        "format_version": FORMAT_VERSION,
        "basis_id": whole["basis_id"],
        "settings": whole["settings"],
        "note": note,
    }
    metadata = {METADATA_KEY: json.dumps(content, ensure_ascii=False)}
    if thumbnail is not None:
        metadata[THUMBNAIL_KEY] = _encode_thumbnail(thumbnail)
    write_safetensors_atomically(path, whole["layers"], metadata)


def load_coefficients(path: Path) -> CoefficientsFile:
    """Return what a coefficients file holds; whether it fits a basis is `require_coefficients_of`'s to check.

    Raises:
        CheckpointError: when the file is missing, damaged, of a newer version or no coefficients file.
        ShapeError: when its tensors are not [B, N] of one batch and finite.

    Texts come from strangers: they are of bounded length, but may hold control characters, see `errors.printable`.
    """
    header = read_header(path)
    content = _read_content(header, path)
    layers = _read_layers(header, path)
    coefficients = require_whole_coefficients({**content, "layers": layers})
    return CoefficientsFile(coefficients, content.get("note", ""), _decode_thumbnail(header, path))


def _read_content(header: Header, path: Path) -> dict[str, Any]:
    if METADATA_KEY not in header.metadata:
        is_basis = any(name.endswith(("lora_keys", "lora_A")) for name in header.entries)
        raise CheckpointError(
            expected=f"{path.name} to be a coefficients file, with the header key {METADATA_KEY}",
            got="a LoRWeB basis" if is_basis else f"a file of {len(header.entries)} tensors without it",
            remedy="Load a basis with Load LoRWeB Basis, and here a file written by Save Coefficients.",
        )
    try:
        content = json.loads(header.metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        content = None
    is_whole = isinstance(content, dict) and {"format_version", "basis_id", "settings"} <= set(content)
    if not is_whole or not isinstance(content["basis_id"], str) or not isinstance(content["settings"], dict):
        raise CheckpointError(
            expected=f"format_version, basis_id and settings under {METADATA_KEY} in {path.name}",
            got=header.metadata[METADATA_KEY][:80],
            remedy="The file was edited or written wrongly; ask its sender for it again.",
        )
    note = content.get("note", "")
    if not isinstance(note, str) or len(note) > MAX_NOTE_CHARACTERS:
        raise CheckpointError(
            expected=f"a note of at most {MAX_NOTE_CHARACTERS:,} characters in {path.name}",
            got=f"{len(note):,}" if isinstance(note, str) else f"{type(note).__name__}, which is no text",
            remedy="The file was edited or written wrongly; ask its sender for it again.",
        )
    _require_names(content, path)
    return dict(content)


def _require_names(content: Mapping[str, Any], path: Path) -> None:
    """Raise unless what names the basis in messages is short text."""
    names = {"basis_id": content["basis_id"], "basis_name": content["settings"].get("basis_name", "")}
    for key, name in names.items():
        if not isinstance(name, str) or len(name) > MAX_NAME_CHARACTERS:
            raise CheckpointError(
                expected=f"{key} to be a text of at most {MAX_NAME_CHARACTERS} characters in {path.name}",
                got=f"{len(name):,} characters" if isinstance(name, str) else type(name).__name__,
                remedy="It was edited or made wrongly; encode the analogy again, or ask the sender for the file.",
            )


def _read_layers(header: Header, path: Path) -> dict[str, Tensor]:
    odd = [name for name, entry in header.entries.items() if entry.dtype != "F32" or len(entry.shape) != 2]
    if odd or not header.entries:
        raise CheckpointError(
            expected=f"one float32 tensor [B, N] per layer in {path.name}",
            got=f"{len(odd)} other tensors (such as {', '.join(odd[:3])})" if odd else "no tensor",
            remedy="The file was edited or converted; ask its sender for it again.",
        )
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name).clone() for name in header.entries}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            expected=f"to read {path.name}", got=str(error), remedy="Copy or download the file again."
        ) from error


def _encode_thumbnail(images: Tensor) -> str:
    picture = to_pil(require_images("thumbnail", images)[0])
    picture.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return _DATA_URI + base64.b64encode(buffer.getvalue()).decode("ascii")


def _decode_thumbnail(header: Header, path: Path) -> Image.Image | None:
    text = header.metadata.get(THUMBNAIL_KEY, "")
    if not text:
        return None
    try:
        data = base64.b64decode(text.partition(";base64,")[2], validate=True)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as picture:
            if max(picture.size) > 4 * THUMBNAIL_SIDE_PX:
                raise ValueError(f"{picture.size[0]}×{picture.size[1]} px")
            return picture.convert("RGB")
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CheckpointError(
            expected=f"a small picture under {THUMBNAIL_KEY} in {path.name}",
            got=" ".join(str(error).split())[:80] or type(error).__name__,
            remedy="The file was edited or damaged; ask its sender for it again.",
        ) from error
