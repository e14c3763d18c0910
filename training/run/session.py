"""From a configuration to everything a run needs: data, frozen encoders, the base with its basis, optimizer, folder.

Order matters for memory: prompts are encoded and the text encoders freed before the transformer is loaded.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lorweb_core.basis import Basis
from lorweb_core.checkpoint import load_basis, save_basis
from lorweb_core.encoder import load_image_encoder
from lorweb_core.errors import CheckpointError, OutputError, RangeError, SettingsError

from ..adapter.trainable import BasisShape, TrainableKontext
from ..base.source import ModelSource
from ..base.text import CaptionTable
from ..base.transformer import DTYPES, load_transformer, load_vae
from ..config.schema import GRID_QUERY_MODES, TrainConfig
from ..data.index import PairRecord
from .batches import BatchEncoder
from .checkpoints import random_states, save_checkpoint
from .data import TrainingData, open_training_data
from .distributed import Processes
from .inputs import Inputs
from .loop import TrainingState
from .monitor import logged
from .optimizers import EMA, build_optimizer, load_optimizer_state
from .precompute import cached_captions, cached_embeddings

logger = logging.getLogger(__name__)
#: Share of a typical weight of `lora_down` that one update may change: 11 % improved a basis, 36 % ruined it.
_LARGEST_UPDATE = 0.25
#: Of a basis that training starts from: with another value its numbers mean something else.
_SETTINGS_TO_KEEP = ("activation", "heads", "reduction", "query_mode")


def build_encoders(
    config: TrainConfig, source: ModelSource, processes: Processes
) -> tuple[TrainingData, BatchEncoder, int]:
    """Return the data, the frozen encoders, and Q, the width of the query embedding.

    Raises: DataError, ModelError, SettingsError: whatever is wrong with files or their combination.
    """
    device, dtype = processes.device, DTYPES[config.base.dtype]
    with logged(f"loading the image encoder {config.encoder.model}"):
        encoder = load_image_encoder(config.encoder.model, device=device)
    needs_images = not config.caches_embeddings and config.basis.query_mode not in GRID_QUERY_MODES
    data = open_training_data(config, encoder.preprocessing if needs_images else None)
    captions = cached_captions(config, source, data.prompts, processes)
    pairs = [record for record in (*data.records, *data.examples) if isinstance(record, PairRecord)]
    look_up = cached_embeddings(config, encoder, pairs, processes) if config.caches_embeddings else None
    with logged(f"loading the VAE of {source.components}"):
        vae = load_vae(source, dtype=dtype, device=device)
    settings = config.router_settings()
    batch_encoder = BatchEncoder(
        vae=vae,
        captions=CaptionTable(captions),
        embed=None if look_up else encoder.embed,
        cached_embedding=look_up,
        query_mode=settings.query_mode,
        device=device,
        dtype=dtype,
    )
    return data, batch_encoder, encoder.embedding_dim * settings.embeddings_per_query


def build_state(config: TrainConfig, source: ModelSource, query_dim: int, processes: Processes) -> TrainingState:
    """Return the base with a new basis (or that of `basis.start_from`) and its optimizer."""
    packed = "" if config.base.quantize == "none" else f" and quantizing it to {config.base.quantize}"
    with logged(f"loading the base {source.transformer}{packed}"):
        transformer = load_transformer(config.base, source, processes.loading_device).train()
    shape = BasisShape(
        basis_size=config.basis.basis_size,
        rank=config.basis.rank,
        key_dim=config.basis.key_dim,
        query_dim=query_dim,
        coefficient_gain=config.basis.gain,
    )
    model = TrainableKontext(
        transformer, shape, config.router_settings(),
        include=config.basis.include, seed=config.run.seed, device=processes.device,
    )  # fmt: skip
    if processes.device.type != "cpu":  # 0.8 GB instead of 19 GB per sample at full size; a step takes 45 % longer
        transformer.enable_gradient_checkpointing()
    if config.basis.start_from is not None:
        model.load_basis(load_start(config.basis.start_from, config))
    if config.base.compile:
        transformer.compile_repeated_blocks()
        logger.info("the first step compiles the blocks: minutes in which Ctrl-C ends the run at once")
    decay = config.optimizer.ema_decay
    trained = sum(tensor.numel() for tensor in model.trained_state().values())
    amount = f"{trained / 1e6:.1f} M" if trained >= 1e5 else f"{trained / 1e3:.1f} thousand"
    logger.info("%d layers, %s trained parameters", len(model.linears), amount)
    return TrainingState(
        model=model,
        optimizer=build_optimizer(config.optimizer, model),
        ema=None if decay is None else EMA(model.trained_state(), decay),
        micro_batch_size=min(config.run.micro_batch_size, config.run.batch_size // processes.world_size),
    )


def load_start(path: Path, config: TrainConfig) -> Basis:
    """Return the basis of `basis.start_from`; a learning rate that would overwrite it is warned about.

    Adam's updates are about as large as the rate, whatever the gradient. Measured in benchmarks/results/own-folder.md.

    Raises: SettingsError: when it was trained to be used in another way than the run would use it.
    """
    basis, wanted, rate = load_basis(path), config.router_settings(), config.optimizer.learning_rate
    weight = median(float(layer.lora_down.float().square().mean().sqrt()) for layer in basis.layers.values())
    if rate > _LARGEST_UPDATE * weight:
        logger.warning(
            "optimizer.learning_rate %g is %.0f %% of a typical weight of %s (%.2g): the first updates overwrite what "
            "it learned, and the loss then falls without coming back. Set optimizer.learning_rate to %.1g or less.",
            rate, 100 * rate / weight, basis.name, weight, 0.1 * weight,
        )  # fmt: skip
    pairs = {name: (getattr(basis.settings, name), getattr(wanted, name)) for name in _SETTINGS_TO_KEEP}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if different:
        told = ", ".join(f"basis.{name} {theirs}" for name, (theirs, _) in different.items())
        own = ", ".join(str(ours) for _, ours in different.values())
        raise SettingsError(
            expected=f"{told}, as {basis.name} was trained with",
            got=own,
            remedy="Set them to the same, or begin without basis.start_from.",
        )
    if basis.settings.encoder_id != wanted.encoder_id:
        encoders = (basis.settings.encoder_id, wanted.encoder_id)
        logger.warning("%s learned from %s; this run goes on with %s", basis.name, *encoders)
    return basis


def pack_state(state: TrainingState, config: TrainConfig) -> dict[str, Any]:
    """Return everything of a state that a checkpoint holds; the schedule and all draws follow from the step."""
    return {
        "trained": {name: tensor.detach().cpu() for name, tensor in state.model.trained_state().items()},
        "optimizer": state.optimizer.state_dict(),
        "optimizer_class": class_name(state.optimizer),
        "ema": None if state.ema is None else state.ema.state_dict(),
        "bad_steps": state.bad_steps,
        "micro_batch_size": state.micro_batch_size,
        "random": random_states(),
        "config": config.model_dump(mode="json"),
    }


def restore_state(state: TrainingState, saved: dict[str, Any], config: TrainConfig) -> None:
    """Go on from a checkpoint's state; differing settings are named in the log.

    torch's own random states are left to `restore_random_states`: building the rest of a run still draws from them.

    Raises: ShapeError: when the basis has other sizes. CheckpointError: when the optimizer is of another kind.
    """
    _check_optimizer(state, saved)
    for name, (before, now) in differing_settings(saved["config"], config.model_dump(mode="json")).items():
        logger.warning("resuming with another %s: %r instead of %r", name, now, before)
    state.model.load_trained_state(saved["trained"])
    load_optimizer_state(state.optimizer, saved["optimizer"])
    if state.ema is not None:
        fresh = {"updates": 0, "tensors": state.model.trained_state()}
        state.ema.load_state_dict(saved["ema"] or fresh)
    state.step, state.bad_steps = saved["step"], saved["bad_steps"]
    if saved["config"]["run"]["micro_batch_size"] == config.run.micro_batch_size:  # what was halved stays halved
        state.micro_batch_size = min(state.micro_batch_size, saved["micro_batch_size"])


def class_name(value: object) -> str:
    """Return module and name of a value's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _check_optimizer(state: TrainingState, saved: dict[str, Any]) -> None:
    """Moments of one optimizer mean nothing to another."""
    before, now = saved["optimizer_class"], class_name(state.optimizer)
    if before != now:
        raise CheckpointError(
            f"The checkpoint was written by {before}, but optimizer.name and the installed packages give {now}. Set "
            "optimizer.name as in the run's resolved.yaml and install what it used, or "
            "begin a new run.name with basis.start_from: <the checkpoint's basis.safetensors>."
        )


def differing_settings(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return dotted name → (before, now) of all settings that differ."""
    pairs = {
        f"{section}.{name}": (before.get(section, {}).get(name), value)
        for section, values in now.items()
        for name, value in values.items()
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def write_basis_file(path: Path, state: TrainingState, config: TrainConfig) -> None:
    """Write the basis that the nodes load: the moving average's weights when there is one, the gain folded in.

    Numbers beyond float16 are no reason to lose a checkpoint: the file is then bfloat16, and the log says so.
    """
    tensors = None if state.ema is None else state.ema.tensors
    facts = {
        "step": state.step,
        "name": config.run.name,
        "resolution_px": config.data.resolution_px,
        "max_tokens": config.text.max_tokens,
    }
    write = partial(save_basis, path, state.model.layers(tensors), config.router_settings(), training=facts)
    try:
        write(dtype=torch.float16)
    except RangeError as error:
        logger.warning("%s is bfloat16, not float16: %s", path.name, error)
        write(dtype=torch.bfloat16)


@dataclass
class CheckpointSaver:
    """What the loop calls to save: the main process writes, the others wait.

    A save that fails while training goes on is logged, so that a full disk costs no steps; the last one raises.

    Attributes:
        config: of the run.
        processes: the process group.
        inputs: what the run learns from; None in processes that do not write.
        saved_step: of the newest checkpoint that this process wrote.
    """

    config: TrainConfig
    processes: Processes
    inputs: Inputs | None
    saved_step: int | None = None

    def __call__(self, state: TrainingState, *, is_last: bool = False) -> None:
        """Write a checkpoint, unless that of this step was written already.

        Raises: OutputError: when the last one cannot be written.
        """
        if self.processes.is_main and self.saved_step != state.step:
            try:
                self._write(state)
            except OutputError as error:
                if is_last:
                    raise
                logger.error("%s", error)
        self.processes.wait()

    def _write(self, state: TrainingState) -> None:
        folder = self.config.run_folder / "checkpoints"
        started = time.monotonic()
        save_checkpoint(
            folder, state.step, {**pack_state(state, self.config), "inputs": self.inputs},
            write_basis=lambda path: write_basis_file(path, state, self.config), keep=self.config.checkpoint.keep,
        )  # fmt: skip
        logger.info("saved step %d in %s: %.1f s", state.step, folder, time.monotonic() - started)
        self.saved_step = state.step
