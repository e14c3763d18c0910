"""`mix BASIS …`: three images or a coefficients file → ordinary LoRA files, one per analogy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from tqdm import tqdm

from ..basis import Basis
from ..coefficients import Coefficients, count_mixes, encode_coefficients, require_coefficients_of
from ..coefficients_file import load_coefficients, save_coefficients
from ..errors import ModelError, SettingsError
from ..export import EXPORT_DTYPES, export_mixed_lora
from ..images import from_pil, read_image
from .options import Output, Settings, finite, load_with_progress, require_separate, safetensors_path, show

MIX_EXAMPLES = """\
  python -m lorweb_core mix basis.safetensors --a a.png --a-prime a2.png --b b.png --encoder clip-vit-large-patch14 \\
      -o analogy.safetensors --rank 16 --coefficients-out coefficients.safetensors
  python -m lorweb_core mix basis.safetensors --coefficients blended.safetensors -o analogy.safetensors"""


def mix(
    basis_path: Annotated[Path, typer.Argument(metavar="BASIS", help="Basis file (.safetensors).")],
    output: Output,
    a: Annotated[Path | None, typer.Option(metavar="IMG", help="Image before the edit.")] = None,
    a_prime: Annotated[Path | None, typer.Option(metavar="IMG", help="The same image after the edit.")] = None,
    b: Annotated[Path | None, typer.Option(metavar="IMG", help="Image to edit in the same way.")] = None,
    encoder: Annotated[Path | None, typer.Option(metavar="DIR", help="Image encoder folder (transformers).")] = None,
    coefficients_path: Annotated[
        Path | None, typer.Option("--coefficients", metavar="FILE", help="Coefficients file of this basis.")
    ] = None,
    settings: Settings = None,
    strength: Annotated[float, typer.Option(callback=finite, help="Factor on the edit.")] = 1.0,
    rank: Annotated[int, typer.Option(min=0, help="Ranks kept per layer; 0 keeps all.")] = 0,
    dtype: Annotated[Literal["bf16", "fp16", "fp32"], typer.Option(help="Number type of OUT.")] = "bf16",
    coefficients_out: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=safetensors_path, help="Also write a coefficients file.")
    ] = None,
) -> None:
    """Make the mixed LoRA of an analogy. Several analogies become OUT-000.safetensors, OUT-001.safetensors …"""
    from_images = {"--a": a, "--a-prime": a_prime, "--b": b, "--encoder": encoder}
    missing = [name for name, path in from_images.items() if path is None]
    if (coefficients_path is None and missing) or (coefficients_path is not None and len(missing) < len(from_images)):
        problem = f"missing: {', '.join(missing)}" if coefficients_path is None else "they exclude each other"
        raise SettingsError(f"Give either --coefficients, or --a, --a-prime, --b and --encoder ({problem}).")
    inputs = [basis_path, coefficients_path, a, a_prime, b, settings]
    more_outputs = [] if coefficients_out is None else [coefficients_out]
    require_separate([output, *more_outputs], inputs)
    basis = load_with_progress(basis_path, settings)
    if coefficients_path is not None:
        coefficients = require_coefficients_of(basis, load_coefficients(coefficients_path).coefficients)
    else:
        coefficients = _encode_images(basis, [path for path in (a, a_prime, b) if path], encoder or Path())
    count = count_mixes(coefficients)
    numbered = [output.with_name(f"{output.stem}-{index:03d}{output.suffix}") for index in range(count)]
    outputs = [output] if count == 1 else numbered
    require_separate([*outputs, *more_outputs], inputs)
    if coefficients_out is not None:
        save_coefficients(coefficients_out, coefficients)
        show(f"Wrote {coefficients_out}")
    for index, path in enumerate(outputs):
        with (
            tqdm(total=len(basis.layers), desc=path.name, unit="layer", disable=None, leave=False) as bar,
            torch.inference_mode(),
        ):
            report = export_mixed_lora(
                path,
                basis,
                {name: values[index] for name, values in coefficients["layers"].items()},
                strength=strength,
                rank=rank,
                dtype=EXPORT_DTYPES[dtype],
                on_layer=bar.update,
            )
        show(f"Wrote {path}: {report.describe()}")


def _encode_images(basis: Basis, paths: list[Path], encoder_folder: Path) -> Coefficients:
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
    embedding = embed_analogy(basis.settings, encoder.embed, *images, preprocessing=encoder.preprocessing)
    return encode_coefficients(basis, embedding)
