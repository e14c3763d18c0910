"""Write a synthetic basis of the published one's size and layout, for measurements.

    python benchmarks/synthetic_basis.py /tmp/basis.safetensors
    python benchmarks/synthetic_basis.py /tmp/small.safetensors --double-blocks 1 --single-blocks 1

494 layers, N 32, r 4, K 128, Q 2304 in fp16 give 835,051,520 numbers and 1.67 GB. The weights are random but of a
trained basis' order of magnitude; keep the file outside of the repository. Like the published file it has no settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lorweb_core.safetensors_file import write_safetensors_atomically

W = 3072
#: (in, out) of each adapted Linear of FLUX.1; order as in a diffusers block.
DOUBLE_BLOCK = {
    **{f"{norm}.linear": (W, 6 * W) for norm in ("norm1", "norm1_context")},
    **{f"attn.{name}": (W, W) for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")},
    **{f"attn.{name}": (W, W) for name in ("to_out.0", "to_add_out")},
    "ff.net.0.proj": (W, 4 * W),
    "ff.net.2": (4 * W, W),
    "ff_context.net.0.proj": (W, 4 * W),
    "ff_context.net.2": (4 * W, W),
}
SINGLE_BLOCK = {
    "norm.linear": (W, 3 * W),
    "proj_mlp": (W, 4 * W),
    "proj_out": (5 * W, W),
    **{f"attn.{name}": (W, W) for name in ("to_q", "to_k", "to_v")},
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
    """The tensors of all layers under the published names."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the .safetensors file to write, outside of the repository")
    sizes = {"basis-size": 32, "rank": 4, "key-dim": 128, "query-dim": 2304, "double-blocks": 19, "single-blocks": 38}
    for option, default in {**sizes, "seed": 0}.items():
        parser.add_argument(f"--{option}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp16", help="default fp16")
    arguments = parser.parse_args()
    tensors = synthetic_tensors(arguments)
    write_safetensors_atomically(arguments.output, tensors, {"format": "pt"})
    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"{arguments.output}: {len(tensors)} tensors, {count:,} numbers, {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
