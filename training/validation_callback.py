"""What the loop calls to validate a run: a failure costs the validation, not the run."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch

from lorweb_core.errors import OutputError

from .config import TrainConfig
from .distributed import Processes
from .loop import TrainingState, is_out_of_memory
from .monitor import Monitor
from .validation import ValidationResult, ValidationStoppedError, Validator, averaged_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationCallback:
    """Validates a state with its averaged weights, and writes what comes of it.

    Attributes:
        validator: the fixed analogies.
        config: of the run.
        monitor: where numbers and pictures go.
        processes: all of them compute the same, the main one writes.
    """

    validator: Validator
    config: TrainConfig
    monitor: Monitor
    processes: Processes

    def __call__(self, state: TrainingState) -> None:
        """Validate the state of its step."""
        started = time.monotonic()
        with averaged_weights(state):
            values = self._values_if_it_fits(state)
        if self.processes.is_main and values is not None:
            self._write(values, state.step, started)
        self.processes.wait()

    def _values_if_it_fits(self, state: TrainingState) -> ValidationResult | None:
        try:
            return self.validator.compute(state.model)
        except ValidationStoppedError:
            logger.warning("the validation of step %d was stopped", state.step)
        except RuntimeError as error:
            if self.processes.world_size > 1 or not is_out_of_memory(error):
                raise
            logger.error(
                "no validation at step %d: out of memory (%s); set fewer validation.pictures or a smaller "
                "run.micro_batch_size", state.step, str(error)[:150],
            )  # fmt: skip
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _write(self, values: ValidationResult, step: int, started: float) -> None:
        folder = self.config.run_folder / "validation" / f"step-{step:09d}"
        try:
            values.write(folder)
        except (OSError, OutputError) as error:  # a full disk costs pictures, not the run
            logger.error("the validation of step %d is not written: %s", step, error)
        seconds = time.monotonic() - started
        self.monitor.log(step, values.numbers | {"validation/seconds": round(seconds, 3)})
        logger.info("validation at step %d: %s; %.0f s, %s", step, values.line(), seconds, folder)
        for path in sorted(folder.glob("*.png")):
            self.monitor.picture(step, f"validation/{path.stem}", path)
