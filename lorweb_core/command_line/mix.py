"""`mix BASIS …`: embeddings or three images → coefficients → ordinary LoRA files, one per analogy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import torch
import typer
from torch import Tensor
from tqdm import tqdm

from ..basis import Basis
from ..coefficients import count_mixes, encode_coefficients, require_coefficients_of
from ..coefficients_file import load_coefficients, save_coefficients
from ..errors import CheckpointError, ModelError, SettingsError
from ..export import EXPORT_DTYPES, export_mixed_lora
from ..files import write_text_atomically
from ..images import from_pil, read_image
from ..safetensors_file import FLOAT_DTYPES, open_tensors, read_header
from .options import Output, Settings, finite, load_with_progress, require_separate, show

MIX_EXAMPLES = """\
  python -m lorweb_core mix basis.safetensors --a a.png --a-prime a2.png --b b.png --encoder clip-vit-large-patch14 \\
      -o analogy.safetensors
  python -m lorweb_core mix basis.safetensors --embeddings embeddings.safetensors -o analogy.safetensors --rank 16 \\
      --coefficients-out coefficients.json
  python -m lorweb_core mix basis.safetensors --coefficients blended.safetensors -o analogy.safetensors"""
EMBEDDING_NAME = "query_embedding"
_EMBEDDINGS_HELP = f".safetensors with one tensor {EMBEDDING_NAME}, [B, images, width] or [B, width]."
_COEFFICIENTS_OUT_HELP = (
    "Also write the coefficients: .safetensors, or under any other name JSON (layer name: B lists)."
)


def mix(
    basis_path: Annotated[Path, typer.Argument(metavar="BASIS", help="Basis file (.safetensors).")],
    output: Output,
    embeddings: Annotated[Path | None, typer.Option(metavar="FILE", help=_EMBEDDINGS_HELP)] = None,
    coefficients_path: Annotated[
        Path | None, typer.Option("--coefficients", metavar="FILE", help="Coefficients file of this basis.")
    ] = None,
    a: Annotated[Path | None, typer.Option(metavar="IMG", help="Image before the edit.")] = None,
    a_prime: Annotated[Path | None, typer.Option(metavar="IMG", help="The same image after the edit.")] = None,
    b: Annotated[Path | None, typer.Option(metavar="IMG", help="Image to edit in the same way.")] = None,
    encoder: Annotated[Path | None, typer.Option(metavar="DIR", help="Image encoder folder (transformers).")] = None,
    settings: Settings = None,
    strength: Annotated[float, typer.Option(callback=finite, help="Factor on the edit.")] = 1.0,
    rank: Annotated[int, typer.Option(min=0, help="Ranks kept per layer; 0 keeps all.")] = 0,
    dtype: Annotated[Literal["bf16", "fp16", "fp32"], typer.Option(help="Number type of OUT.")] = "bf16",
    coefficients_out: Annotated[Path | None, typer.Option(metavar="C", help=_COEFFICIENTS_OUT_HELP)] = None,
) -> None:
    """Make the mixed LoRA of an analogy. Several analogies become OUT-000.safetensors, OUT-001.safetensors …"""
    from_images = {"--a": a, "--a-prime": a_prime, "--b": b, "--encoder": encoder}
    missing = [name for name, path in from_images.items() if path is None]
    sources = [embeddings is not None, coefficients_path is not None, len(missing) < len(from_images)]
    if sum(sources) != 1 or (sources[2] and missing):
        problem = f"missing: {', '.join(missing)}" if sum(sources) < 2 else "they exclude each other"
        raise SettingsError(
            f"Give either --embeddings, or --coefficients, or --a, --a-prime, --b and --encoder ({problem})."
        )
    inputs = [basis_path, embeddings, coefficients_path, a, a_prime, b, settings]
    more_outputs = [] if coefficients_out is None else [coefficients_out]
    require_separate([output, *more_outputs], inputs)
    embedding = None if embeddings is None else read_embeddings(embeddings)
    basis = load_with_progress(basis_path, settings)
    if coefficients_path is not None:
        coefficients = require_coefficients_of(basis, load_coefficients(coefficients_path).coefficients)
    else:
        if embedding is None:
            embedding = _embed_images(basis, [path for path in (a, a_prime, b) if path], encoder or Path())
        coefficients = encode_coefficients(basis, embedding)
    count = count_mixes(coefficients)
    numbered = [output.with_name(f"{output.stem}-{index:03d}{output.suffix}") for index in range(count)]
    outputs = [output] if count == 1 else numbered
    require_separate([*outputs, *more_outputs], inputs)
    if coefficients_out is not None:
        if coefficients_out.suffix == ".safetensors":
            save_coefficients(coefficients_out, coefficients)
        else:
            lists = {name: values.tolist() for name, values in coefficients["layers"].items()}
            write_text_atomically(coefficients_out, json.dumps(lists) + "\n")
        show(f"Wrote {coefficients_out}")
    for index, path in enumerate(outputs):
        bar = tqdm(total=len(basis.layers), desc=path.name, unit="layer", disable=None, leave=False)

        def on_layer(bar: tqdm[NoReturn] = bar) -> None:
            bar.update()

        with bar, torch.inference_mode():
            report = export_mixed_lora(
                path,
                basis,
                {name: values[index] for name, values in coefficients["layers"].items()},
                strength=strength,
                rank=rank,
                dtype=EXPORT_DTYPES[dtype],
                on_layer=on_layer,
            )
        show(f"Wrote {path}: {report.describe()}")


def read_embeddings(path: Path) -> Tensor:
    """The one tensor `query_embedding` of a .safetensors file; the router checks its width.

    Raises CheckpointError if the file is damaged or holds anything else.
    """
    entries = read_header(path).entries
    if list(entries) != [EMBEDDING_NAME] or entries[EMBEDDING_NAME].dtype not in FLOAT_DTYPES:
        found = ", ".join(f"{name} ({entry.dtype})" for name, entry in list(entries.items())[:3]) or "no tensor"
        raise CheckpointError(
            f"{path.name} has {found}, not one floating-point tensor {EMBEDDING_NAME}. Save the joined image "
            f"embeddings as {EMBEDDING_NAME} [B, images, width] or [B, width]."
        )
    with open_tensors(path) as file:
        return file.get_tensor(EMBEDDING_NAME).float().clone()


def _embed_images(basis: Basis, paths: list[Path], encoder_folder: Path) -> Tensor:
    from transformers.utils import logging as transformers_logging  # seconds to import

    from ..encoder import family_of, load_image_encoder
    from ..query import embed_analogy

    transformers_logging.disable_progress_bar()
    encoder_id = basis.settings.encoder_id
    if not encoder_folder.is_dir():
        raise ModelError(
            f"--encoder {encoder_folder} is not a folder with config.json and model.safetensors. Download {encoder_id} "
            "into a folder first; nothing is downloaded here."
        )
    images = [from_pil(read_image(path))[None] for path in paths]
    encoder = load_image_encoder(encoder_folder, local_files_only=True)
    family = family_of(encoder_id)
    if (encoder.family, encoder.embedding_dim) != (family, basis.embedding_dim):
        raise ModelError(
            f"This basis needs a {family} encoder with embeddings of width {basis.embedding_dim} ({encoder_id}), but "
            f"the {encoder.family} model {encoder.encoder_id} gives {encoder.embedding_dim}. Pass the folder of "
            f"{encoder_id} as --encoder."
        )
    return embed_analogy(basis.settings, encoder.embed, *images, preprocessing=encoder.preprocessing)
