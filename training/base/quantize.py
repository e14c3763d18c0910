"""Smaller frozen bases: int8 by torchao, nf4 by bitsandbytes, for the Linears of the transformer blocks only.

Measured on 512→1024 (relative error of output and input gradient against bf16): int8 0.5 % / 0.4 %, nf4 9 % / 8 %.
Called before the basis is attached; the basis itself is never quantized. Each Linear is moved and packed by itself,
so the device never holds the bf16 base.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lorweb_core.errors import ModelError

PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
INSTALL = {"int8": "pip install --no-deps torchao==0.18.0", "nf4": "pip install --no-deps bitsandbytes==0.50.2"}


def quantize_blocks(transformer: Any, mode: str, device: torch.device) -> None:  # noqa: ANN401 (diffusers model)
    """Quantize in place, leaving embeddings, norms and the output layer as they are.

    Args:
        transformer: a FLUX transformer with `transformer_blocks` and `single_transformer_blocks`.
        mode: `none`, `int8` or `nf4`.
        device: of the packed weights.
    Raises ModelError when the quantizer is not installed.
    """
    if mode == "none":
        return
    block_lists = (transformer.transformer_blocks, transformer.single_transformer_blocks)
    try:
        if mode == "int8":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            for blocks in block_lists:
                quantize_(blocks, Int8WeightOnlyConfig(version=2), device=device)
            return
        from bitsandbytes.nn import Linear4bit, Params4bit  # type: ignore[attr-defined]
    except ImportError as error:
        raise ModelError(
            f"base.quantize: {mode} needs the package {PACKAGES[mode]}, which cannot be imported ({error}). Run "
            f"`{INSTALL[mode]}`, or set base.quantize: none."
        ) from error
    for blocks in block_lists:
        for name, linear in [item for item in blocks.named_modules() if isinstance(item[1], nn.Linear)]:
            packed = Linear4bit(
                linear.in_features, linear.out_features, bias=linear.bias is not None,
                compute_dtype=linear.weight.dtype, quant_type="nf4", device="meta",
            )  # fmt: skip
            packed.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=packed)
            packed.bias = linear.bias
            blocks.set_submodule(name, packed.to(device))
