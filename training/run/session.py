"""From a configuration to a loop and its state: data, frozen encoders, the base with its basis, optimizer, run folder.

The order matters for memory: prompts are encoded and the text encoders freed before the transformer is loaded.
"""

from __future__ import annotations

import logging
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lorweb_core.basis import Basis
from lorweb_core.checkpoint import load_basis
from lorweb_core.encoder import find_encoder_folder, load_image_encoder
from lorweb_core.errors import CheckpointError, OutputError, SettingsError

from ..adapter.trainable import BasisShape, TrainableKontext
from ..base.flow import read_schedule
from ..base.source import ModelSource, find_source
from ..base.text import CaptionTable, has_text_encoders
from ..base.transformer import DTYPES, load_transformer, load_vae
from ..config.reading import write_config
from ..config.schema import GRID_QUERY_MODES, TrainConfig
from .batches import BatchEncoder
from .checkpoints import CheckpointSaver, load_checkpoint, load_latest, restore_random_states, restore_state
from .data import TrainingData, open_training_data, training_batches
from .distributed import Processes
from .inputs import input_digests, warn_of_changes
from .loop import Loop, TrainingState
from .monitor import Monitor, logged, require_trackers
from .optimizers import EMA, build_optimizer
from .precompute import cached_captions, cached_embeddings
from .signals import StopRequest, leave_lost_children_to_the_loader
from .validation import Validator

logger = logging.getLogger(__name__)
#: Share of a typical weight of `lora_down` that one update may change: 11 % improved a basis, 36 % ruined it.
_LARGEST_UPDATE = 0.25
#: Settings of a basis that training starts from: with other values its weights mean something else.
_SETTINGS_TO_KEEP = ("activation", "heads", "reduction", "query_mode")


def assemble(
    config: TrainConfig, processes: Processes, stop: StopRequest, *, resume: str | None = None
) -> tuple[Loop, TrainingState]:
    """Return the loop and the state it starts from, everything loaded.

    Raises LoRWeBError for everything that a user can get wrong.
    """
    if config.run.batch_size % processes.world_size:
        raise SettingsError(
            f"run.batch_size is {config.run.batch_size}, which {processes.world_size} processes cannot share equally. "
            "Set it to a multiple of the number of processes, or change that number."
        )
    if processes.is_main:
        require_trackers(config.tracking)  # before the minutes that the base takes
    saved = _find_saved(config.run_folder / "checkpoints", resume)
    processes.wait()
    source = find_source(config.base.model, config.base.components)
    if not has_text_encoders(source.components):  # the prompt is one zero token then, and the basis file says so
        config = config.model_copy(update={"text": config.text.model_copy(update={"max_tokens": 1})})
    if processes.is_main:
        config.run_folder.mkdir(parents=True, exist_ok=True)
        write_config(config.run_folder / "resolved.yaml", config)
    torch.manual_seed(config.run.seed)
    data, encoder, query_dim = _build_encoders(config, source, processes)
    encoder_folder = find_encoder_folder(config.encoder.model, local_files_only=True)
    inputs = input_digests(data.records, source, encoder_folder) if processes.is_main else None
    state = _build_state(config, source, query_dim, processes)
    if saved is not None:
        restore_state(state, saved, config)
        if inputs is not None:
            warn_of_changes(saved["inputs"], inputs)
    if processes.any(processes.mean(state.step) != state.step):  # a machine with its own disk would begin anew
        raise CheckpointError(
            f"Process {processes.rank} would continue from step {state.step}, another process from a different one. "
            "Set run.folder to a place that all machines share, or copy its checkpoints to each of them."
        )
    steps = config.run.steps
    if processes.is_main and state.step >= steps:
        logger.info("nothing to do: step %d of %d is done", state.step, steps)
    elif processes.is_main and saved is not None:
        logger.info("resumed at step %d of %d", state.step, steps)
    elif processes.is_main and resume is not None:  # a misspelled run.name shows here
        logger.info("starting at step 0 of %d: no checkpoint in %s yet", steps, config.run_folder / "checkpoints")

    # A finished run gets no progress bar and no trackers.
    monitor = Monitor(config, first_step=state.step, is_main=processes.is_main and state.step < steps)
    batches = training_batches(
        data, config, first_step=state.step, rank=processes.rank, world_size=processes.world_size
    )
    validator = Validator(
        data.validation, encoder, config, read_schedule(source.components), monitor, processes,
        is_stopping=lambda: processes.any(stop.reason is not None),
    )  # fmt: skip
    saved_step = state.step if saved is not None and resume == "latest" else None
    saver = CheckpointSaver(config, processes, inputs, saved_step)
    module = processes.wrap(state.model)
    leave_lost_children_to_the_loader()
    if saved is not None:  # last: building the other parts draws random numbers
        restore_random_states(saved["random"])
    return Loop(config, processes, module, encoder, batches, monitor, stop, saver, validator), state


def load_start(path: Path, config: TrainConfig) -> Basis:
    """Return the basis of `basis.start_from`; warns of a learning rate that would overwrite it.

    Adam's updates are about as large as the rate, whatever the gradient. Measured in benchmarks/results/own-folder.md.

    Raises SettingsError when it was trained with other settings than the run has.
    """
    basis, wanted, rate = load_basis(path), config.router_settings(), config.optimizer.learning_rate
    weight = median(float(layer.lora_down.float().square().mean().sqrt()) for layer in basis.layers.values())
    if rate > _LARGEST_UPDATE * weight:
        logger.warning(
            "optimizer.learning_rate %g is %.0f %% of a typical weight of %s (%.2g): the first updates overwrite what "
            "it learned, and the loss then falls without recovering it. Set optimizer.learning_rate to %.1g or less.",
            rate, 100 * rate / weight, basis.name, weight, 0.1 * weight,
        )  # fmt: skip
    different = [
        f"{name} {getattr(basis.settings, name)} instead of {getattr(wanted, name)}"
        for name in _SETTINGS_TO_KEEP
        if getattr(basis.settings, name) != getattr(wanted, name)
    ]
    if different:
        raise SettingsError(
            f"basis.start_from: {basis.name} was trained with {', '.join(different)}. Set basis.activation and "
            "basis.query_mode to the same; a basis with other heads or reduction cannot be trained further."
        )
    if basis.settings.encoder_id != wanted.encoder_id:
        encoders = (basis.settings.encoder_id, wanted.encoder_id)
        logger.warning("%s was trained with the image encoder %s; this run continues with %s", basis.name, *encoders)
    return basis


def _find_saved(folder: Path, resume: str | None) -> dict[str, Any] | None:
    """The state to continue from; an existing run is never overwritten."""
    if resume == "latest":
        return load_latest(folder)
    if resume is not None:
        return load_checkpoint(Path(resume))
    if any(folder.glob("step-*")):  # damaged ones too
        raise OutputError(
            f"{folder.parent} contains the checkpoints of an earlier run. Continue it with --resume latest, or choose "
            "another run.name."
        )
    return None


def _build_encoders(
    config: TrainConfig, source: ModelSource, processes: Processes
) -> tuple[TrainingData, BatchEncoder, int]:
    """The data, the frozen encoders, and Q, the width of the query embedding."""
    device, dtype, settings = processes.device, DTYPES[config.base.dtype], config.router_settings()
    with logged(f"loading the image encoder {config.encoder.model}"):
        encoder = load_image_encoder(config.encoder.model, device=device)
    needs_images = not config.caches_embeddings and config.basis.query_mode not in GRID_QUERY_MODES
    data = open_training_data(config, encoder.preprocessing if needs_images else None)
    captions = cached_captions(config, source, data.prompts, processes)
    pairs = [*data.records, *data.examples]
    look_up = cached_embeddings(config, encoder, pairs, processes) if config.caches_embeddings else None
    with logged(f"loading the VAE of {source.components}"):
        vae = load_vae(source, dtype=dtype, device=device)
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


def _build_state(config: TrainConfig, source: ModelSource, query_dim: int, processes: Processes) -> TrainingState:
    """The base with a new basis (or that of `basis.start_from`) and its optimizer."""
    basis, quantize = config.basis, config.base.quantize
    packed = "" if quantize == "none" else f" and quantizing it to {quantize}"
    with logged(f"loading the base {source.transformer}{packed}"):
        transformer = load_transformer(config.base, source, processes.loading_device).train()
    shape = BasisShape(basis.basis_size, basis.rank, basis.key_dim, query_dim, basis.gain)
    model = TrainableKontext(
        transformer, shape, config.router_settings(),
        include=basis.include, seed=config.run.seed, device=processes.device,
    )  # fmt: skip
    if processes.device.type != "cpu":  # 0.8 GB instead of 19 GB per sample at full size; a step takes 45 % longer
        transformer.enable_gradient_checkpointing()
    if basis.start_from is not None:
        model.load_basis(load_start(basis.start_from, config))
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
