"""`mix BASIS …`: embeddings or three pictures → coefficients → ordinary LoRA files, one per analogy."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..basis import Basis
from ..coefficients import Coefficients, count_mixes, encode_coefficients, require_coefficients_of
from ..coefficients_file import load_coefficients, save_coefficients
from ..errors import CheckpointError, ModelError
from ..export import EXPORT_DTYPES, export_mixed_lora
from ..files import write_text_atomically
from ..images import from_pil, read_image
from ..layer_tensors import FLOAT_DTYPES
from ..safetensors_file import read_header
from .arguments import (
    add_settings_argument,
    finite_number,
    load_with_progress,
    progress_bar,
    require_separate,
    safetensors_path,
    show,
    whole_number,
)

EXAMPLES = """\
  python -m lorweb_core mix basis.safetensors --a a.png --a-prime a2.png --b b.png --encoder clip-vit-large-patch14 \\
      -o analogy.safetensors
  python -m lorweb_core mix basis.safetensors --embeddings embeddings.safetensors -o analogy.safetensors --rank 16 \\
      --coefficients-out coefficients.json
  python -m lorweb_core mix basis.safetensors --coefficients blended.safetensors -o analogy.safetensors"""

EMBEDDING_NAME = "query_embedding"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("basis", type=Path, metavar="BASIS", help="basis file (.safetensors)")
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help=f".safetensors with one tensor {EMBEDDING_NAME}, [B, images, width] or [B, width]",
    )
    parser.add_argument("--coefficients", type=Path, metavar="FILE", help="a coefficients file of this basis")
    parser.add_argument("--a", type=Path, metavar="IMG", help="picture before the edit")
    parser.add_argument("--a-prime", type=Path, metavar="IMG", help="the same picture after the edit")
    parser.add_argument("--b", type=Path, metavar="IMG", help="picture to be edited alike")
    parser.add_argument("--encoder", type=Path, metavar="DIR", help="folder of the image encoder (transformers)")
    parser.add_argument(
        "-o",
        "--output",
        type=safetensors_path,
        required=True,
        metavar="OUT",
        help=".safetensors to write; several analogies become OUT-000.safetensors, OUT-001.safetensors …",
    )
    add_settings_argument(parser)
    parser.add_argument("--strength", type=finite_number, default=1.0, help="factor on the edit (default 1.0)")
    parser.add_argument("--rank", type=whole_number, default=0, help="ranks kept per layer; 0 keeps all (default)")
    parser.add_argument(
        "--dtype", choices=tuple(EXPORT_DTYPES), default="bf16", help="number type of OUT (default bf16)"
    )
    parser.add_argument(
        "--coefficients-out",
        type=Path,
        metavar="C",
        help="also write a coefficients file (C.safetensors), or layer name -> B lists of N numbers (any other name)",
    )
    parser.set_defaults(fail=parser.error)


def run(arguments: argparse.Namespace) -> None:
    """Write one ordinary LoRA per analogy and say what was written."""
    pictures = (arguments.a, arguments.a_prime, arguments.b)
    _require_one_source(arguments, pictures)
    inputs = (arguments.basis, arguments.embeddings, arguments.coefficients, *pictures, arguments.settings)
    more_outputs = [arguments.coefficients_out] if arguments.coefficients_out else []
    require_separate([arguments.output, *more_outputs], inputs)
    embedding = read_embeddings(arguments.embeddings) if arguments.embeddings else None
    basis = load_with_progress(arguments.basis, arguments.settings)
    if arguments.coefficients:
        coefficients = require_coefficients_of(basis, load_coefficients(arguments.coefficients).coefficients)
    else:
        if embedding is None:
            embedding = _embed_pictures(basis, pictures, arguments.encoder)
        coefficients = encode_coefficients(basis, embedding)
    outputs = number_outputs(arguments.output, count_mixes(coefficients))
    require_separate([*outputs, *more_outputs], inputs)
    if arguments.coefficients_out:
        _write_coefficients(coefficients, arguments.coefficients_out)
    for index, output in enumerate(outputs):
        mix = {name: values[index] for name, values in coefficients["layers"].items()}
        _export(arguments, basis, mix, output)


def read_embeddings(path: Path) -> Tensor:
    """Return the one tensor `query_embedding` of a .safetensors file; its width is the router's to check.

    Raises: CheckpointError: when the file is unusable or holds anything else.
    """
    entries = read_header(path).entries
    if list(entries) != [EMBEDDING_NAME] or entries[EMBEDDING_NAME].dtype not in FLOAT_DTYPES:
        found = ", ".join(f"{name} ({entry.dtype})" for name, entry in list(entries.items())[:3]) or "no tensor"
        raise CheckpointError(
            f"{path.name} has {found}, not one floating-point tensor {EMBEDDING_NAME}. Save the joined image "
            f"embeddings as {EMBEDDING_NAME} [B, images, width] or [B, width]."
        )
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return file.get_tensor(EMBEDDING_NAME).float().clone()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} changed while it was read ({error}). Write it again.") from error


def number_outputs(output: Path, count: int) -> list[Path]:
    """Return OUT itself for one analogy, OUT-000 … for several."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index:03d}{output.suffix}") for index in range(count)]


def _require_one_source(arguments: argparse.Namespace, pictures: tuple[Path | None, ...]) -> None:
    from_pictures = [*pictures, arguments.encoder]
    given = [part for part in from_pictures if part is not None]
    sources = sum((bool(arguments.embeddings), bool(arguments.coefficients), bool(given)))
    if sources > 1:
        arguments.fail("give either --embeddings, or --coefficients, or --a, --a-prime, --b and --encoder")
    if not (arguments.embeddings or arguments.coefficients) and len(given) < len(from_pictures):
        names = ("--a", "--a-prime", "--b", "--encoder")
        missing = [name for name, part in zip(names, from_pictures, strict=True) if part is None]
        sources_text = "--embeddings, or --a, --a-prime, --b and --encoder, or --coefficients"
        arguments.fail(f"expected {sources_text}; missing {', '.join(missing)}")


def _write_coefficients(coefficients: Coefficients, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_coefficients(path, coefficients)
    else:
        lists = {name: mix.tolist() for name, mix in coefficients["layers"].items()}
        write_text_atomically(path, json.dumps(lists) + "\n")
    show(f"Wrote {path}")


def _embed_pictures(basis: Basis, paths: tuple[Path, ...], encoder_folder: Path) -> Tensor:
    from transformers.utils import logging as transformers_logging  # seconds to import

    from ..encoder import family_of, load_image_encoder
    from ..query import embed_analogy

    transformers_logging.disable_progress_bar()
    if not encoder_folder.is_dir():
        raise ModelError(
            expected="--encoder to be a folder with config.json and model.safetensors",
            got=str(encoder_folder),
            remedy=f"Download {basis.settings.encoder_id} into a folder; nothing is downloaded here.",
        )
    pictures = [from_pil(read_image(path))[None] for path in paths]
    encoder = load_image_encoder(encoder_folder, local_files_only=True)
    wanted = (family_of(basis.settings.encoder_id), basis.embedding_dim)
    if (encoder.family, encoder.embedding_dim) != wanted:
        raise ModelError(
            expected=f"a {wanted[0]} encoder with embeddings of width {wanted[1]} ({basis.settings.encoder_id})",
            got=f"{encoder.embedding_dim} from the {encoder.family} model {encoder.encoder_id}",
            remedy=f"Name the folder of {basis.settings.encoder_id}.",
        )
    return embed_analogy(basis.settings, encoder.embed, *pictures, preprocessing=encoder.preprocessing)


def _export(arguments: argparse.Namespace, basis: Basis, mix: dict[str, Tensor], output: Path) -> None:
    done = 0
    with progress_bar(output.name, "layer") as on_progress, torch.inference_mode():

        def on_layer() -> None:
            nonlocal done
            done += 1
            on_progress(done, len(basis.layers))

        report = export_mixed_lora(
            output,
            basis,
            mix,
            strength=arguments.strength,
            rank=arguments.rank,
            dtype=EXPORT_DTYPES[arguments.dtype],
            on_layer=on_layer,
        )
    show(f"Wrote {output}: {report.describe()}")
