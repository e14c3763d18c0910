"""What a training step costs: the trained Linear against a plain LoRA, the router against a step, activations.

    .venv/bin/python benchmarks/training_step.py             ratios on this machine (a CPU will do), a few minutes
    .venv/bin/python benchmarks/training_step.py --full-size whole random Kontext on a GPU: s/step, MFU, memory

Ratios are medians of rounds in which the variants take turns. On a CPU seconds are those of the processor, not of the
clock, so other programs do not count (run it with OMP_NUM_THREADS=1). Random weights time the same as trained ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import save_result
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
#: Of a step and sample at full size, 512 px grid, gradient checkpointing; counted.
FULL_SIZE_TFLOPS = 125
_PEAK_TFLOPS = {"H100 80GB HBM3": 989, "H200": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}


class PlainLoRA(nn.Module):
    """An ordinary LoRA in the code style of `LoRWeBLinear`: the same products without coefficients."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features, device=base.weight.device) * 0.01)
        self.up = nn.Parameter(torch.randn(rank, base.out_features, device=base.weight.device) * 0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Return base(x) + (x @ downᵀ) @ up."""
        output = self.base(x)
        hidden = nn.functional.linear(x, self.down.to(output.dtype))
        flat = torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), self.up.to(output.dtype))
        return flat.view(output.shape)


def time_in_turns(variants: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each variant; one round runs all of them in turn."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            synchronize(device)
            start = clock()
            run()
            synchronize(device)
            if number:  # the first round warms up
                seconds[name].append(clock() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(variants))
    paired = {
        f"{name} / {first}": statistics.median(a / b for a, b in zip(seconds[name], seconds[first], strict=True))
        for name in variants
        if name != first
    }
    return medians | paired


def synchronize(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def saved_bytes(run: Callable[[], Tensor], known: set[int]) -> int:
    """Return the bytes that autograd keeps for the backward pass, each storage once, without those in `known`."""
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
    """Return forward + backward of one real-size Linear: base, plain LoRA of rank N·r, the basis."""
    torch.manual_seed(0)
    base = nn.Linear(in_features, out_features, device=device, dtype=torch.bfloat16).requires_grad_(False)
    plain = PlainLoRA(base, BASIS_SIZE * RANK)
    basis = LoRWeBLinear(base, in_features, out_features, basis_size=BASIS_SIZE, rank=RANK, device=device)
    basis.initialize(torch.Generator().manual_seed(0))
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

    times = time_in_turns({"plain": step(plain), "basis": step(basis), "base": step(base)}, rounds, device)
    known = {p.untyped_storage().data_ptr() for p in [*plain.parameters(), *basis.parameters()]}
    basis.scale = coefficients.detach().requires_grad_()
    kept = {name: saved_bytes(lambda module=module: module(x), known) for name, module in
            (("plain", plain), ("basis", basis))}  # fmt: skip
    return {
        "seconds": times,
        "ratio_to_plain": times["basis / plain"],
        "saved_bytes": kept,
        "saved_ratio": kept["basis"] / kept["plain"],
    }


def bench_router(device: torch.device, rounds: int, block_seconds: float) -> dict[str, float]:
    """Return forward + backward of the router of all layers, and its share of a step."""
    router = StackedRouter(LAYERS, BASIS_SIZE, KEY_DIM, query_dim=QUERY_DIM, settings=RouterSettings(), device=device)
    router.initialize(torch.Generator().manual_seed(0))
    query = torch.randn(1, QUERY_DIM, device=device)

    def run() -> None:
        router(query).square().sum().backward()
        router.zero_grad(set_to_none=True)

    seconds = time_in_turns({"router": run}, rounds, device)["router"]
    return {"seconds": seconds, "step_seconds": block_seconds, "share_of_step": seconds / block_seconds}


def bench_blocks(device: torch.device, rounds: int) -> dict[str, float]:
    """Return forward + backward of one double and one single block with basis, and 19 × double + 38 × single."""
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

    seconds = {}
    for name, block_class in (("double", FluxTransformerBlock), ("single", FluxSingleTransformerBlock)):
        block = block_class(dim=3072, num_attention_heads=24, attention_head_dim=128).to(device, torch.bfloat16)
        block.requires_grad_(False)
        linears = _attach_basis(block, device)
        run = _block_step(block, linears, device)
        seconds[name] = time_in_turns({name: run}, rounds, device)[name]
        del block, linears, run
    return seconds | {"step": 19 * seconds["double"] + 38 * seconds["single"]}


def _attach_basis(block: nn.Module, device: torch.device) -> dict[str, LoRWeBLinear]:
    linears = {}
    for name, module in [item for item in block.named_modules() if isinstance(item[1], nn.Linear)]:
        linears[name] = LoRWeBLinear(
            module, module.in_features, module.out_features, basis_size=BASIS_SIZE, rank=RANK, device=device
        )
        linears[name].initialize(torch.Generator().manual_seed(0))
        block.set_submodule(name, linears[name])
    return linears


def _block_step(block: nn.Module, linears: dict[str, LoRWeBLinear], device: torch.device) -> Callable[[], None]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    image, text, time_embedding = normal(1, IMAGE_TOKENS, 3072), normal(1, TEXT_TOKENS, 3072), normal(1, 3072)
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

    return run


def random_kontext(config: dict[str, Any], quantize: str, device: torch.device) -> TrainableKontext:
    """Return a random Kontext with a basis, made in ordinary memory (24 GB) and moved as the trainer moves it."""
    from diffusers import FluxTransformer2DModel

    from training.base.quantize import quantize_blocks

    torch.set_default_dtype(torch.bfloat16)
    try:
        transformer = FluxTransformer2DModel(**config).train().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    transformer.enable_gradient_checkpointing()
    quantize_blocks(transformer, quantize, device)
    transformer.to(device)
    shape = BasisShape(BASIS_SIZE, RANK, KEY_DIM, QUERY_DIM)
    return TrainableKontext(transformer, shape, RouterSettings(), device=device)


def bench_full_size(
    quantize: str,
    batch_size: int,
    rounds: int,
    device: torch.device,
    *,
    config: dict[str, Any] = FULL_SIZE_CONFIG,
) -> dict[str, Any]:
    """Return s/step, tokens/s, MFU and peak memory of a whole random Kontext at a 512 px grid.

    MFU counts the multiplications and additions of the products of a step with gradient checkpointing, as in the
    README's table (125 TFLOP a sample), over the device's dense bfloat16 peak; null where that is not known here.
    """
    model = random_kontext(config, quantize, device)
    optimizer = build_optimizer(OptimizerConfig(name="adamw8bit"), model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # what the making took is not what a step takes
    run = _whole_step(model, optimizer, batch_size, device, config)
    seconds = time_in_turns({"step": run}, rounds, device)["step"]
    flops = FULL_SIZE_TFLOPS * batch_size / seconds if config is FULL_SIZE_CONFIG else None
    peak = peak_tflops(device)
    return {
        "quantize": quantize,
        "batch_size": batch_size,
        "seconds_per_step": seconds,
        "tokens_per_second": batch_size * (IMAGE_TOKENS + TEXT_TOKENS) / seconds,
        "tflops_per_second": flops,
        "mfu": flops / peak if flops and peak else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }


def peak_tflops(device: torch.device) -> float | None:
    """Return the dense bfloat16 peak of a known GPU in TFLOP/s, by its makers' data sheets; None for others."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in _PEAK_TFLOPS.items() if part in name), None)


def _whole_step(
    model: TrainableKontext,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    device: torch.device,
    config: dict[str, Any],
) -> Callable[[], None]:
    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    latents, noise, context = (normal(batch_size, 16, 64, 64) for _ in range(3))
    conditioning = Conditioning(
        context, normal(batch_size, TEXT_TOKENS, config["joint_attention_dim"], dtype=torch.bfloat16),
        normal(batch_size, config["pooled_projection_dim"], dtype=torch.bfloat16), normal(batch_size, QUERY_DIM), 1.0,
    )  # fmt: skip
    sigmas, weights = torch.rand(batch_size, device=device), torch.ones(batch_size, device=device)

    def run() -> None:
        model(latents, noise, sigmas, weights, conditioning).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="of the layers; a quarter of them for whole blocks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--full-size", action="store_true", help="whole model on a GPU")
    parser.add_argument("--quantize", default="none", choices=("none", "int8", "nf4"))
    parser.add_argument("--batch-size", type=int, default=1)
    options = parser.parse_args()
    device = open_device(options.device)
    result: dict[str, Any] = {"rounds": options.rounds}
    if options.full_size:
        result["full_size"] = bench_full_size(options.quantize, options.batch_size, options.rounds, device)
    else:
        result["3072 -> 3072"] = bench_layer(3072, 3072, device, options.rounds)
        result["3072 -> 12288"] = bench_layer(3072, 12288, device, options.rounds)
        result["blocks"] = bench_blocks(device, max(2, options.rounds // 4))
        result["router"] = bench_router(device, options.rounds, result["blocks"]["step"])
    kind = f"-full-{options.quantize}-b{options.batch_size}" if options.full_size else ""
    save_result(f"training_step{kind}", result)


if __name__ == "__main__":
    main()
