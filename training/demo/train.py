"""Train the demo's parts from nothing: encoder (10 min), base (45 min), pairs (10 s), basis (20 min).

Times are for one CPU core; seeds are fixed. Encoder and base are skipped if their files exist, the pairs are written
anew; base and basis resume where they stopped.
To ship them, copy base.safetensors, basis.safetensors and encoder/ to training/demo/model.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from lorweb_core.checkpoint import load_basis

from ..config.reading import read_config
from ..config.schema import TrainConfig
from ..train import train
from .base import save_base, train_base
from .encoder import save_encoder, train_encoder
from .scenes import INDEX_NAME, write_dataset
from .tiny_kontext import write_diffusers_folder

log = logging.getLogger(__name__)

PAIRS_PER_EDIT, PAIRS_SEED = 60, 77


def train_parts(out: Path) -> None:
    """Make `encoder/`, `base.safetensors`, `kontext/`, `pairs/` and `basis.safetensors` in a folder."""
    (out / "encoder").mkdir(parents=True, exist_ok=True)
    if not (out / "encoder" / "model.safetensors").is_file():
        log.info("encoder")
        save_encoder(out / "encoder", train_encoder())
    if not (out / "base.safetensors").is_file():
        log.info("base")
        save_base(out / "base.safetensors", train_base(out / "base_checkpoint.pt"))
    write_diffusers_folder(out / "base.safetensors", out / "kontext")
    write_dataset(out / "pairs", pairs_per_edit=PAIRS_PER_EDIT, seed=PAIRS_SEED)
    log.info("basis")
    result = train(basis_config(out), resume="latest")
    if result.basis_file is not None:
        load_basis(result.basis_file)
        shutil.copyfile(result.basis_file, out / "basis.safetensors")


def basis_config(out: Path, *overrides: str) -> TrainConfig:
    """The config of the basis with its paths in `out`; overrides as on the trainer's command line."""
    paths = {
        "base.model": out / "kontext",
        "encoder.model": out / "encoder",
        "data.index": out / "pairs" / INDEX_NAME,
        "data.cache": out / "cache",
        "run.folder": out,
    }
    own = [f"{name}={path}" for name, path in paths.items()]
    return read_config(Path(__file__).parent / "basis.yaml", [*own, *overrides])


def trained_basis(
    out: Path, name: str, overrides: tuple[str, ...], rates: tuple[float, float], *, steps: int, seed: int
) -> Path:
    """The basis file of one run in `out`, which is trained if it does not exist; rates are (adapters, router)."""
    name = f"{name}-{rates[0]:g}-{rates[1]:g}-{steps}-seed{seed}"
    file = out / name / f"{name}.safetensors"
    if not file.is_file():
        log.info("training %s", name)
        learning = (f"optimizer.learning_rate={rates[0]}", f"optimizer.router_learning_rate={rates[1]}")
        run = (f"run.name={name}", f"run.steps={steps}", f"run.seed={seed}")
        if train(basis_config(out, *overrides, *learning, *run), resume="latest").basis_file is None:
            raise KeyboardInterrupt  # a signal stopped the trainer
    return file
