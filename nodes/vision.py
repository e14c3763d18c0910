"""CLIP_VISION, the host's or ours: pictures → image embeddings for the router.

Preprocessing is always ours (`lorweb_core.preprocessing`): the host's resize is off by up to half a pixel on pictures
that are not square. The host's encoder gets pictures that already have its size, so it resizes nothing.
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


class _ManagedEncoder(torch.nn.Module):
    """The encoder for the host's patcher, which sets `device` on its module; on a transformers model that raises."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder


class TransformersClipVision:
    """A transformers image encoder that behaves like the host's CLIP_VISION, memory management included.

    Attributes as other nodes expect them: `model`, `patcher`, `load_device`, `dtype`, `image_size`.
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
        """Bring the whole model to its load device."""
        host.load_patchers([self.patcher])
        # Short of memory, the host leaves modules behind that are not of its own classes: those cannot stream weights.
        self.model.to(self.load_device)

    def embed(self, images: Tensor) -> Tensor:
        """Return image embeddings [B, P] float32 on the CPU for pictures [B, H, W, C], float 0–1."""
        self.load()
        return self.encoder.embed(images, on_progress=lambda *_: host.raise_if_interrupted())

    def encode_image(self, image: Tensor, crop: bool | str = True) -> Any:  # noqa: ANN401 - the host's output class
        """Return the host's CLIP_VISION_OUTPUT for pictures [B, H, W, C]; crop False or "none" squeezes them."""
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

    Raises: ModelError: when it is no CLIP or SigLIP vision tower with safetensors weights.
    """
    return TransformersClipVision(load_image_encoder(folder, dtype=torch.float32))


def preprocessing_of(clip_vision: Any) -> Preprocessing:  # noqa: ANN401
    """Return how pictures are brought to the encoder's input size: ours says it itself, the host's is CLIP's."""
    if isinstance(clip_vision, TransformersClipVision):
        return clip_vision.encoder.preprocessing
    return CLIP_PREPROCESSING


def embed_images(clip_vision: Any, images: Tensor, basis: Basis) -> Tensor:  # noqa: ANN401
    """Return the image embeddings [B, P], float32 on the CPU, of fitted pictures, all run as one batch.

    Args:
        clip_vision: the host's CLIP_VISION or a `TransformersClipVision`.
        images: [B, S, S, 3], float 0–1, fitted with `preprocessing_of(clip_vision)`.
        basis: says which encoder and width are wanted.
    Raises: ModelError: when the encoder is not the one that the basis was trained with.
    """
    _require_kind(clip_vision, basis)
    if isinstance(clip_vision, TransformersClipVision):
        embeddings = clip_vision.embed(images)
    else:
        embeddings = clip_vision.encode_image(images)["image_embeds"].float().cpu()
    if embeddings.shape[-1] != basis.embedding_dim:
        raise _wrong_encoder(basis, f"width {embeddings.shape[-1]}")
    if not bool(torch.isfinite(embeddings).all()) or not bool(embeddings.any(-1).all()):
        # Hosts before mid-2026 give a projection that is not in the file whatever lies in memory, zeros as a rule.
        raise _wrong_encoder(basis, "NaN, infinity or only zeros (a file without its projection gives such)")
    return embeddings


def _require_kind(clip_vision: Any, basis: Basis) -> None:  # noqa: ANN401
    family = family_of(basis.settings.encoder_id)
    if isinstance(clip_vision, TransformersClipVision):
        encoder = clip_vision.encoder
        if encoder.family != family:
            raise _wrong_encoder(basis, f"the {encoder.family} model {encoder.encoder_id}")
        return
    if family == SIGLIP_FAMILY:
        raise _wrong_encoder(basis, "a model of the host's own CLIP Vision loader")
    size_px = getattr(clip_vision, "image_size", CLIP_PREPROCESSING.size_px)
    if size_px != CLIP_PREPROCESSING.size_px:
        raise _wrong_encoder(basis, f"one for pictures of {size_px} px")


def _wrong_encoder(basis: Basis, got: str) -> ModelError:
    wants_siglip = family_of(basis.settings.encoder_id) == SIGLIP_FAMILY
    loader = "Load Image Encoder (transformers)" if wants_siglip else "Load CLIP Vision"
    files = "its Hugging Face folder" if wants_siglip else "clip_vision_l.safetensors (CLIP ViT-L/14, 224 px)"
    if basis.embedding_dim != 768:
        loader, files = "Load Image Encoder (transformers)", "the encoder that came with the basis"
    return ModelError(
        expected=f"embeddings of width {basis.embedding_dim} from {basis.settings.encoder_id}, which the basis learned",
        got=got,
        remedy=f"Load {files} with {loader}.",
    )
