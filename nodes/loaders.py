"""Nodes that read model files: Load LoRWeB Basis, Load Image Encoder (transformers)."""

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
    DESCRIPTION = (
        "Loads a LoRWeB basis (.safetensors) from models/lorweb. Its settings are read from the file or from a YAML "
        "file of the same name next to it; without either they are inferred from the tensor shapes, with a warning."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "load"
    RETURN_TYPES = (BASIS,)
    RETURN_NAMES = ("basis",)
    OUTPUT_TOOLTIPS = ("N adapters, keys and a query projection for every layer.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["lorweb", "analogy", "basis", "lora basis"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A .safetensors file in models/lorweb (or in a lorweb folder of extra_model_paths.yaml)."
        return {"required": {"basis_name": (host.list_bases(), {"tooltip": tooltip})}}

    @classmethod
    def IS_CHANGED(cls, basis_name: str | None) -> tuple[str | int, ...]:
        """Reload when the file changes, or the YAML file with its settings; any file while a linked name is unknown."""
        names = host.list_bases() if basis_name is None else [basis_name]
        return tuple(part for name in names for part in _fingerprint_basis(host.find_basis(name)))

    def load(self, basis_name: str) -> tuple[LoadedBasis]:
        """Return the basis, in memory. Apply may read its adapters again from the file, so keep the file in place."""
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


def _fingerprint_basis(path: Path | None) -> tuple[str | int, ...]:
    sidecar = find_sidecar(path) if path else None
    return (*host.fingerprint_file(path), *(host.fingerprint_file(sidecar) if sidecar else ()))


class LoadImageEncoder:
    DESCRIPTION = (
        "Loads a Hugging Face folder (config.json + .safetensors) as CLIP_VISION. Needed for SigLIP2, which Load CLIP "
        "Vision does not support. For CLIP ViT-L/14, Load CLIP Vision is enough."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "load"
    RETURN_TYPES = ("CLIP_VISION",)
    RETURN_NAMES = ("clip_vision",)
    OUTPUT_TOOLTIPS = ("An image encoder for Encode Analogy (CLIP); other nodes can use it too.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["clip vision", "siglip", "image encoder", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A folder with config.json and .safetensors below models/clip_vision or models/lorweb."
        return {"required": {"encoder_name": (list(host.find_encoder_folders()), {"tooltip": tooltip})}}

    @classmethod
    def IS_CHANGED(cls, encoder_name: str | None) -> tuple[str | int, ...]:
        """Reload when weights, config or preprocessing change; of any encoder while a linked name is unknown."""
        known = host.find_encoder_folders()
        folders = list(known.values()) if encoder_name is None else [known.get(encoder_name)]
        files = [folder / name if folder else None for folder in folders for name in ENCODER_FILES]
        return tuple(part for file in files for part in host.fingerprint_file(file))

    def load(self, encoder_name: str) -> tuple[TransformersClipVision]:
        """Return the encoder, managed by the host like a model of its own."""
        folder = host.find_encoder_folders().get(encoder_name)
        if folder is None:
            raise ModelError(
                f"The image encoder {encoder_name!r} is not below models/clip_vision or models/lorweb (any more). Put "
                "its folder with config.json and .safetensors there, press R to refresh the lists, and choose it again."
            )
        return (load_clip_vision(folder),)
