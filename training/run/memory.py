"""How much memory and disk a run takes, computed from shapes; nothing is loaded.

Activations are the measured 0.84 GB + 0.37 GB per sample of the full model at 2560 tokens with gradient checkpointing,
scaled. CUDA's own memory, its workspace and fragmentation are not included.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from ..adapter.linear import target_layers
from ..config.schema import TrainConfig

OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.05}
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Embedding width and number of weights of CLIP ViT-L/14's vision tower with projection.
CLIP_SIZE = 768, 303_966_208
_VAE_WEIGHTS = 83_819_683
_PACKED_BYTES = {"int8": 1.02, "nf4": 0.55}
#: Measured on whole blocks at full size in bfloat16, checkpointed: what is kept per sample, and what is recomputed.
_FULL_SIZE = {"tokens": 2560, "width": 3072, "blocks": 57, "kept_bytes": 0.84e9, "recomputed_bytes": 0.37e9}
#: Messages of cuBLAS, the CUDA driver (bitsandbytes) and the CPU allocator.
_OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "DefaultCPUAllocator: can't allocate")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, by part; `encoders` are VAE and image encoder (text encoders are freed by then)."""

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
    """Return the memory of one process.

    Args:
        config: of the run.
        transformer_config: of the base, as diffusers has it.
        query_dim: Q.
        encoder_weights: number of weights of the image encoder.
    """
    basis, item = config.basis, ITEM_BYTES[config.base.dtype]
    model = meta_transformer(transformer_config)
    in_blocks = sum(
        p.numel() for name, p in model.named_parameters() if "transformer_blocks" in name and name.endswith("weight")
    )
    outside = sum(parameter.numel() for parameter in model.parameters()) - in_blocks
    base = in_blocks * _PACKED_BYTES.get(config.base.quantize, item) + outside * item
    if config.run.strategy == "fsdp":
        base /= max(1, int(os.environ.get("WORLD_SIZE", 0)) or torch.cuda.device_count())

    sizes = list(target_layers(model, include=basis.include).values())
    adapters = basis.basis_size * basis.rank * sum(in_features + out_features for in_features, out_features in sizes)
    router = len(sizes) * basis.key_dim * (basis.basis_size + query_dim)
    trained = adapters + router

    side = config.data.resolution_px // 8  # of a grid's latents in tokens
    tokens = 2 * side * side + config.text.max_tokens
    width = transformer_config["attention_head_dim"] * transformer_config["num_attention_heads"]
    blocks = transformer_config["num_layers"] + transformer_config["num_single_layers"]
    scale = tokens * width / (_FULL_SIZE["tokens"] * _FULL_SIZE["width"]) * item / 2
    per_sample = scale * (_FULL_SIZE["kept_bytes"] * blocks / _FULL_SIZE["blocks"] + _FULL_SIZE["recomputed_bytes"])
    # torchao unpacks one block's weights at a time.
    unpacked = in_blocks * item // blocks if config.base.quantize == "int8" else 0
    image_encoder = 0 if config.caches_embeddings else encoder_weights * ITEM_BYTES["float32"]
    return MemoryEstimate(
        base=int(base),
        trained=4 * trained * (1 if config.optimizer.ema_decay is None else 2),
        gradients=4 * trained,
        optimizer=int(trained * OPTIMIZER_BYTES[config.optimizer.name]),
        activations=int(min(config.run.micro_batch_size, config.run.batch_size) * per_sample) + unpacked,
        encoders=image_encoder + _VAE_WEIGHTS * item,
    )


def checkpoint_bytes(config: TrainConfig, memory: MemoryEstimate) -> int:
    """Return the size of one checkpoint: weights and their EMA, moments, and the float16 basis file."""
    trained = memory.optimizer / OPTIMIZER_BYTES[config.optimizer.name]
    return int(memory.trained + memory.optimizer + trained * ITEM_BYTES["float16"])


def meta_transformer(transformer_config: dict[str, Any]) -> Any:  # noqa: ANN401 (diffusers model)
    """Return a transformer without memory, for counting."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(**transformer_config)


def size_text(count: float) -> str:
    """Return a number of bytes in GB, below 0.1 GB in MB, below 0.1 MB in kB."""
    unit, factor = next(((u, f) for u, f in (("GB", 1e9), ("MB", 1e6)) if count >= f / 10), ("kB", 1e3))
    return f"{count / factor:.{2 if unit == 'GB' else 1}f} {unit}"


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, in torch's own allocators or in a library that has its own."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
