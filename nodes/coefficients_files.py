"""Nodes Save Coefficients and Load Coefficients: an analogy as a small file."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..lorweb_core.coefficients import Coefficients, describe_origin, require_coefficients_of
from ..lorweb_core.coefficients_file import THUMBNAIL_SIDE_PX, load_coefficients, save_coefficients
from ..lorweb_core.errors import CheckpointError
from ..lorweb_core.images import from_pil
from . import host
from .loaders import fingerprint_file
from .sockets import BASIS, COEFFICIENTS, LoadedBasis

_logger = logging.getLogger(__name__)


class SaveCoefficients:
    """Write an analogy as a file of some 0.1 MB."""

    DESCRIPTION = (
        "Writes the coefficients as a small file that others with the same basis can use without your pictures. It "
        "appears in Load Coefficients after pressing R."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The file written.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["save analogy", "export", "share", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        return {
            "required": {
                "coefficients": (COEFFICIENTS, {"tooltip": "One or several mixes; all go into one file."}),
                "filename_prefix": (
                    "STRING",
                    {
                        "default": f"{host.COEFFICIENTS_FOLDER}/analogy",
                        "tooltip": "Folder and name below the output folder. Load Coefficients looks into "
                        f"{host.COEFFICIENTS_FOLDER}.",
                    },
                ),
                "note": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "dynamicPrompts": False,  # braces in a note are the user's own
                        "tooltip": "What the edit does and how strong to use it; kept in the file.",
                    },
                ),
            },
            "optional": {
                "thumbnail": (
                    "IMAGE",
                    {"tooltip": f"A result to recognise the edit by; kept in the file at {THUMBNAIL_SIDE_PX} px."},
                )
            },
        }

    def save(
        self, coefficients: Coefficients, filename_prefix: str, note: str, thumbnail: Tensor | None = None
    ) -> dict[str, Any]:
        """Write one file and return its path."""
        folder, stem, counter = host.next_output_path(filename_prefix)
        path = folder / f"{stem}_{counter:05}_.safetensors"
        save_coefficients(path, coefficients, note=note, thumbnail=thumbnail)
        line = f"{path.name}: {describe_origin(coefficients)}, {path.stat().st_size / 1e3:.0f} kB"
        _logger.info("Saved coefficients %s", line)
        return {"ui": {"text": [line]}, "result": (str(path),)}


class LoadCoefficients:
    """Read an analogy from a file."""

    DESCRIPTION = (
        "Reads coefficients from models/lorweb_coefficients or output/lorweb_coefficients. They work with the basis "
        "they were made with and no other; connect it to have that checked here instead of in Apply."
    )
    CATEGORY = "LoRWeB/coefficients"
    FUNCTION = "load"
    RETURN_TYPES = (COEFFICIENTS, "STRING", "IMAGE")
    RETURN_NAMES = ("coefficients", "note", "thumbnail")
    OUTPUT_TOOLTIPS = ("As they were saved.", "The sender's note.", "The file's picture; black when it has none.")
    SEARCH_ALIASES: ClassVar[list[str]] = ["load analogy", "import", "share", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        tooltip = (
            "A .safetensors file written by Save Coefficients. Where both folders have a file of one name, the plain "
            "name is the output folder's and models/… the other."
        )
        return {
            "required": {"file_name": (host.list_coefficients(), {"tooltip": tooltip})},
            "optional": {"basis": (BASIS, {"tooltip": "Check here that the file belongs to this basis."})},
        }

    @classmethod
    def IS_CHANGED(cls, file_name: str | None, basis: None = None) -> tuple[str, int, int]:
        """Reload when the file is another one.

        A name that comes over a link is not known yet: then only another name counts. Saved files get new names.
        """
        if file_name is None:
            return ("a name over a link", 0, 0)
        return fingerprint_file(host.find_coefficients(file_name))

    def load(self, file_name: str, basis: LoadedBasis | None = None) -> dict[str, Any]:
        """Return the coefficients, the note and the picture [1, H, W, 3]."""
        path = host.find_coefficients(file_name)
        if path is None:
            raise CheckpointError(
                expected=f"a coefficients file in models/{host.COEFFICIENTS_FOLDER} or the output folder's one",
                got=f"{file_name!r}, which is not there (any more)",
                remedy="Put the file there, press R to refresh the lists, and choose it again.",
            )
        file = load_coefficients(path)
        coefficients = file.coefficients
        if basis is not None:
            coefficients = require_coefficients_of(basis.basis, coefficients)
        blank = torch.zeros(THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX, 3)
        thumbnail = blank if file.thumbnail is None else from_pil(file.thumbnail)
        lines = [describe_origin(coefficients), f"From {host.describe_place(path)}"]
        namesakes = host.list_namesakes(file_name)
        if namesakes:
            lines.append(f"Another file of this name is listed as {', '.join(namesakes)}.")
        shown: dict[str, Any] = {"text": ["\n".join([*lines, file.note]).strip()]}
        if file.thumbnail is not None:
            shown["images"] = host.save_previews([file.thumbnail], "lorweb_thumbnail")
        return {"ui": shown, "result": (coefficients, file.note, thumbnail[None])}
