"""Nodes that read files: Load LoRWeB Basis, Load Image Encoder (transformers)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ..lorweb_core.basis import Basis
from ..lorweb_core.checkpoint import load_basis
from ..lorweb_core.encoder import ENCODER_FILES
from ..lorweb_core.errors import CheckpointError, ModelError
from ..lorweb_core.settings_sources import find_sidecar
from . import host
from .sockets import BASIS, LoadedBasis
from .vision import TransformersClipVision, load_clip_vision


class LoadBasis:
    """Read a LoRWeB basis: the published checkpoint, or one trained with this project's trainer."""

    DESCRIPTION = (
        "Loads a LoRWeB basis (.safetensors) from models/lorweb. Settings come from the file, or from a YAML of the "
        "same name beside it, or are assumed from the shapes with a warning."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "load"
    RETURN_TYPES = (BASIS,)
    RETURN_NAMES = ("basis",)
    OUTPUT_TOOLTIPS = ("N adapters, keys and a query projection for every layer.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["lorweb", "analogy", "basis", "lora basis"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the widget to the host."""
        tooltip = "A .safetensors file in models/lorweb (or a lorweb folder of extra_model_paths.yaml)."
        return {"required": {"basis_name": (host.list_bases(), {"tooltip": tooltip})}}

    @classmethod
    def IS_CHANGED(cls, basis_name: str | None) -> tuple[str | int, ...]:
        """Reload when the file is another one, or the YAML with its settings comes, goes or changes.

        A name that comes over a link is not known yet and may be any: then all files count.
        """
        names = host.list_bases() if basis_name is None else [basis_name]
        return tuple(part for name in names for part in _fingerprint_basis(host.find_basis(name)))

    def load(self, basis_name: str) -> tuple[LoadedBasis]:
        """Return the basis, wholly in memory, so that its file may be replaced."""
        path = host.find_basis(basis_name)
        if path is None:
            raise CheckpointError(
                f"The basis {basis_name!r} is not in models/lorweb (any more). Put the file there, press R to refresh "
                "the lists, and choose it again."
            )
        found = _fingerprint_basis(path)

        def read() -> Basis:
            if _fingerprint_basis(path) != found:
                raise CheckpointError(f"The file {basis_name} changed after it was loaded. Queue the prompt again.")
            return load_basis(path, on_progress=host.Progress().show)

        return (LoadedBasis(read(), read),)


class LoadImageEncoder:
    """Load an image encoder through transformers: SigLIP2, or CLIP exactly as in training."""

    DESCRIPTION = (
        "Loads a Hugging Face folder (config.json + .safetensors) as CLIP_VISION. Needed for SigLIP2, which the "
        "host's own CLIP Vision loader does not know; for CLIP ViT-L/14 the host's loader does as well."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP_VISION",)
    RETURN_NAMES = ("clip_vision",)
    OUTPUT_TOOLTIPS = ("An image encoder for Encode Analogy (CLIP); other nodes can encode with it too.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["clip vision", "siglip", "image encoder", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the widget to the host."""
        tooltip = "A folder with config.json and .safetensors below models/clip_vision or models/lorweb."
        return {"required": {"encoder_name": (list(host.find_encoder_folders()), {"tooltip": tooltip})}}

    @classmethod
    def IS_CHANGED(cls, encoder_name: str | None) -> tuple[str | int, ...]:
        """Reload when weights, config or preprocessing are others; of any encoder, while the name is not known yet."""
        known = host.find_encoder_folders()
        folders = list(known.values()) if encoder_name is None else [known.get(encoder_name)]
        files = [folder / name if folder else None for folder in folders for name in ENCODER_FILES]
        return tuple(part for file in files for part in fingerprint_file(file))

    def load(self, encoder_name: str) -> tuple[TransformersClipVision]:
        """Return the encoder, managed by the host like a model of its own."""
        folder = host.find_encoder_folders().get(encoder_name)
        if folder is None:
            raise ModelError(
                expected="a folder with config.json and .safetensors below models/clip_vision or models/lorweb",
                got=f"{encoder_name!r}, which is not there (any more)",
                remedy="Put the folder there, press R to refresh the lists, and choose it again.",
            )
        return (load_clip_vision(folder),)


def _fingerprint_basis(path: Path | None) -> tuple[str | int, ...]:
    sidecar = find_sidecar(path) if path else None
    return (*fingerprint_file(path), *(fingerprint_file(sidecar) if sidecar else ()))


def fingerprint_file(path: Path | None) -> tuple[str, int, int]:
    """Return what tells a file from another one of the same name: for `IS_CHANGED`."""
    if path is None or not path.exists():
        return ("missing", 0, 0)
    status = path.stat()
    return (str(path), status.st_size, status.st_mtime_ns)
