"""How much memory and disk a run takes, added up from what can be counted; nothing is loaded.

Activations follow the measured 0.9 GB + 0.4 GB per sample at 2560 tokens of the full model with gradient checkpointing,
scaled. CUDA's own memory, its workspace and fragmentation are not in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from ..adapter.linear import target_layers
from ..config.schema import TrainConfig

_BASE_BYTES = {"none": None, "int8": 1.02, "nf4": 0.55}
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.05}
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Measured on whole blocks at full size, bfloat16, checkpointed: bytes per token, width and block.
_FULL_SIZE = {"tokens": 2560, "width": 3072, "blocks": 57, "per_sample_bytes": 0.84e9, "recomputed_bytes": 0.37e9}
#: Embedding width and number of weights of CLIP ViT-L/14's vision tower with projection.
CLIP_SIZE = 768, 303_966_208
#: Weights of FLUX's VAE.
_VAE_NUMBERS = 83_819_683


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, by part; `encoders` are VAE and image encoder (text encoders are gone by then)."""

    base: int
    trained: int
    gradients: int
    optimizer: int
    activations: int
    encoders: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(vars(self).values())


def estimate_memory(
    config: TrainConfig, transformer_config: dict[str, Any], query_dim: int, encoder_weights: int = CLIP_SIZE[1]
) -> MemoryEstimate:
    """Return the memory of one process, counted on the meta device where it can be."""
    model = meta_transformer(transformer_config)
    layers = target_layers(model, include=config.basis.include)
    adapters, router = count_trained(config, list(layers.values()), query_dim)
    in_blocks = sum(
        p.numel() for name, p in model.named_parameters() if "transformer_blocks" in name and name.endswith("weight")
    )
    everything = sum(parameter.numel() for parameter in model.parameters())
    item = ITEM_BYTES[config.base.dtype]
    shares = sharing_processes() if config.run.strategy == "fsdp" else 1
    packed = _BASE_BYTES[config.base.quantize] or item
    weights = 4 * (adapters + router)
    average = 4 * (adapters + router) if config.optimizer.ema_decay is not None else 0
    unpacked = in_blocks * item if config.base.quantize == "int8" else 0
    return MemoryEstimate(
        base=int(in_blocks * packed + (everything - in_blocks) * item) // shares,
        trained=weights + average,
        gradients=weights,
        optimizer=int((adapters + router) * OPTIMIZER_BYTES[config.optimizer.name]),
        activations=_activation_bytes(config, transformer_config, unpacked_base=unpacked),
        encoders=_encoder_bytes(config, encoder_weights),
    )


def meta_transformer(transformer_config: dict[str, Any]) -> Any:  # noqa: ANN401 (diffusers model)
    """Return a transformer without memory, for counting."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(**transformer_config)


def checkpoint_bytes(config: TrainConfig, memory: MemoryEstimate) -> int:
    """Return the size of one checkpoint: weights and their average, moments, and the basis file."""
    numbers = memory.optimizer / OPTIMIZER_BYTES[config.optimizer.name]
    return int(memory.trained + memory.optimizer + numbers * ITEM_BYTES["float16"])


def count_trained(config: TrainConfig, sizes: list[tuple[int, int]], query_dim: int) -> tuple[int, int]:
    """Return how many numbers are trained: N·r·Σ(in + out) in adapters, M·(N·K + K·Q) in the router."""
    basis = config.basis
    adapters = basis.basis_size * basis.rank * sum(in_features + out_features for in_features, out_features in sizes)
    return adapters, len(sizes) * basis.key_dim * (basis.basis_size + query_dim)


def sharing_processes() -> int:
    """Return how many processes will share a sharded base: torchrun's number, else one for each GPU here."""
    return max(1, int(os.environ.get("WORLD_SIZE", 0)) or torch.cuda.device_count())


def _encoder_bytes(config: TrainConfig, encoder_weights: int) -> int:
    """VAE of the published size and image encoder; embeddings from a cache leave the image encoder out."""
    image_encoder = 0 if config.caches_embeddings else encoder_weights * ITEM_BYTES["float32"]
    return image_encoder + _VAE_NUMBERS * ITEM_BYTES[config.base.dtype]


def _activation_bytes(config: TrainConfig, transformer_config: dict[str, Any], *, unpacked_base: int) -> int:
    """What the backward pass keeps, with gradient checkpointing; torchao's int8 Linears unpack those of one block."""
    side = config.data.resolution_px // 8
    tokens = 2 * side * side + config.text.max_tokens
    width = transformer_config["attention_head_dim"] * transformer_config["num_attention_heads"]
    blocks = transformer_config["num_layers"] + transformer_config["num_single_layers"]
    scale = tokens * width / (_FULL_SIZE["tokens"] * _FULL_SIZE["width"])
    scale *= ITEM_BYTES[config.base.dtype] / 2
    per_sample = _FULL_SIZE["per_sample_bytes"] * scale * blocks / _FULL_SIZE["blocks"]
    samples = min(config.run.micro_batch_size, config.run.batch_size)
    return int(samples * (per_sample + _FULL_SIZE["recomputed_bytes"] * scale)) + unpacked_base // blocks


def size_text(count: float) -> str:
    """Return a number of bytes for a person: GB, below 0.1 GB in MB, below 0.1 MB in kB."""
    unit, factor = next(((u, f) for u, f in (("GB", 1e9), ("MB", 1e6)) if count >= f / 10), ("kB", 1e3))
    return f"{count / factor:.{2 if unit == 'GB' else 1}f} {unit}"


#: How cuBLAS, the CUDA driver (bitsandbytes) and the CPU say it.
_OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "DefaultCPUAllocator: can't allocate")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, in torch's own allocators or in a library that has its own."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
