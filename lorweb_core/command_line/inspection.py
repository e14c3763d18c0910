"""`inspect BASIS [--json]`: what a basis file holds. Reads every tensor, so a file that passes is usable."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..basis import Basis, LayerBasis
from ..layer_names import parse_layer_name
from ..settings_sources import read_training_facts
from .arguments import load_with_progress, show

EXAMPLES = """\
  python -m lorweb_core inspect basis.safetensors
  python -m lorweb_core inspect basis.safetensors --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("basis", type=Path, metavar="BASIS", help="basis file (.safetensors)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> None:
    """Print what the basis holds."""
    facts = describe_basis(load_with_progress(arguments.basis, None), arguments.basis)
    show(json.dumps(facts, indent=2) if arguments.json else format_facts(facts))


def describe_basis(basis: Basis, path: Path) -> dict[str, Any]:
    """Return all facts about a basis as JSON-ready values; sizes are lists, with one entry when layers agree."""
    layers = basis.layers.values()
    parts = Counter(_part_label(name) for name in basis.layers)
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "basis_id": basis.basis_id,
        "layer_count": len(basis.layers),
        "layers_per_part": dict(parts),
        "parameters": sum(tensor.numel() for layer in layers for tensor in _tensors(layer)),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for layer in layers for tensor in _tensors(layer)}),
        "basis_size": _distinct(layer.basis_size for layer in layers),
        "rank": _distinct(layer.rank for layer in layers),
        "key_dim": _distinct(layer.key_dim for layer in layers),
        "query_dim": basis.query_dim,
        "embedding_dim": basis.embedding_dim,
        "layers_with_query_projection": sum(layer.query_projection is not None for layer in layers),
        "layers_with_bias": sum(layer.lora_bias is not None for layer in layers),
        "settings": asdict(basis.settings),
        "settings_source": basis.settings_source,
        "assumptions": list(basis.report),
        "training": read_training_facts(basis.metadata),
        "metadata": dict(basis.metadata),
        "layers": {name: _describe_layer(layer) for name, layer in basis.layers.items()},
    }


def format_facts(facts: dict[str, Any]) -> str:
    """Return the facts as lines for people."""
    settings = facts["settings"]
    count, biased = facts["layer_count"], facts["layers_with_bias"]
    parts = ", ".join(f"{part} {number}" for part, number in facts["layers_per_part"].items())
    lines = {
        "File": f"{facts['file']} ({facts['bytes'] / 1e6:,.1f} MB, {', '.join(facts['dtypes'])})",
        "Basis id": facts["basis_id"],
        "Layers": f"{count} ({parts})",
        "Parameters": f"{facts['parameters']:,}",
        "Basis size N": _join(facts["basis_size"]),
        "Rank r": _join(facts["rank"]),
        "Key width": _join(facts["key_dim"]),
        "Query width": f"{facts['query_dim']} ({settings['query_mode']}, image embeddings of {facts['embedding_dim']})",
        "Projections": f"{facts['layers_with_query_projection']} of {count} layers",
        "Biases": f"{biased} of {count} layers" if biased else "none",
        "Coefficients": f"{settings['activation']}, heads {settings['heads']}, {settings['reduction']} over heads",
        "Encoder": " ".join(filter(None, (settings["encoder_id"], settings["encoder_revision"]))),
        "Base model": settings["base_model"],
        "Settings from": facts["settings_source"],
    }
    if facts["training"]:
        lines["Training"] = ", ".join(f"{key} {value}" for key, value in facts["training"].items())
    return "\n".join(f"{title + ':':<15}{text}" for title, text in lines.items())


def _describe_layer(layer: LayerBasis) -> dict[str, int]:
    return {
        "in": layer.in_features,
        "out": layer.out_features,
        "basis_size": layer.basis_size,
        "rank": layer.rank,
        "key_dim": layer.key_dim,
    }


def _tensors(layer: LayerBasis) -> list[Tensor]:
    tensors = (layer.lora_down, layer.lora_up, layer.keys, layer.query_projection, layer.lora_bias)
    return [tensor for tensor in tensors if tensor is not None]


def _part_label(layer_name: str) -> str:
    parsed = parse_layer_name(layer_name)
    return f"{parsed.part} (text stream)" if parsed.is_context else parsed.part


def _distinct(numbers: Iterable[int]) -> list[int]:
    return sorted(set(numbers))


def _join(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{', '.join(map(str, numbers))} (differs between layers)"
