"""What a training step costs: the trained Linear against a plain LoRA, the router against a step, activations.

    python benchmarks/training_step.py             ratios on this machine (a CPU will do), a few minutes
    python benchmarks/training_step.py --full-size whole random Kontext on a GPU: s/step, MFU, memory

Ratios are medians of rounds in which the variants take turns; run it with OMP_NUM_THREADS=1 on a CPU. Random weights
take as long as trained ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import median_ratios, save_result, time_interleaved
from torch import Tensor, nn

from lorweb_core.settings import RouterSettings
from training.adapter.linear import LoRWeBLinear, StackedRouter, hand_out_coefficients
from training.adapter.trainable import BasisShape, TrainableKontext
from training.base.source import FULL_SIZE_CONFIG
from training.base.transformer import Conditioning
from training.config.schema import OptimizerConfig
from training.console import open_device
from training.run.optimizers import build_optimizer

BASIS_SIZE, RANK, KEY_DIM, QUERY_DIM, LAYERS = 32, 4, 128, 2304, 494
TEXT_TOKENS, IMAGE_TOKENS = 512, 2048
#: Of a step and example at full size, 512 px grid, gradient checkpointing; counted.
FULL_SIZE_TFLOPS = 125
#: Dense bfloat16 peak in TFLOP/s, by the makers' data sheets.
PEAK_TFLOPS = {"H100 80GB HBM3": 989, "H200": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}


class PlainLoRA(nn.Module):
    """An ordinary LoRA in the code style of `LoRWeBLinear`: the same products without coefficients."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features, device=base.weight.device) * 0.01)
        self.up = nn.Parameter(torch.randn(rank, base.out_features, device=base.weight.device) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        output = self.base(x)
        hidden = nn.functional.linear(x, self.down.to(output.dtype))
        flat = torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), self.up.to(output.dtype))
        return flat.view(output.shape)


def basis_linear(base: nn.Linear, device: torch.device) -> LoRWeBLinear:
    linear = LoRWeBLinear(
        base, base.in_features, base.out_features, basis_size=BASIS_SIZE, rank=RANK, device=device
    )  # fmt: skip
    linear.initialize(torch.Generator().manual_seed(0))
    return linear


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    return statistics.median(time_interleaved({"run": run}, rounds=rounds)["run"])


def saved_bytes(run: Callable[[], Tensor], known: set[int]) -> int:
    """The bytes that autograd keeps for the backward pass, each storage once, without those in `known`."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(storages.values())


def bench_layer(in_features: int, out_features: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """Forward + backward of one real-size Linear: base, plain LoRA of rank N·r, the basis."""
    torch.manual_seed(0)
    base = nn.Linear(in_features, out_features, device=device, dtype=torch.bfloat16).requires_grad_(False)
    plain, basis = PlainLoRA(base, BASIS_SIZE * RANK), basis_linear(base, device)
    x = torch.randn(2, 1024, in_features, device=device, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(2, 1024, out_features, device=device, dtype=torch.bfloat16)
    coefficients = torch.softmax(torch.randn(2, BASIS_SIZE, device=device), -1).repeat_interleave(RANK, -1)

    def step(module: nn.Module) -> Callable[[], None]:
        def run() -> None:
            if isinstance(module, LoRWeBLinear):
                module.scale = coefficients.detach().requires_grad_()
            module(x).backward(gradient)
            module.zero_grad(set_to_none=True)
            x.grad = None

        return run

    seconds = time_interleaved({"plain": step(plain), "basis": step(basis), "base": step(base)}, rounds=rounds)
    known = {p.untyped_storage().data_ptr() for p in [*plain.parameters(), *basis.parameters()]}
    basis.scale = coefficients.detach().requires_grad_()
    kept = {"plain": saved_bytes(lambda: plain(x), known), "basis": saved_bytes(lambda: basis(x), known)}
    return {
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio_to_plain": median_ratios(seconds, "plain")["basis"],
        "saved_bytes": kept,
        "saved_ratio": kept["basis"] / kept["plain"],
    }


def bench_router(device: torch.device, rounds: int, step_seconds: float) -> dict[str, float]:
    """Forward + backward of the router of all layers, and its share of a step."""
    router = StackedRouter(LAYERS, BASIS_SIZE, KEY_DIM, query_dim=QUERY_DIM, settings=RouterSettings(), device=device)
    router.initialize(torch.Generator().manual_seed(0))
    query = torch.randn(1, QUERY_DIM, device=device)

    def run() -> None:
        router(query).square().sum().backward()
        router.zero_grad(set_to_none=True)

    seconds = median_seconds(run, rounds)
    return {"seconds": seconds, "step_seconds": step_seconds, "share_of_step": seconds / step_seconds}


def bench_block(block: nn.Module, device: torch.device, rounds: int) -> float:
    """Seconds of forward + backward of one FLUX block whose Linears get a basis."""
    block.to(device, torch.bfloat16).requires_grad_(False)
    linears = {
        name: basis_linear(module, device) for name, module in block.named_modules() if isinstance(module, nn.Linear)
    }
    for name, linear in linears.items():
        block.set_submodule(name, linear)
    image, text, time_embedding = (
        torch.randn(*shape, device=device, dtype=torch.bfloat16)
        for shape in ((1, IMAGE_TOKENS, 3072), (1, TEXT_TOKENS, 3072), (1, 3072))
    )
    angles = torch.rand(IMAGE_TOKENS + TEXT_TOKENS, 128, device=device)
    coefficients = torch.softmax(torch.randn(len(linears), 1, BASIS_SIZE, device=device), -1)

    def run() -> None:
        hand_out_coefficients(linears, coefficients)
        outputs = block(
            hidden_states=image.requires_grad_(), encoder_hidden_states=text.requires_grad_(),
            temb=time_embedding, image_rotary_emb=(angles.cos(), angles.sin()),
        )  # fmt: skip
        sum(output.float().mean() for output in outputs).backward()
        block.zero_grad(set_to_none=True)
        image.grad = text.grad = None

    return median_seconds(run, rounds)


def bench_full_size(quantize: str, batch_size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """s/step, tokens/s, MFU and peak memory of a whole random Kontext at a 512 px grid, with adamw8bit.

    MFU counts the multiplications and additions of the products of a step with gradient checkpointing over the
    device's peak; null where that is not known here. The model is made in ordinary memory (24 GB).
    """
    from diffusers import FluxTransformer2DModel

    from training.base.quantize import quantize_blocks

    torch.set_default_dtype(torch.bfloat16)
    transformer = FluxTransformer2DModel(**FULL_SIZE_CONFIG).train().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    transformer.enable_gradient_checkpointing()
    quantize_blocks(transformer, quantize, device)
    transformer.to(device)
    shape = BasisShape(BASIS_SIZE, RANK, KEY_DIM, QUERY_DIM)
    model = TrainableKontext(transformer, shape, RouterSettings(), device=device)
    optimizer = build_optimizer(OptimizerConfig(name="adamw8bit"), model)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(batch_size, *shape, device=device, dtype=dtype)

    latents, noise, context = (normal(16, 64, 64) for _ in range(3))
    prompt = normal(TEXT_TOKENS, FULL_SIZE_CONFIG["joint_attention_dim"], dtype=torch.bfloat16)
    pooled = normal(FULL_SIZE_CONFIG["pooled_projection_dim"], dtype=torch.bfloat16)
    conditioning = Conditioning(context, prompt, pooled, normal(QUERY_DIM), 1.0)
    sigmas, weights = torch.rand(batch_size, device=device), torch.ones(batch_size, device=device)

    def run() -> None:
        model(latents, noise, sigmas, weights, conditioning).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    torch.cuda.reset_peak_memory_stats()  # building the model takes more than a step
    seconds = median_seconds(run, rounds)
    flops = FULL_SIZE_TFLOPS * batch_size / seconds
    peak = next((peak for name, peak in PEAK_TFLOPS.items() if name in torch.cuda.get_device_name(device)), None)
    return {
        "quantize": quantize,
        "batch_size": batch_size,
        "seconds_per_step": seconds,
        "tokens_per_second": batch_size * (IMAGE_TOKENS + TEXT_TOKENS) / seconds,
        "tflops_per_second": flops,
        "mfu": flops / peak if peak else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of the layers; a quarter of them for whole blocks")
    parser.add_argument("--full-size", action="store_true", help="whole model on a GPU")
    parser.add_argument("--quantize", default="none", choices=("none", "int8", "nf4"))
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    device = open_device("cuda" if options.full_size else "auto")
    if options.full_size:
        full_size = bench_full_size(options.quantize, options.batch_size, options.rounds, device)
        save_result(f"training_step-full-{options.quantize}-b{options.batch_size}", {"full_size": full_size})
        return
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

    blocks = {}
    for name, block_class in (("double", FluxTransformerBlock), ("single", FluxSingleTransformerBlock)):
        block = block_class(dim=3072, num_attention_heads=24, attention_head_dim=128)
        blocks[name] = bench_block(block, device, max(2, options.rounds // 4))
    blocks["step"] = 19 * blocks["double"] + 38 * blocks["single"]
    result = {
        "rounds": options.rounds,
        "3072 -> 3072": bench_layer(3072, 3072, device, options.rounds),
        "3072 -> 12288": bench_layer(3072, 12288, device, options.rounds),
        "blocks": blocks,
        "router": bench_router(device, options.rounds, blocks["step"]),
    }
    save_result("training_step", result)


if __name__ == "__main__":
    main()
