"""The loop: batch → noise → forward → loss → backward → step → log → maybe validate, maybe save.

Everything random in a step is a function of (seed, step, place in the batch), see `flow` and `data.drawing`; so a
resumed run, another number of processes and another micro-batch size all do the same updates.
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
from ..data.index import DataError
from .batches import BatchEncoder
from .distributed import Processes
from .memory import is_out_of_memory
from .monitor import Monitor, peak_gib
from .optimizers import EMA, set_learning_rate
from .signals import StoppedAtOnceError, StopRequest

logger = logging.getLogger(__name__)
#: The second one has the optimizer's moments beside it.
_STEPS_TO_BE_SURE = 2
MAX_GRADIENT_NORM = 1.0
MAX_BAD_STEPS = 20
#: How torch says that a loading process is gone; the system has killed it as a rule.
_LOADER_GONE = ("DataLoader worker (pid", "Pin memory thread")
#: How torch begins to tell of an error that a living loading process has met.
_ERROR_IN_LOADER = "Caught "


class DivergenceError(LoRWeBError):
    """Too many steps had a loss or gradient that is not finite."""


@dataclass
class TrainingState:
    """Everything that changes during a run, and nothing else.

    Attributes:
        model: the base with the basis; its trained weights change.
        optimizer: over them.
        ema: the EMA of the trained weights, or None.
        step: updates done (skipped ones included).
        bad_steps: steps skipped because of non-finite numbers.
        micro_batch_size: samples per forward pass; halved when memory runs out.
        fitted_steps: updates done with this micro-batch since memory was last used in another way; not saved.
    """

    model: TrainableKontext
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    micro_batch_size: int
    step: int = 0
    bad_steps: int = 0
    fitted_steps: int = 0

    @property
    def has_fitted(self) -> bool:
        """Whether a step is known to fit; the first one does not show it, as the optimizer's moments come after it."""
        return self.fitted_steps >= _STEPS_TO_BE_SURE


class SaveCallback(Protocol):
    """Writes a checkpoint."""

    def __call__(self, state: TrainingState, *, is_last: bool = False) -> None:
        """Write that of the state's step."""


@dataclass(frozen=True)
class Callbacks:
    """What the loop calls on the side; each is given the state after a finished step.

    Attributes:
        save: writes a checkpoint; with `is_last` a failure is an error.
        validate: losses, pictures, router health.
    """

    save: SaveCallback
    validate: Callable[[TrainingState], None]


@dataclass(frozen=True)
class Loop:
    """The fixed parts of a run.

    Attributes:
        config: of the run.
        processes: the process group.
        module: `state.model`, wrapped for data parallelism.
        encoder: the frozen encoders.
        batches: this process's share of one batch per step, from `state.step` on.
        monitor: where numbers go.
        stop: set by signals.
        callbacks: saving and validating.
    """

    config: TrainConfig
    processes: Processes
    module: nn.Module
    encoder: BatchEncoder
    batches: Generator[dict[str, Any], None, None]
    monitor: Monitor
    stop: StopRequest
    callbacks: Callbacks
    losses: list[float] = field(default_factory=list)

    def run(self, state: TrainingState) -> None:
        """Train until the last step or until somebody asks to stop; the state is saved at the end either way.

        Raises: DivergenceError: after too many bad steps. ModelError: when one sample alone does not fit in memory.
        """
        config = self.config
        if config.validation.every and state.step == 0:  # what training starts from, to compare with
            self.callbacks.validate(state)
        try:
            while state.step < config.run.steps and not self._is_stopping():
                started = time.monotonic()
                batch = self._next_batch(state)
                loss, norm = self._accumulate(state, batch)
                self.stop.waits_for_compiler = True
                rate = self._update(state, norm)
                state.step += 1
                state.fitted_steps += 1
                self.stop.has_stepped, self.stop.waits_for_compiler = True, self.processes.world_size > 1
                self._report(state, loss, norm, rate, time.monotonic() - started)
                is_last = state.step == config.run.steps
                if state.step % config.checkpoint.every == 0 or is_last:
                    self.callbacks.save(state, is_last=is_last)
                if config.validation.every and (state.step % config.validation.every == 0 or is_last):
                    self.callbacks.validate(state)
                    state.fitted_steps = 0
        except StoppedAtOnceError as error:
            if not self.stop.has_stepped:
                raise
            logger.warning("%s: saving and stopping", error)
        self.callbacks.save(state, is_last=True)

    def _next_batch(self, state: TrainingState) -> dict[str, Any]:
        """Return this process's share of the step's batch; without loading processes the state is saved first."""
        try:
            return next(self.batches)
        except (RuntimeError, ConnectionError, EOFError) as error:
            is_told = any(text in str(error) for text in _LOADER_GONE)
            if str(error).startswith(_ERROR_IN_LOADER) or (isinstance(error, RuntimeError) and not is_told):
                raise
            if self.processes.world_size == 1:
                self.callbacks.save(state, is_last=True)
            raise DataError(
                expected="the processes that load pictures to live as long as the run",
                got=f"one that was ended from outside ({type(error).__name__}: {str(error)[:150]})",
                remedy="It lacked memory as a rule: in a container give more shared memory (docker run --shm-size 8g), "
                "or lower data.workers (0 loads in the main process); then --resume latest.",
            ) from error

    def _is_stopping(self) -> bool:
        is_stopping = self.processes.any(self.stop.reason is not None)
        if is_stopping:
            logger.warning("%s: saving and stopping", self.stop.reason or "another process was asked to stop")
        return is_stopping

    def _accumulate(self, state: TrainingState, batch: dict[str, Any]) -> tuple[float, float]:
        """Add up the gradients of a whole batch; returns (mean loss, gradient norm), halving what does not fit."""
        while (loss := self._forward_backward_if_it_fits(state, batch)) is None:
            self._halve_micro_batch(state)
        norm = nn.utils.clip_grad_norm_(state.model.trained_parameters(), MAX_GRADIENT_NORM)
        return self.processes.mean(loss), float(norm)

    def _forward_backward_if_it_fits(self, state: TrainingState, batch: dict[str, Any]) -> float | None:
        """Return the mean loss of this process's share, gradients being those of all; None: halve and try again.

        Data-parallel gradients are exchanged while the backward pass runs, which a process without memory would leave
        waiting. So until steps are known to fit they are exchanged after it, when all processes know that all are done.
        """
        overlaps = self.processes.world_size > 1 and not self.processes.is_sharded and state.has_fitted
        problem = None
        try:
            loss = self._forward_backward(state, batch, exchanges=overlaps)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error)[:150]
        # From here on the error and its traceback are gone, and with them the activations that they kept alive.
        if problem is not None and (overlaps or self.processes.is_sharded or state.micro_batch_size == 1):
            raise _too_large(state, problem)
        if overlaps:
            return loss
        if self.processes.any(problem is not None):
            return None
        self.processes.average_gradients(state.model.trained_parameters())
        return loss

    def _forward_backward(self, state: TrainingState, batch: dict[str, Any], *, exchanges: bool) -> float:
        state.optimizer.zero_grad(set_to_none=True)
        samples = len(batch["caption"])
        starts = range(0, samples, state.micro_batch_size)
        total = 0.0
        for start in starts:
            rows = slice(start, min(start + state.micro_batch_size, samples))
            with self.processes.without_sync(self.module, is_last=exchanges and start == starts[-1]):
                loss = self._losses(state.step, batch, rows).sum() / samples
                loss.backward()
            total += float(loss.detach())
        return total

    def _losses(self, step: int, batch: dict[str, Any], rows: slice) -> Tensor:
        """Losses [B] of some rows of this process's share."""
        flow, offset = self.config.flow, self.processes.rank * len(batch["caption"])
        generators = [
            sample_generator(self.config.run.seed, step, offset + row) for row in range(rows.start, rows.stop)
        ]
        latents, conditioning = self.encoder.encode(batch, rows)
        drawn = [draw_sigma(flow.timesteps, generator) for generator in generators]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
        sigmas, weights = torch.tensor(drawn, dtype=torch.float32, device=latents.device).unbind(1)
        return self.module(latents, noise.to(latents.device), sigmas, weights, conditioning, flow.copied_weight)

    def _halve_micro_batch(self, state: TrainingState) -> None:
        """Halve the micro-batch; the gradients of this step are computed anew with the same noise."""
        state.optimizer.zero_grad(set_to_none=True)
        state.micro_batch_size = (state.micro_batch_size + 1) // 2
        state.fitted_steps = 0
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        logger.warning(
            "out of memory: micro-batch is now %d; the batch of %d stays, by accumulation",
            state.micro_batch_size,
            self.config.run.batch_size,
        )

    def _update(self, state: TrainingState, norm: float) -> float:
        """Move the weights unless a gradient is not finite; returns the learning rate."""
        config = self.config
        rate = set_learning_rate(state.optimizer, config.optimizer.schedule, state.step, config.run.steps)
        if not math.isfinite(norm):
            state.bad_steps += 1
            logger.warning("step %d: loss or gradient is not finite; skipped (%d so far)", state.step, state.bad_steps)
            self._stop_if_diverged(state)
            return rate
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update(state.model.trained_state())
        return rate

    def _stop_if_diverged(self, state: TrainingState) -> None:
        if state.bad_steps > MAX_BAD_STEPS:
            raise DivergenceError(
                f"{state.bad_steps} steps up to step {state.step} had a loss or gradient that is not finite. Lower "
                "optimizer.learning_rate or basis.coefficient_gain and continue from the last checkpoint with --resume "
                "latest; check the data with `python -m training.prepare check`."
            )

    def _report(self, state: TrainingState, loss: float, norm: float, rate: float, seconds: float) -> None:
        self.losses.append(loss)
        self.monitor.step(loss, seconds)
        if state.step % self.config.tracking.log_every and state.step != self.config.run.steps:
            return
        window = self.losses[-self.config.tracking.log_every :]
        values = {
            "train/loss": sum(window) / len(window),
            "train/gradient_norm": norm,
            "train/learning_rate": rate,
            "train/bad_steps": float(state.bad_steps),
            "train/seconds_per_step": self.monitor.seconds_per_step(),
            "train/peak_gib": peak_gib(),
        }
        self.monitor.log(state.step, values)


def _too_large(state: TrainingState, problem: str) -> ModelError:
    return ModelError(
        expected="a micro-batch of the configured size to fit in memory",
        got=f"out of memory at {state.micro_batch_size} sample(s) per process ({problem})",
        remedy="Set a smaller run.micro_batch_size (batches are accumulated, results stay equal), "
        "base.quantize: int8 or nf4, a smaller data.resolution_px or text.max_tokens; then --resume latest.",
    )
