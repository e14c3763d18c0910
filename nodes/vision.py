"""CLIP_VISION, the host's or ours: images → image embeddings for the router.

Preprocessing is always ours (`lorweb_core.preprocessing`), because the host's resize is off by up to half a pixel on
images that are not square. The host's encoder receives images of its own size, so that it resizes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..lorweb_core.basis import Basis
from ..lorweb_core.encoder import SIGLIP_FAMILY, ImageEncoder, family_of, load_image_encoder
from ..lorweb_core.errors import ModelError
from ..lorweb_core.preprocessing import CLIP_PREPROCESSING, Preprocessing, preprocess_images
from . import host

ClipVision = Any  # the host's ClipVisionModel, or a TransformersClipVision


class _ManagedEncoder(torch.nn.Module):
    """The encoder for the host's patcher, which sets `device` on its module; a transformers model does not allow it."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder


class TransformersClipVision:
    """A transformers image encoder that behaves like the host's CLIP_VISION, memory management included.

    Attributes that other nodes use: `model`, `patcher`, `load_device`, `dtype`, `image_size`.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder = encoder
        self.model = encoder.model
        self.image_size = encoder.preprocessing.size_px
        self.load_device, offload_device = host.text_encoder_devices()
        self.dtype = next(encoder.model.parameters()).dtype
        self.patcher = host.make_model_patcher(
            _ManagedEncoder(encoder.model), load_device=self.load_device, offload_device=offload_device
        )

    def load(self) -> None:
        """Move the whole model to its load device."""
        host.load_patchers([self.patcher])
        # When memory is short, the host leaves some modules behind, but only its own classes can stream weights.
        self.model.to(self.load_device)

    def embed(self, images: Tensor) -> Tensor:
        """Return image embeddings [B, P] float32 on the CPU for images [B, H, W, C], float 0–1."""
        self.load()
        return self.encoder.embed(images, on_progress=lambda *_: host.raise_if_interrupted())

    def encode_image(self, image: Tensor, crop: bool | str = True) -> Any:  # noqa: ANN401 - the host's output class
        """Return the host's CLIP_VISION_OUTPUT for images [B, H, W, C]; crop False or "none" squeezes them."""
        self.load()
        preprocessing = self.encoder.preprocessing
        if crop in (False, "none"):
            preprocessing = replace(preprocessing, shortest_edge_px=None)
        pixel_values = preprocess_images(image, preprocessing).to(self.load_device, self.dtype)
        with torch.no_grad():
            output = self.model(pixel_values=pixel_values, output_hidden_states=True)
        return host.make_vision_output(
            last_hidden_state=output.last_hidden_state,
            penultimate_hidden_states=output.hidden_states[-2],
            image_embeds=getattr(output, self.encoder.output_name),
            image_sizes=[tuple(pixel_values.shape[1:])] * len(pixel_values),
        )


def load_clip_vision(folder: Path) -> TransformersClipVision:
    """Return the image encoder of a model folder as CLIP_VISION.

    Raises ModelError if it is not a CLIP or SigLIP vision tower with safetensors weights.
    """
    return TransformersClipVision(load_image_encoder(folder, dtype=torch.float32))


def preprocessing_of(clip_vision: ClipVision) -> Preprocessing:
    """Return how images are brought to the encoder's input size: ours knows it, the host's is CLIP's."""
    if isinstance(clip_vision, TransformersClipVision):
        return clip_vision.encoder.preprocessing
    return CLIP_PREPROCESSING


def embed_images(clip_vision: ClipVision, images: Tensor, basis: Basis) -> Tensor:
    """Return the image embeddings [B, P], float32 on the CPU, of images that already have the encoder's size.

    Args:
        clip_vision: the host's CLIP_VISION or a `TransformersClipVision`.
        images: [B, S, S, 3], float 0–1, preprocessed with `preprocessing_of(clip_vision)`; run as one batch.
        basis: determines the encoder and the width.

    Raises ModelError if the encoder is not the one that the basis was trained with.
    """
    family = family_of(basis.settings.encoder_id)
    if isinstance(clip_vision, TransformersClipVision):
        encoder = clip_vision.encoder
        if encoder.family != family:
            raise _wrong_encoder(basis, f"is the {encoder.family} model {encoder.encoder_id}")
        embeddings = clip_vision.embed(images)
    else:
        size_px = getattr(clip_vision, "image_size", CLIP_PREPROCESSING.size_px)
        if family == SIGLIP_FAMILY:
            raise _wrong_encoder(basis, "comes from Load CLIP Vision, which has no SigLIP2")
        if size_px != CLIP_PREPROCESSING.size_px:
            raise _wrong_encoder(basis, f"takes images of {size_px} px")
        embeddings = clip_vision.encode_image(images)["image_embeds"].float().cpu()
    if embeddings.shape[-1] != basis.embedding_dim:
        raise _wrong_encoder(basis, f"gives width {embeddings.shape[-1]}")
    if not bool(torch.isfinite(embeddings).all()) or not bool(embeddings.any(-1).all()):
        # Hosts before mid-2026 do not initialize a projection that is missing in the file: mostly zeros, or anything.
        raise _wrong_encoder(basis, "gives NaN, infinity or only zeros, as a file without its projection does")
    return embeddings


def _wrong_encoder(basis: Basis, problem: str) -> ModelError:
    loader, files = "Load CLIP Vision", "clip-vit-large-patch14.safetensors (CLIP ViT-L/14, 224 px)"
    if family_of(basis.settings.encoder_id) == SIGLIP_FAMILY:
        loader, files = "Load Image Encoder (transformers)", "its Hugging Face folder"
    if basis.embedding_dim != 768:
        loader, files = "Load Image Encoder (transformers)", "the encoder that came with the basis"
    return ModelError(
        f"This basis needs image embeddings of width {basis.embedding_dim} from {basis.settings.encoder_id}, but the "
        f"connected clip_vision {problem}. Load {files} with {loader}."
    )
