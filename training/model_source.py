"""Where a model's files are: a diffusers folder, a Hugging Face id, or one file as ComfyUI users have it.

Whatever was named, the rest of the trainer sees a local folder with `transformer/`, `vae/`, `scheduler/` and maybe
`text_encoder/` …, plus perhaps a single file for the transformer. All messages about downloads are made here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from safetensors import SafetensorError

from lorweb_core.errors import ModelError
from lorweb_core.settings import KONTEXT_ID

SINGLE_FILE_SUFFIXES = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".sft")
_PATTERNS = {
    "transformer": ("transformer/*.json", "transformer/*.safetensors"),
    "components": ("vae/*", "scheduler/*", "text_encoder*/*.json", "text_encoder*/*.safetensors", "tokenizer*/*"),
}


@dataclass(frozen=True)
class ModelSource:
    """Where the parts of a base are.

    Attributes:
        transformer: folder that holds `transformer/`, or a single file.
        components: folder that holds `vae/` and `scheduler/`, and text encoders if there are any.
    """

    transformer: Path
    components: Path

    @property
    def is_single_file(self) -> bool:
        """Whether the transformer is one file in the original layout."""
        return self.transformer.is_file()


def find_source(model: str, components: str | None, revision: str | None, *, download: bool = True) -> ModelSource:
    """Return where a base's files are, downloading a Hugging Face repository when needed.

    Args:
        model: folder, single file, or repository id.
        components: folder or id for everything but the transformer; without it the model's own, for a single file
            the published Kontext.
        revision: of the repository.
        download: False looks into the local cache only.
    Raises: ModelError: missing file, folder without parts, or a repository that cannot be read, with the steps.
    """
    if Path(model).suffix in SINGLE_FILE_SUFFIXES:
        file = _existing_file(Path(model))
        folder = _find_folder(components or KONTEXT_ID, revision if components else None, "components", download)
        return ModelSource(file, folder)
    transformer = _find_folder(model, revision, "transformer", download)
    folder = _find_folder(components or model, None if components else revision, "components", download)
    return ModelSource(transformer, folder)


def read_transformer_config(source: ModelSource) -> dict[str, Any]:
    """Return the transformer's config values, the published Kontext's for a single file.

    Raises: ModelError: when config.json is missing or is not a FLUX transformer's.
    """
    if source.is_single_file:
        return dict(FULL_SIZE_CONFIG)
    path = source.transformer / "transformer" / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            expected=f"a diffusers transformer with its config at {path}",
            got=str(error),
            remedy="Copy the model folder again, whole, or name its Hugging Face id.",
        ) from error
    if values.get("_class_name", "FluxTransformer2DModel") != "FluxTransformer2DModel":
        raise ModelError(
            expected="a FLUX transformer (FluxTransformer2DModel)",
            got=f"{values['_class_name']} in {path}",
            remedy=f"LoRWeB is for FLUX.1-Kontext; use {KONTEXT_ID}.",
        )
    return {name: value for name, value in values.items() if not name.startswith("_")}


#: FLUX.1-Kontext-dev, for single files: nothing is fetched to read them.
FULL_SIZE_CONFIG: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}


#: What diffusers and transformers raise on missing, truncated or foreign files.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)


def damaged_part(folder: Path, error: Exception) -> ModelError:
    """Return the refusal of a part of a model that cannot be loaded."""
    return ModelError(
        expected=f"whole files, weights as .safetensors, in {folder}",
        got=f"{type(error).__name__}: {shorten(str(error), 300, placeholder=' …')}",
        remedy="Copy or download the model folder again.",
    )


def _existing_file(path: Path) -> Path:
    if path.is_file():
        return path
    raise ModelError(
        expected=f"a model file at {path}",
        got="no such file",
        remedy="Correct base.model; ComfyUI keeps these files in models/diffusion_models (or models/unet).",
    )


def is_repository_id(name: str) -> bool:
    """Whether a name has the form owner/name of Hugging Face; a path with one slash has it as well."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _find_folder(name: str, revision: str | None, part: str, download: bool) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not is_repository_id(name):
        raise ModelError(
            expected="a diffusers folder, a single .safetensors file, or a Hugging Face id like owner/name",
            got=f"{name!r}, which is none of them here",
            remedy="Correct base.model (or base.components); relative paths start at the current folder.",
        )
    from huggingface_hub import snapshot_download

    try:
        patterns = list(_PATTERNS[part])
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=not download))
    except (OSError, ValueError) as error:  # gated, missing, no network, unknown revision: all derive from these
        raise ModelError(
            expected=f"{name} to be a folder here or a Hugging Face repository that can be read",
            got=f"{type(error).__name__}: {shorten(str(error), 200, placeholder=' …')}",
            remedy=f"For a gated model: open https://huggingface.co/{name} in a browser, accept its licence, then run "
            "`hf auth login` with a read token. Without network: name a local folder or a single file in base.model.",
        ) from error
