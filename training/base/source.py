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
TINY_PARTS = ("tiny-parts", "model")


class NotDownloadedError(ModelError):
    """A Hugging Face repository, or the part of it that is needed, is not on this machine yet."""


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


@dataclass(frozen=True)
class PartsHere:
    """Which parts of a base are on this machine.

    Attributes:
        transformer: as in `ModelSource`; None where it has to be downloaded first.
        components: likewise.
        repositories: Hugging Face ids from which the missing ones come.
    """

    transformer: Path | None
    components: Path | None
    repositories: tuple[str, ...]

    def transformer_config(self) -> dict[str, Any]:
        """Return the transformer's config values, the published Kontext's where there is nothing to read them from.

        Raises: ModelError: when config.json is missing or is not a FLUX transformer's.
        """
        if self.transformer is None or self.transformer.is_file():
            return dict(FULL_SIZE_CONFIG)
        return _read_config(self.transformer)


def find_source(model: str, components: str | None) -> ModelSource:
    """Return where a base's files are, downloading a Hugging Face repository when needed.

    Args:
        model: folder, single file, or repository id.
        components: folder or id for everything but the transformer; without it the model's own, for a single file
            the published Kontext.
    Raises: ModelError: missing file, folder without parts, or a repository that cannot be read, with the steps.
    """
    transformer, companions = _places(model, components)
    return ModelSource(_find(transformer, download=True), _find(companions, download=True))


def find_parts_here(model: str, components: str | None) -> PartsHere:
    """Return which parts of a base are here already, without downloading; arguments as for `find_source`.

    Raises: ModelError: missing file or folder, or a name that no repository can have.
    """
    found: list[Path | None] = []
    repositories = []
    for place in _places(model, components):
        try:
            found.append(_find(place, download=False))
        except NotDownloadedError:
            found.append(None)
            repositories.append(place.name)
    return PartsHere(found[0], found[1], tuple(dict.fromkeys(repositories)))


def read_transformer_config(source: ModelSource) -> dict[str, Any]:
    """Return the transformer's config values, the published Kontext's for a single file.

    Raises: ModelError: when config.json is missing or is not a FLUX transformer's.
    """
    return dict(FULL_SIZE_CONFIG) if source.is_single_file else _read_config(source.transformer)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "transformer" / "config.json"
    values = read_json_object(path)
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


@dataclass(frozen=True)
class _Place:
    """A part of a base as the config names it: file, folder or repository."""

    part: str
    name: str


def _places(model: str, components: str | None) -> tuple[_Place, _Place]:
    """Those of the transformer and of everything else."""
    own = KONTEXT_ID if Path(model).suffix in SINGLE_FILE_SUFFIXES else model
    return _Place("transformer", model), _Place("components", components or own)


def _find(place: _Place, *, download: bool) -> Path:
    if place.part == "transformer" and Path(place.name).suffix in SINGLE_FILE_SUFFIXES:
        return _existing_file(Path(place.name))
    folder = Path(place.name).expanduser()
    if folder.is_dir():
        return folder
    is_tiny = folder.parts[-2:] == TINY_PARTS
    # Where the folder around it exists, a path that has the form of a repository's id was most likely meant as a path.
    if is_tiny or not is_repository_id(place.name) or (not download and folder.parent.is_dir()):
        tiny = f" `python -m training.demo tiny-parts {folder.parent}` writes it." if is_tiny else ""
        raise ModelError(
            expected="a diffusers folder, a single .safetensors file, or a Hugging Face id like owner/name",
            got=f"{place.name!r}, which is none of them here",
            remedy=f"Correct base.model (or base.components); relative paths start at the current folder.{tiny}",
        )
    return _find_repository(place, download=download)


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


def _find_repository(place: _Place, *, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = list(_PATTERNS[place.part])
    try:
        path = snapshot_download(place.name, allow_patterns=patterns, local_files_only=not download)
    except (OSError, ValueError) as error:  # gated, missing, no network: all derive from these
        is_absent = not download and isinstance(error, LocalEntryNotFoundError)
        raise _not_downloaded(place) if is_absent else _unreadable(place, error) from error
    if not download and not (Path(path) / _FIRST_OF[place.part]).exists():  # fetched for another of its parts
        raise _not_downloaded(place)
    return Path(path)


def _not_downloaded(place: _Place) -> NotDownloadedError:
    return NotDownloadedError(
        expected=f"{place.name} on this machine",
        got="no copy, or one without what is needed",
        remedy="The first run downloads it.",
    )


def _unreadable(place: _Place, error: Exception) -> ModelError:
    return ModelError(
        expected=f"{place.name} to be a folder here or a Hugging Face repository that can be read",
        got=f"{type(error).__name__}: {shorten(str(error), 200, placeholder=' …')}",
        remedy=f"For a gated model: open https://huggingface.co/{place.name} in a browser, accept its license, then "
        "run `hf auth login` with a read token. Without network: name a local folder or a single file in base.model.",
    )
