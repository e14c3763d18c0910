"""Commands on basis files: `inspect`, `convert`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from ..basis import Basis
from ..checkpoint import save_basis
from ..errors import CheckpointError, FileError, OutputError
from ..export import EXPORT_DTYPES
from ..files import read_bytes, write_text_atomically
from ..layer_names import parse_layer_name
from ..settings_sources import METADATA_KEY, find_sidecar, read_training_facts
from .options import Settings, load_with_progress, progress_bar, require_separate, safetensors_path, show

INSPECT_EXAMPLES = "  python -m lorweb_core inspect basis.safetensors"
CONVERT_EXAMPLES = """\
  python -m lorweb_core convert published.safetensors basis.safetensors --dtype bf16
  python -m lorweb_core convert published.safetensors basis.safetensors --settings config.yaml
  python -m lorweb_core convert basis.safetensors reference/basis.safetensors --for-reference"""

#: Header strings of the reference that are wrong (it says sd_1.5) or no longer true after rewriting.
_STALE_METADATA = (METADATA_KEY, "ss_base_model_version", "sshs_model_hash", "sshs_legacy_hash", "format")


def inspect(path: Annotated[Path, typer.Argument(metavar="BASIS", help="Basis file (.safetensors).")]) -> None:
    """Print what a basis file holds. Reads every tensor, so a file that passes is usable."""
    basis = load_with_progress(path, None)
    layers, settings = list(basis.layers.values()), basis.settings
    tensors = [tensor for layer in layers for tensor in vars(layer).values() if tensor is not None]
    parsed = [parse_layer_name(name) for name in basis.layers]
    parts = Counter(f"{name.part} (text stream)" if name.is_context else name.part for name in parsed)
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    biased = sum(layer.lora_bias is not None for layer in layers)

    def distinct(name: str) -> str:
        numbers = sorted({getattr(layer, name) for layer in layers})
        return ", ".join(map(str, numbers)) + (" (differs between layers)" if len(numbers) > 1 else "")

    lines = {
        "File": f"{path} ({path.stat().st_size / 1e6:,.1f} MB, {', '.join(dtypes)})",
        "Basis id": basis.basis_id,
        "Layers": f"{len(layers)} ({', '.join(f'{part} {count}' for part, count in parts.items())})",
        "Parameters": f"{sum(tensor.numel() for tensor in tensors):,}",
        "Basis size N": distinct("basis_size"),
        "Rank r": distinct("rank"),
        "Key width": distinct("key_dim"),
        "Query width": f"{basis.query_dim} ({settings.query_mode}, image embeddings of {basis.embedding_dim})",
        "Projections": f"{sum(layer.query_projection is not None for layer in layers)} of {len(layers)} layers",
        "Biases": f"{biased} of {len(layers)} layers" if biased else "none",
        "Coefficients": f"{settings.activation}, heads {settings.heads}, {settings.reduction} over heads",
        "Encoder": f"{settings.encoder_id} {settings.encoder_revision}".rstrip(),
        "Base model": settings.base_model,
        "Settings from": basis.settings_source,
    }
    facts = read_training_facts(basis.metadata)
    if facts:
        lines["Training"] = ", ".join(f"{key} {value}" for key, value in facts.items())
    show("\n".join(f"{title + ':':<15}{text}" for title, text in lines.items()))


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Basis file to read.")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", callback=safetensors_path, help=".safetensors file to write.")
    ],
    dtype: Annotated[
        Literal["bf16", "fp16", "fp32"] | None,
        typer.Option(help="Number type of OUT. Default: that of IN; float8 becomes bf16."),
    ] = None,
    for_reference: Annotated[
        bool,
        typer.Option("--for-reference", help="Also write the config.yaml that the published implementation needs."),
    ] = False,
    settings: Settings = None,
) -> None:
    """Rewrite a basis with its settings in the header."""
    require_separate([target], [source, find_sidecar(source), settings])
    basis = load_with_progress(source, settings)
    config = _config_for_reference(basis) if for_reference else None
    config_path = target.with_name("config.yaml")
    if config is not None and config_path.exists():
        try:
            is_the_same = read_bytes(config_path, len(config.encode())) == config.encode()
        except FileError:  # longer, or no regular file
            is_the_same = False
        if not is_the_same:
            raise OutputError(
                f"{config_path} already exists with other content, and the reference reads the config.yaml beside the "
                "basis. Write to another folder."
            )
    with progress_bar("writing", "tensor") as on_progress:
        save_basis(
            target,
            basis.layers,
            basis.settings,
            dtype=EXPORT_DTYPES[dtype] if dtype else None,
            training=read_training_facts(basis.metadata),
            metadata={key: value for key, value in basis.metadata.items() if key not in _STALE_METADATA},
            on_progress=on_progress,
        )
    show(f"Wrote {target}: {len(basis.layers)} layers, settings from {basis.settings_source}")
    if config is not None:
        write_text_atomically(config_path, config)
        show(f"Wrote {config_path}")


def _config_for_reference(basis: Basis) -> str:
    """Return the text of the `config.yaml` that the reference's inference insists on, with all its keys."""
    layers = list(basis.layers.values())
    sizes = {(layer.basis_size, layer.rank, layer.key_dim, layer.query_projection is not None) for layer in layers}
    biased = sum(layer.lora_bias is not None for layer in layers)
    obstacle = ""
    if len(sizes) > 1:
        obstacle = f"{len(sizes)} different combinations of basis size, rank, key width and projection"
    elif biased:
        obstacle = f"per-adapter biases in {biased} layers"
    elif len(layers) == 1:
        obstacle = "a single layer"
    if obstacle:
        raise CheckpointError(
            f"The reference cannot read a basis with {obstacle}: it needs two or more layers of equal sizes without "
            "biases. Leave out --for-reference."
        )
    basis_size, rank, key_dim, has_projection = sizes.pop()
    arguments = {
        "lora_keys_dim": key_dim,
        "lora_heads": basis.settings.heads,
        "mixing_coeffs_type": basis.settings.reduction,
        "external_query": True,
        "pooling_type": "avg",  # without effect here, but the key must exist
        "query_projection_type": "linear" if has_projection else "none",
        "external_query_model": basis.settings.encoder_id,
        "loras_num": basis_size,
        "lora_softmax": basis.settings.activation == "softmax",
        "query_mode": basis.settings.query_mode,
    }
    network = {"type": "attlora", "linear": rank, "linear_alpha": rank, "network_kwargs": arguments}
    return yaml.safe_dump({"config": {"process": [{"network": network}]}}, sort_keys=False)
