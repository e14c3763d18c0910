"""Images that come out of archives and tables: which field is which, and bytes → files, never encoded again."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from lorweb_core.errors import OutputError
from lorweb_core.images import IMAGE_FORMATS, readable_formats

BEFORE_NAMES = (
    "before", "source", "input", "original", "src", "left", "before_image", "source_image", "input_image",
    "original_image", "image_before", "src_img", "image",
)  # fmt: skip
AFTER_NAMES = (
    "after", "target", "output", "edited", "tgt", "right", "after_image", "target_image", "output_image",
    "edited_image", "image_after", "edited_img", "target_img",
)  # fmt: skip
CAPTION_NAMES = ("caption", "edit_instruction", "instruction", "edit_prompt", "edit", "prompt", "text")
TASK_NAMES = ("task", "category", "relation", "transformation", "edit_type", "task_type", "label", "cls")
_UNSAFE = re.compile(r"[^\w.\- ]+")
_LONGEST_NAME = 100


def first_of(names: Iterable[str], present: Iterable[str]) -> str | None:
    """The first of the wanted names that is present, upper and lower case alike; in the spelling that is present."""
    spelled = {name.lower(): name for name in present}
    return next((spelled[name] for name in names if name in spelled), None)


def text_of(values: Mapping[str, object], names: Iterable[str]) -> str:
    """The text of the first of these fields that has any, white space folded."""
    for name in names:
        value = values.get(name)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return ""


def write_image(folder: Path, name: str, data: bytes) -> Path:
    """Write the bytes of an encoded image unchanged, with the suffix of what they are; return the file.

    Importing the same again changes nothing. Unreadable data are written too (`.bin`), so that the import lists them.

    Raises OutputError when it cannot be written, or another image has this name (of another import).
    """
    path = folder / (safe_name(name) + _suffix_of(data))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_new = not path.is_file() or path.read_bytes() != data
        if is_new and path.exists():
            raise OutputError(
                f"{folder} already has another image named {path.name}. Name another folder with --images; every "
                "import needs its own."
            )
        if is_new:
            temporary = path.with_name(f".{path.name}.tmp")  # a killed import leaves no half image under its name
            temporary.write_bytes(data)
            temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"Images cannot be written into {folder}: {error.strerror or error}. Name another folder with --images, "
            "on a disk with enough space that you may write to."
        ) from error
    return path


def safe_name(name: str) -> str:
    """A file name without folders, control characters, leading or trailing dots; never empty."""
    return _UNSAFE.sub("_", name).strip(". ")[:_LONGEST_NAME].rstrip(". ") or "unnamed"


def _suffix_of(data: bytes) -> str:
    try:
        with Image.open(io.BytesIO(data), formats=readable_formats()) as image:
            return IMAGE_FORMATS["JPEG" if image.format == "MPO" else str(image.format)][0]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ".bin"
