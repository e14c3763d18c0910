"""Where a model's files are: a diffusers folder, a Hugging Face id, or one file as ComfyUI users have it.

Whatever was named, the rest of the trainer sees a local folder with `transformer/`, `vae/`, `scheduler/` and maybe
`text_encoder/` …, plus perhaps a single file for the transformer. All messages about downloads are made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from safetensors import SafetensorError

from lorweb_core.errors import ModelError
from lorweb_core.preprocessing import read_json_object
from lorweb_core.settings import KONTEXT_ID

SINGLE_FILE_SUFFIXES = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".sft")
_PATTERNS = {
    "transformer": ("transformer/*.json", "transformer/*.safetensors"),
    "components": ("vae/*", "scheduler/*", "text_encoder*/*.json", "text_encoder*/*.safetensors", "tokenizer*/*"),
}
_FIRST_OF = {"transformer": "transformer/config.json", "components": "vae/config.json"}
#: How the path ends that tiny.yaml names.
_TINY_PARTS = ("tiny-parts", "model")
#: FLUX.1-Kontext-dev, for single files: nothing is fetched to read them.
FULL_SIZE_CONFIG: dict[str, Any] = {
    "patch_size": 1, "in_channels": 64, "out_channels": None, "num_layers": 19, "num_single_layers": 38,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
    "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
#: What diffusers and transformers raise on missing, truncated or foreign files.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)


class NotDownloadedError(ModelError):
    """A Hugging Face repository, or the part of it that is needed, is not on this machine yet."""


@dataclass(frozen=True)
class ModelSource:
    """Where the parts of a base are."""

    transformer: Path  # folder that holds `transformer/`, or a single file in the original layout
    components: Path  # folder that holds `vae/` and `scheduler/`, and text encoders if there are any


@dataclass(frozen=True)
class PartsHere:
    """Which parts of a base are on this machine; None for one that has to be downloaded first."""

    transformer: Path | None
    components: Path | None
    repositories: tuple[str, ...]  # Hugging Face ids from which the missing ones come


def find_source(model: str, components: str | None) -> ModelSource:
    """Return where a base's files are, downloading a Hugging Face repository when needed.

    Args:
        model: folder, single file, or repository id.
        components: folder or id for everything but the transformer; without it the model's own, for a single file
            the published Kontext.
    Raises ModelError, with the steps to take, for a missing file and a repository that cannot be read.
    """
    found = [_find(part, name, download=True) for part, name in _parts(model, components)]
    return ModelSource(*found)


def find_parts_here(model: str, components: str | None) -> PartsHere:
    """Return which parts of a base are here already, without downloading; arguments as for `find_source`.

    Raises ModelError for a missing file or folder, and a name that no repository can have.
    """
    found: list[Path | None] = []
    repositories = []
    for part, name in _parts(model, components):
        try:
            found.append(_find(part, name, download=False))
        except NotDownloadedError:
            found.append(None)
            repositories.append(name)
    return PartsHere(found[0], found[1], tuple(dict.fromkeys(repositories)))


def read_transformer_config(source: ModelSource | PartsHere) -> dict[str, Any]:
    """Return the transformer's config, the published Kontext's for a single file or one not downloaded yet.

    Raises ModelError when config.json is missing or is not a FLUX transformer's.
    """
    if source.transformer is None or source.transformer.is_file():
        return dict(FULL_SIZE_CONFIG)
    path = source.transformer / "transformer" / "config.json"
    values = read_json_object(path)
    if values.get("_class_name", "FluxTransformer2DModel") != "FluxTransformer2DModel":
        raise ModelError(
            f"{path} describes a {values['_class_name']}, not a FLUX transformer (FluxTransformer2DModel). LoRWeB is "
            f"for FLUX.1-Kontext; use {KONTEXT_ID}."
        )
    return {name: value for name, value in values.items() if not name.startswith("_")}


def damaged_part(folder: Path, error: Exception) -> ModelError:
    """Return the error for a part of a model that cannot be loaded."""
    reason = shorten(str(error), 300, placeholder=" …")
    return ModelError(
        f"{folder} cannot be loaded ({type(error).__name__}: {reason}). It must hold whole files, with weights as "
        ".safetensors. Copy or download the model folder again."
    )


def is_repository_id(name: str) -> bool:
    """Whether a name has the form owner/name of Hugging Face; a path with one slash has it as well."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _parts(model: str, components: str | None) -> list[tuple[str, str]]:
    """(part, name) of the transformer and of everything else."""
    own = KONTEXT_ID if Path(model).suffix in SINGLE_FILE_SUFFIXES else model
    return [("transformer", model), ("components", components or own)]


def _find(part: str, name: str, *, download: bool) -> Path:
    if part == "transformer" and Path(name).suffix in SINGLE_FILE_SUFFIXES:
        if Path(name).is_file():
            return Path(name)
        raise ModelError(
            f"There is no model file {name}. Correct base.model; ComfyUI keeps these files in models/diffusion_models "
            "(or models/unet)."
        )
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    is_tiny = folder.parts[-2:] == _TINY_PARTS
    # Where the folder around it exists, a path that has the form of a repository's id was most likely meant as a path.
    if is_tiny or not is_repository_id(name) or (not download and folder.parent.is_dir()):
        command = f"python -m training.demo tiny-parts {folder.parent}"
        tiny = f" `{command}` writes it; the demo is only in the git repository." if is_tiny else ""
        raise ModelError(
            f"There is no diffusers folder {name!r}, and it is neither a single .safetensors file nor a Hugging Face "
            "id such as owner/name. Correct base.model (or base.components); relative paths start at the current "
            f"folder.{tiny}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    absent = NotDownloadedError(f"{name} is not on this machine, or not all of it. The first run downloads it.")
    try:
        path = snapshot_download(name, allow_patterns=list(_PATTERNS[part]), local_files_only=not download)
    except (OSError, ValueError) as error:  # gated, missing, no network: all derive from these
        if not download and isinstance(error, LocalEntryNotFoundError):
            raise absent from error
        reason = shorten(str(error), 200, placeholder=" …")
        raise ModelError(
            f"{name} is not a folder here, and cannot be read from Hugging Face ({type(error).__name__}: {reason}). "
            f"For a gated model: open https://huggingface.co/{name} in a browser, accept its license, then run "
            "`hf auth login` with a read token. Without network: name a local folder or a single file in base.model."
        ) from error
    if not download and not (Path(path) / _FIRST_OF[part]).exists():  # fetched for another of its parts
        raise absent
    return Path(path)
