"""`convert IN OUT [--dtype …] [--for-reference]`: a basis with its settings in the header, or for the reference."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..basis import Basis
from ..checkpoint import save_basis
from ..errors import CheckpointError, OutputError
from ..export import EXPORT_DTYPES
from ..files import write_text_atomically
from ..settings_sources import METADATA_KEY, find_sidecar, read_training_facts, reference_config
from .arguments import (
    add_settings_argument,
    load_with_progress,
    progress_bar,
    require_separate,
    safetensors_path,
    show,
)

EXAMPLES = """\
  python -m lorweb_core convert published.safetensors basis.safetensors --dtype bf16
  python -m lorweb_core convert published.safetensors basis.safetensors --settings config.yaml
  python -m lorweb_core convert basis.safetensors reference/basis.safetensors --for-reference"""

#: Header strings of the reference that are wrong (it says sd_1.5) or no longer true after rewriting.
_STALE_METADATA = (METADATA_KEY, "ss_base_model_version", "sshs_model_hash", "sshs_legacy_hash", "format")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", type=Path, metavar="IN", help="basis file to read")
    parser.add_argument("target", type=safetensors_path, metavar="OUT", help=".safetensors file to write")
    parser.add_argument(
        "--dtype", choices=tuple(EXPORT_DTYPES), help="number type of OUT (default: that of IN; float8 becomes bf16)"
    )
    parser.add_argument(
        "--for-reference",
        action="store_true",
        help="also write the config.yaml beside OUT on which the published implementation insists",
    )
    add_settings_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Write the converted basis and say what was written."""
    target: Path = arguments.target
    require_separate([target], [arguments.source, find_sidecar(arguments.source), arguments.settings])
    basis = load_with_progress(arguments.source, arguments.settings)
    config = _config_for_reference(basis) if arguments.for_reference else None
    config_path = target.with_name("config.yaml")
    if config is not None:
        _require_no_other_config(config_path, config)
    with progress_bar("writing", "tensor") as on_progress:
        save_basis(
            target,
            basis.layers,
            basis.settings,
            dtype=EXPORT_DTYPES[arguments.dtype] if arguments.dtype else None,
            training=read_training_facts(basis.metadata),
            metadata={key: value for key, value in basis.metadata.items() if key not in _STALE_METADATA},
            on_progress=on_progress,
        )
    show(f"Wrote {target}: {len(basis.layers)} layers, settings from {basis.settings_source}")
    if config is not None:
        write_text_atomically(config_path, config)
        show(f"Wrote {config_path}")


def _config_for_reference(basis: Basis) -> str:
    """Return the text of the config.yaml, once the reference is known to be able to read such a basis."""
    layers = list(basis.layers.values())
    shapes = {(layer.basis_size, layer.rank, layer.key_dim, layer.query_projection is not None) for layer in layers}
    biased = sum(layer.lora_bias is not None for layer in layers)
    obstacle = ""
    if len(shapes) > 1:
        obstacle = f"{len(shapes)} different combinations of basis size, rank, key width and projection"
    elif biased:
        obstacle = f"per-adapter biases in {biased} layers"
    elif len(layers) == 1:
        obstacle = "a single layer"
    if obstacle:
        raise CheckpointError(
            expected="two or more layers of equal sizes without biases, which is all that the reference can read",
            got=obstacle,
            remedy="Leave out --for-reference.",
        )
    basis_size, rank, key_dim, projects = shapes.pop()
    return reference_config(basis.settings, basis_size=basis_size, rank=rank, key_dim=key_dim, projects=projects)


def _require_no_other_config(path: Path, text: str) -> None:
    """Raise an OutputError when another config.yaml would be overwritten."""
    content = text.encode("utf-8")
    if not path.exists():
        return
    if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
        return
    raise OutputError(
        expected=f"no other config.yaml in the folder {path.parent}",
        got="one with other content",
        remedy="Write into another folder; the reference reads the config.yaml beside the file.",
    )
