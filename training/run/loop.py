"""The training loop: batch → encode → noise → forward → loss → backward → step → log, then maybe save and validate.

All random numbers are a function of (seed, step, row in the global batch), see `base.flow` and `data.pairing`. So
a resumed run, another number of processes and another micro-batch size make the same updates.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lorweb_core.errors import LoRWeBError, ModelError

from ..adapter.trainable import TrainableKontext
from ..base.flow import draw_sigma, sample_generator
from ..config.schema import TrainConfig
from .batches import BatchEncoder
from .data import DataLostError
from .distributed import Processes
from .memory import is_out_of_memory
from .monitor import Monitor, peak_gib
from .optimizers import EMA, set_learning_rate
from .signals import StoppedAtOnceError, StopRequest

logger = logging.getLogger(__name__)
MAX_GRADIENT_NORM = 1.0
MAX_BAD_STEPS = 20
#: Steps after which a micro-batch is known to fit in memory: the optimizer's moments exist from the first one on.
_STEPS_TO_FIT = 2


class DivergenceError(LoRWeBError):
    """Too many steps had a loss or gradient that is not finite."""


@dataclass
class TrainingState:
    """Everything that changes during a run.

    Attributes:
        model: the base with the basis; its trained weights change.
        optimizer: over them.
        ema: the EMA of the trained weights, or None.
        micro_batch_size: samples per forward pass; halved when memory runs out.
        step: updates done (skipped ones included).
        bad_steps: steps skipped because of non-finite numbers.
        fitted_steps: updates done with this micro-batch since the last validation, which uses memory differently;
            not saved.
    """

    model: TrainableKontext
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    micro_batch_size: int
    step: int = 0
    bad_steps: int = 0
    fitted_steps: int = 0


class Save(Protocol):
    """Writes the checkpoint of the state's step; with `is_last` a failure raises instead of being logged."""

    def __call__(self, state: TrainingState, *, is_last: bool = False) -> None: ...


@dataclass(frozen=True)
class Loop:
    """The fixed parts of a run.

    Attributes:
        config: of the run.
        processes: the process group.
        module: `state.model`, wrapped for data parallelism.
        encoder: the frozen encoders.
        batches: this process's share of one batch per step, from `state.step` on.
        monitor: progress bar and metrics.
        stop: set by signals.
        save: writes a checkpoint.
        validate: losses, images, router health.
        losses: of all steps so far.
    """

    config: TrainConfig
    processes: Processes
    module: nn.Module
    encoder: BatchEncoder
    batches: Generator[dict[str, Any], None, None]
    monitor: Monitor
    stop: StopRequest
    save: Save
    validate: Callable[[TrainingState], None]
    losses: list[float] = field(default_factory=list)

    def run(self, state: TrainingState) -> None:
        """Train until the last step or a request to stop; the state is saved at the end either way.

        Raises DivergenceError after too many bad steps; ModelError if a single sample does not fit in memory.
        """
        steps, validation, log_every = self.config.run.steps, self.config.validation, self.config.tracking.log_every
        if validation.every and state.step == 0:  # the baseline of the curves
            self.validate(state)
        try:
            while state.step < steps and not self._is_stopping():
                started = time.monotonic()
                loss, norm, rate = self.step(state)
                self.losses.append(loss)
                self.monitor.step(loss, time.monotonic() - started)
                is_last = state.step == steps
                if state.step % log_every == 0 or is_last:
                    window = self.losses[-log_every:]
                    metrics = {
                        "train/loss": sum(window) / len(window),
                        "train/gradient_norm": norm,
                        "train/learning_rate": rate,
                        "train/bad_steps": float(state.bad_steps),
                        "train/seconds_per_step": self.monitor.seconds_per_step(),
                        "train/peak_gib": peak_gib(),
                    }
                    self.monitor.log(state.step, metrics)
                if state.step % self.config.checkpoint.every == 0 or is_last:
                    self.save(state, is_last=is_last)
                if validation.every and (state.step % validation.every == 0 or is_last):
                    self.validate(state)
                    state.fitted_steps = 0
        except StoppedAtOnceError as error:
            self.stop.leaves_compiler = False
            if not self.stop.has_stepped:
                raise
            logger.warning("%s: saving and stopping", error)
        except DataLostError:
            if self.processes.world_size == 1:  # the others would wait for this process in vain
                self.save(state, is_last=True)
            raise
        self.save(state, is_last=True)

    def step(self, state: TrainingState) -> tuple[float, float, float]:
        """Make one update; returns (mean loss of the batch, gradient norm before clipping, learning rate).

        Out of memory halves the micro-batch and computes the step's gradients again with the same noise. DDP exchanges
        gradients during the backward pass, where a process that ran out of memory would leave the others waiting: until
        steps are known to fit, gradients are exchanged after it, when all processes know that all have succeeded.
        """
        config, processes, trained = self.config, self.processes, state.model.trained_parameters()
        fits = state.fitted_steps >= _STEPS_TO_FIT
        overlaps = fits and processes.world_size > 1 and not processes.is_sharded

        batch = next(self.batches)
        samples = len(batch["caption"])  # of this process
        first_row = processes.rank * samples
        while True:
            state.optimizer.zero_grad(set_to_none=True)
            total, problem = 0.0, ""
            loss: Tensor | None = None
            try:
                for start in range(0, samples, state.micro_batch_size):
                    rows = range(start, min(start + state.micro_batch_size, samples))
                    latents, conditioning = self.encoder.encode(batch, slice(rows.start, rows.stop))

                    generators = [sample_generator(config.run.seed, state.step, first_row + row) for row in rows]
                    drawn = torch.tensor([draw_sigma(config.flow.timesteps, generator) for generator in generators])
                    sigmas, weights = drawn.to(latents.device, torch.float32).unbind(1)
                    noise = torch.stack(
                        [torch.randn(latents.shape[1:], generator=generator) for generator in generators]
                    )
                    noise = noise.to(latents.device)

                    is_exchange = overlaps and rows.stop == samples
                    with processes.without_sync(self.module, is_last=is_exchange):
                        losses = self.module(latents, noise, sigmas, weights, conditioning, config.flow.copied_weight)
                        loss = losses.sum() / samples
                        del losses
                        loss.backward()
                    total += float(loss.detach())
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error)[:150]
            loss = None  # with it and the error's traceback go the activations that they keep alive
            if problem and (overlaps or processes.is_sharded or state.micro_batch_size == 1):
                raise ModelError(
                    f"Out of memory at {state.micro_batch_size} sample(s) per process ({problem}). Set a smaller "
                    "run.micro_batch_size (the batch stays, by accumulation), base.quantize: int8 or nf4, a smaller "
                    "data.resolution_px or text.max_tokens; then continue with --resume latest."
                )
            if overlaps:
                break
            if not processes.any(bool(problem)):
                processes.average_gradients(trained)
                break
            state.micro_batch_size, state.fitted_steps = (state.micro_batch_size + 1) // 2, 0
            state.optimizer.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.warning(
                "out of memory: the micro-batch is now %d; the batch of %d stays, by accumulation",
                state.micro_batch_size, config.run.batch_size,
            )  # fmt: skip

        norm = float(nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM))
        mean_loss = processes.mean(total)
        self.stop.waits_for_compiler = True
        rate = set_learning_rate(state.optimizer, config.optimizer.schedule, state.step, config.run.steps)
        if math.isfinite(norm):
            state.optimizer.step()
            if state.ema is not None:
                state.ema.update(state.model.trained_state())
        else:
            state.bad_steps += 1
            logger.warning("step %d: loss or gradient is not finite; skipped (%d so far)", state.step, state.bad_steps)
            if state.bad_steps > MAX_BAD_STEPS:
                raise DivergenceError(
                    f"{state.bad_steps} steps up to step {state.step} had a loss or gradient that is not finite. Lower "
                    "optimizer.learning_rate or basis.coefficient_gain and continue from the last checkpoint with "
                    "--resume latest; check the data with `python -m training.prepare check`."
                )
        state.step += 1
        state.fitted_steps += 1
        self.stop.has_stepped, self.stop.waits_for_compiler = True, processes.world_size > 1
        return mean_loss, norm, rate

    def _is_stopping(self) -> bool:
        is_stopping = self.processes.any(self.stop.reason is not None)
        if is_stopping:
            logger.warning("%s: saving and stopping", self.stop.reason or "another process was asked to stop")
        return is_stopping
