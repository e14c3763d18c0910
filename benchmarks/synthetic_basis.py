"""Write a synthetic basis of the published one's size and layout, for measurements.

    python benchmarks/synthetic_basis.py /tmp/basis.safetensors
    python benchmarks/synthetic_basis.py /tmp/small.safetensors --double-blocks 1 --single-blocks 1

494 layers, N 32, r 4, K 128, Q 2304 in fp16 give 835,051,520 numbers and 1.67 GB. The weights are random but of a
trained basis' order of magnitude; keep the file outside of the repository. It carries no settings, as a
reference file does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lorweb_core.files import write_safetensors_atomically

WIDTH = 3072
MLP_WIDTH = 4 * WIDTH
#: in, out of each adapted Linear of FLUX.1; order as in a diffusers block.
DOUBLE_BLOCK = {
    "norm1.linear": (WIDTH, 6 * WIDTH),
    "norm1_context.linear": (WIDTH, 6 * WIDTH),
    "attn.to_q": (WIDTH, WIDTH),
    "attn.to_k": (WIDTH, WIDTH),
    "attn.to_v": (WIDTH, WIDTH),
    "attn.add_q_proj": (WIDTH, WIDTH),
    "attn.add_k_proj": (WIDTH, WIDTH),
    "attn.add_v_proj": (WIDTH, WIDTH),
    "attn.to_out.0": (WIDTH, WIDTH),
    "attn.to_add_out": (WIDTH, WIDTH),
    "ff.net.0.proj": (WIDTH, MLP_WIDTH),
    "ff.net.2": (MLP_WIDTH, WIDTH),
    "ff_context.net.0.proj": (WIDTH, MLP_WIDTH),
    "ff_context.net.2": (MLP_WIDTH, WIDTH),
}
SINGLE_BLOCK = {
    "norm.linear": (WIDTH, 3 * WIDTH),
    "proj_mlp": (WIDTH, MLP_WIDTH),
    "proj_out": (WIDTH + MLP_WIDTH, WIDTH),
    "attn.to_q": (WIDTH, WIDTH),
    "attn.to_k": (WIDTH, WIDTH),
    "attn.to_v": (WIDTH, WIDTH),
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def layer_sizes(*, double_blocks: int = 19, single_blocks: int = 38) -> Iterator[tuple[str, int, int]]:
    """Yield (layer name, in, out) of every adapted Linear of FLUX.1."""
    for index in range(double_blocks):
        for part, (wide_in, wide_out) in DOUBLE_BLOCK.items():
            yield f"transformer_blocks.{index}.{part}", wide_in, wide_out
    for index in range(single_blocks):
        for part, (wide_in, wide_out) in SINGLE_BLOCK.items():
            yield f"single_transformer_blocks.{index}.{part}", wide_in, wide_out


def synthetic_tensors(arguments: argparse.Namespace) -> dict[str, Tensor]:
    """Return the tensors of all layers under the reference format's names."""
    generator = torch.Generator().manual_seed(arguments.seed)
    size, rank = arguments.basis_size, arguments.rank
    tensors = {}
    sizes = layer_sizes(double_blocks=arguments.double_blocks, single_blocks=arguments.single_blocks)
    for name, in_features, out_features in sizes:
        shapes = {
            "lora_A": ((size, in_features, rank), in_features**-0.5),
            "lora_B": ((size, rank, out_features), 0.01),
            "lora_keys": ((size, arguments.key_dim), 1.0),
            "att_lora_to_q.weight": ((arguments.key_dim, arguments.query_dim), arguments.query_dim**-0.5),
        }
        for part, (shape, deviation) in shapes.items():
            numbers = torch.empty(shape).uniform_(-1.7, 1.7, generator=generator) * deviation
            tensors[f"transformer.{name}.{part}"] = numbers.to(DTYPES[arguments.dtype])
    return tensors


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the .safetensors file to write, outside of the repository")
    for option, default in (
        ("--basis-size", 32),
        ("--rank", 4),
        ("--key-dim", 128),
        ("--query-dim", 2304),
        ("--double-blocks", 19),
        ("--single-blocks", 38),
        ("--seed", 0),
    ):
        parser.add_argument(option, type=int, default=default, help=f"default {default}")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16", help="default fp16")
    arguments = parser.parse_args()
    tensors = synthetic_tensors(arguments)
    write_safetensors_atomically(arguments.output, tensors, {"format": "pt"})
    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"{arguments.output}: {len(tensors)} tensors, {count:,} numbers, {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
