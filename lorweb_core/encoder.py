"""Images → image embeddings, by a frozen CLIP or SigLIP vision tower from transformers.

CLIP: the projected `image_embeds`, not L2-normalized. SigLIP2 with a fixed resolution has SigLIP's layout, so it is
loaded with the SigLIP class and gives `pooler_output` (the NaFlex class would start from random weights).
Only safetensors files are read and no code of a model folder is ever run. Source: arXiv 2602.15727, Section 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .errors import ModelError, one_line
from .images import require_images
from .preprocessing import (
    CLIP_PREPROCESSING,
    SIGLIP2_PREPROCESSING,
    Preprocessing,
    preprocess_images,
    read_json_object,
    read_preprocessing,
)
from .settings import CLIP_ENCODER_ID, SIGLIP_ENCODER_ID

CONFIG_FILE = "config.json"
CLIP_FAMILY, SIGLIP_FAMILY = "CLIP", "SigLIP"
#: All that is read of a model folder, and fetched of a Hugging Face repository: no code and no pickles.
ENCODER_FILES = (CONFIG_FILE, "preprocessor_config.json", "processor_config.json", "model.safetensors")
_REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MODEL_TYPES = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
_TEXT_PREFIXES = ("text_model.", "text_projection.", "logit_scale", "logit_bias")
_MAX_BATCH = 32


@dataclass(frozen=True)
class ImageEncoder:
    """A vision tower together with the preprocessing that belongs to it.

    Attributes:
        model: takes `pixel_values` [B, 3, S, S]; may be moved between devices by its owner.
        output_name: field of the model's output that is the embedding: `image_embeds` or `pooler_output`.
        encoder_id: the Hugging Face id, or the name of the folder it came from.
    """

    model: nn.Module
    preprocessing: Preprocessing
    output_name: str
    embedding_dim: int
    encoder_id: str

    @property
    def family(self) -> str:
        """`CLIP` or `SigLIP`."""
        return CLIP_FAMILY if self.output_name == "image_embeds" else SIGLIP_FAMILY

    def embed(self, images: Tensor, *, on_progress: Callable[[int, int], None] | None = None) -> Tensor:
        """Return image embeddings [B, P] of images [B, H, W, C], float 0–1; float32 on the CPU, not normalized.

        `on_progress` is called after each batch with (images done, images in all) and may raise to stop.
        Raises ImageError for unusable images, ModelError when an embedding is NaN or infinite.
        """
        images = require_images("images", images)
        weight = next(self.model.parameters())
        embeddings: list[Tensor] = []
        done = 0
        for part in images.split(_MAX_BATCH):
            pixel_values = preprocess_images(part, self.preprocessing)
            with torch.no_grad():
                output = self.model(pixel_values=pixel_values.to(weight.device, weight.dtype))
            embeddings.append(getattr(output, self.output_name).to("cpu", torch.float32))
            if not embeddings[-1].isfinite().all():
                raise ModelError(
                    f"The image encoder {self.encoder_id} gives NaN or infinite embeddings. Get its weights again, or "
                    "load them in float32 or bfloat16 instead of float16."
                )
            done += len(part)
            if on_progress is not None:
                on_progress(done, len(images))
        return torch.cat(embeddings)


def family_of(encoder_id: str) -> str:
    """Return the family, `CLIP` or `SigLIP`, of the image encoder that a basis' settings name."""
    return SIGLIP_FAMILY if "siglip" in encoder_id.lower() else CLIP_FAMILY


def load_image_encoder(
    folder_or_id: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    local_files_only: bool = False,
) -> ImageEncoder:
    """Return the image encoder of a model folder, or of a Hugging Face repository (downloaded once, then cached).

    Args:
        folder_or_id: folder with `config.json` and `model.safetensors`, or an id such as CLIP_ENCODER_ID.
        dtype: of weights and computation; embeddings are float32 in any case.
        revision: branch, tag or commit of the repository; ignored for folders.
        local_files_only: look into the cache, but download nothing.
    Raises: ModelError: when folder, weights or projection are missing or the model is no CLIP or fixed-size SigLIP.
    """
    folder = find_encoder_folder(folder_or_id, revision, local_files_only)
    is_clip, vision_values = _read_vision_config(folder)
    model_class, config_class = _vision_classes(is_clip)
    weights = _read_vision_weights(folder / "model.safetensors", dtype)
    try:
        vision_config = config_class.from_dict(vision_values)
        # Given the tensors, transformers opens no file, downloads nothing and looks for no adapters.
        model, loading = model_class.from_pretrained(
            None, config=vision_config, state_dict=weights, output_loading_info=True
        )
        image_size_px = int(vision_config.image_size)
    except Exception as error:  # transformers has no common class for configs and weights that do not fit
        raise ModelError(
            f"config.json and model.safetensors in {folder} do not describe one vision tower ({_reason(error)}). Copy "
            "the model folder again, whole, from its source."
        ) from error
    has_output = is_clip or getattr(vision_config, "vision_use_head", True)
    missing = sorted(loading["missing_keys"]) if has_output else ["head, which config.json switches off"]
    if missing:
        raise ModelError(
            f"{folder / 'model.safetensors'} lacks {len(missing)} weights of {model_class.__name__}, which would be "
            f"random numbers: {', '.join(missing[:3])}. Use a file with the projection or pooling head, such as the "
            f"published {CLIP_ENCODER_ID if is_clip else SIGLIP_ENCODER_ID}."
        )
    preset = CLIP_PREPROCESSING if is_clip else SIGLIP2_PREPROCESSING
    preset = replace(preset, size_px=image_size_px, shortest_edge_px=image_size_px if is_clip else None)
    preprocessing = read_preprocessing(folder, preset)
    if preprocessing.size_px != image_size_px:
        raise ModelError(
            f"The image encoder in {folder} takes {image_size_px} px, but its preprocessor file says "
            f"{preprocessing.size_px} px. Copy the model folder again, whole; files of two models are mixed in it."
        )
    return ImageEncoder(
        model=model.to(device=torch.device(device), dtype=dtype).eval().requires_grad_(False),
        preprocessing=preprocessing,
        output_name="image_embeds" if is_clip else "pooler_output",
        embedding_dim=vision_config.projection_dim if is_clip else vision_config.hidden_size,
        encoder_id=folder.resolve().name if Path(folder_or_id).is_dir() else str(folder_or_id),
    )


def find_encoder_folder(folder_or_id: str | Path, revision: str | None = None, local_files_only: bool = False) -> Path:
    """Return the folder with an image encoder's files; arguments and errors as for `load_image_encoder`."""
    folder = Path(folder_or_id)
    if folder.is_dir():
        return folder
    if folder.is_file() or not _REPOSITORY_ID.fullmatch(str(folder_or_id)):
        raise ModelError(
            f"There is {'a file, not a folder,' if folder.is_file() else 'no folder'} at {folder}. Name the folder of "
            f"an image encoder, with config.json and model.safetensors, such as a download of {CLIP_ENCODER_ID}."
        )
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            str(folder_or_id),
            revision=revision,
            allow_patterns=list(ENCODER_FILES),
            local_files_only=local_files_only,
        )
    except (OSError, ValueError) as error:  # missing or gated repository, no network, unknown revision
        raise ModelError(
            f"{folder_or_id} is not a folder here, and cannot be read as a Hugging Face repository ({_reason(error)}). "
            "Check the name and the network; for a gated repository accept its license and log in."
        ) from error
    return Path(snapshot)


def read_encoder_size(folder_or_id: str | Path, *, revision: str | None = None) -> tuple[int, int]:
    """Return (P, number of weights) of an image encoder on this machine, from its config.json alone.

    Raises ModelError when it is not on this machine, or is no CLIP or fixed-size SigLIP.
    """
    folder = find_encoder_folder(folder_or_id, revision, local_files_only=True)
    is_clip, vision_values = _read_vision_config(folder)
    model_class, config_class = _vision_classes(is_clip)
    try:
        vision_config = config_class.from_dict(vision_values)
        with torch.device("meta"):
            weights = sum(parameter.numel() for parameter in model_class(vision_config).parameters())
    except Exception as error:  # transformers has no common class for configs that do not fit
        raise ModelError(
            f"{folder / CONFIG_FILE} does not describe a vision tower ({_reason(error)}). Copy the model folder again, "
            "whole, from its source."
        ) from error
    return vision_config.projection_dim if is_clip else vision_config.hidden_size, weights


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _read_vision_config(folder: Path) -> tuple[bool, dict[str, Any]]:
    """Return whether it is a CLIP, and the values of the vision tower's config."""
    config = read_json_object(folder / CONFIG_FILE)
    model_type = config.get("model_type")
    if model_type not in _MODEL_TYPES:
        advice = f"Use the folder of {CLIP_ENCODER_ID} or {SIGLIP_ENCODER_ID}, the one the basis was trained with."
        if model_type == "siglip2":
            advice = f"NaFlex checkpoints are not supported; use the fixed-size {SIGLIP_ENCODER_ID}."
        raise ModelError(
            f"model_type is {model_type!r} in {folder / CONFIG_FILE}, not one of {', '.join(_MODEL_TYPES)}. {advice}"
        )
    is_clip = config["model_type"].startswith("clip")
    values = dict(config.get("vision_config") or config)
    if is_clip and "projection_dim" in config:
        values["projection_dim"] = config["projection_dim"]  # of the whole CLIP; the nested value is a default
    return is_clip, values


def _read_vision_weights(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return all tensors but the text tower's, which would be two thirds of a whole CLIP's memory.

    Copied out of the file's mapping, so that the file may be replaced or cut while the encoder is in use.
    """
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in path.parent.iterdir())[:8])
        raise ModelError(
            f"The image encoder's weights, model.safetensors, are missing in {path.parent}, which has only {found}. "
            "Download the model's safetensors file; .bin and .pt files are never read."
        )
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.startswith(_TEXT_PREFIXES)]  # noqa: SIM118
            names = [name for name in names if not name.endswith("position_ids")]
            return {name: file.get_tensor(name).to(dtype, copy=True) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} is not a whole safetensors file ({error}). Download it again; the copy is truncated or another "
            "kind of file."
        ) from error


def _vision_classes(is_clip: bool) -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, SiglipVisionConfig, SiglipVisionModel

    if is_clip:
        return CLIPVisionModelWithProjection, CLIPVisionConfig
    return SiglipVisionModel, SiglipVisionConfig
