"""Make the whole demo model from nothing: python -m training.demo [--out runs/demo] [--only STAGE …]

Stages: encoder (10 min), base (45 min), pairs (10 s), basis (10 min), card; on one CPU core, fixed seeds, each
resumable or skipped when its file is there. `--install` copies the finished files into the package (`model/`).
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from lorweb_core.checkpoint import load_basis
from training.train import train

from ..config.reading import read_config
from ..config.schema import TrainConfig
from .base import BaseSettings, save_base, train_base
from .encoder import EncoderSettings, save_encoder, train_encoder
from .scenes import INDEX_NAME, MODEL_FOLDER, write_dataset
from .tiny_flux import write_diffusers_folder

log = logging.getLogger(__name__)

BASIS_CONFIG = Path(__file__).parent / "basis.yaml"
PAIRS_PER_EDIT = 60
PAIRS_SEED = 77


def make_encoder(out: Path) -> None:
    """Train the image encoder into `out/encoder`."""
    if not (out / "encoder" / "model.safetensors").is_file():
        (out / "encoder").mkdir(parents=True, exist_ok=True)
        save_encoder(out / "encoder", train_encoder(EncoderSettings()))


def make_base(out: Path) -> None:
    """Train the base into `out/base.safetensors`, and write it as a diffusers folder `out/kontext`."""
    if not (out / "base.safetensors").is_file():
        save_base(out / "base.safetensors", train_base(BaseSettings(), out / "base_checkpoint.pt"))
    write_diffusers_folder(out / "base.safetensors", out / "kontext")


def make_pairs(out: Path) -> None:
    """Write the training pairs into `out/pairs`."""
    write_dataset(out / "pairs", pairs_per_edit=PAIRS_PER_EDIT, seed=PAIRS_SEED)


def basis_config(out: Path, *overrides: str) -> TrainConfig:
    """Return the configuration of the basis with the paths below `out`; overrides as on the trainer's command line."""
    paths = {
        "base.model": out / "kontext",
        "encoder.model": out / "encoder",
        "data.index": out / "pairs" / INDEX_NAME,
        "data.cache": out / "cache",
        "run.folder": out,
    }
    return read_config(BASIS_CONFIG, [*(f"{name}={path}" for name, path in paths.items()), *overrides])


def make_basis(out: Path) -> None:
    """Train the basis with the ordinary trainer into `out/basis.safetensors`, going on where it was stopped."""
    result = train(basis_config(out), resume="latest")
    if result.basis_file is not None:
        load_basis(result.basis_file)
        shutil.copyfile(result.basis_file, out / "basis.safetensors")


STAGES: dict[str, Callable[[Path], None]] = {
    "encoder": make_encoder,
    "base": make_base,
    "pairs": make_pairs,
    "basis": make_basis,
}


def install(out: Path, model: Path = MODEL_FOLDER) -> None:
    """Copy the finished files into the package."""
    (model / "encoder").mkdir(parents=True, exist_ok=True)
    names = ["base.safetensors", "basis.safetensors", *(f"encoder/{path.name}" for path in (out / "encoder").iterdir())]
    for name in names:
        shutil.copyfile(out / name, model / name)


def main() -> None:
    """Command line, see the module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m training.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything that is made")
    parser.add_argument("--only", nargs="*", choices=tuple(STAGES), default=tuple(STAGES), help="stages to run")
    parser.add_argument("--install", action="store_true", help="copy the result into training/demo/model")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        log.info("stage %s", name)
        STAGES[name](arguments.out)
    if arguments.install:
        install(arguments.out)


if __name__ == "__main__":
    main()
