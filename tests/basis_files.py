"""Basis and LoRA files for tests: whole ones through the safetensors library, broken ones byte by byte."""

import json
import struct

import torch
from safetensors.torch import load_file, save_file

from tests.synthetic import make_basis


def reference_tensors(**options):
    """Return the tensors of a seeded basis under the reference format's names and orientation."""
    tensors = {}
    for name, layer in make_basis(**options).layers.items():
        parts = {
            "lora_A": layer.lora_down.transpose(1, 2),
            "lora_B": layer.lora_up.transpose(1, 2),
            "lora_keys": layer.keys,
            "att_lora_to_q.weight": layer.query_projection,
            "lora_B_bias": layer.lora_bias,
        }
        tensors |= {
            f"transformer.{name}.{part}": value.contiguous() for part, value in parts.items() if value is not None
        }
    return tensors


def write_reference(path, tensors=None, *, metadata=None, dtype=torch.float32, **options):
    """Write a basis as the reference does and return the path; options as in `make_basis`."""
    tensors = reference_tensors(**options) if tensors is None else tensors
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path, metadata or {"format": "pt"})
    return path


def write_raw(path, header, data):
    """Write any header (text, bytes or something JSON can hold) before any data, and return the path."""
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def split_raw(path):
    """Return a file's header as JSON values, and its data."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def read_deltas(path):
    """Return layer name → up @ down of an ordinary LoRA file, as any loader computes it at scale 1."""
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    prefixes = {name.rsplit(".lora_", 1)[0] for name in tensors}
    return {
        prefix.removeprefix("transformer."): tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
        for prefix in prefixes
    }


def header_settings(**changes):
    """Return metadata whose header key states all settings."""
    encoder = {"id": changes.pop("encoder", "x")}
    stated = {"activation": "softmax", "heads": 1, "reduction": "mean", "query_mode": "cat-aa'b", "encoder": encoder}
    return {"lorweb": json.dumps({"format_version": 1} | stated | changes)}
