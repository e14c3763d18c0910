"""Progress bar and metric loggers: one JSON line per logged step, TensorBoard, Weights & Biases if configured.

Numbers go to `metrics.jsonl` in any case, so a run can be read without any tracker. Where stderr is no terminal each
logged step is a line of the log instead of a bar. Only the main process logs.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lorweb_core.errors import SettingsError
from lorweb_core.images import read_image

from ..config.schema import TrackingConfig, TrainConfig

logger = logging.getLogger(__name__)
METRICS_FILE = "metrics.jsonl"


class Monitor:
    """Progress bar and trackers of a run; silent when `is_main` is False.

    Args:
        config: of the run.
        first_step: updates done before.
        is_main: whether this process logs.
    """

    def __init__(self, config: TrainConfig, *, first_step: int, is_main: bool) -> None:
        self._folder, self._is_main = config.run_folder, is_main
        self._first_step, self._steps, self._has_bar = first_step, config.run.steps, sys.stderr.isatty()
        hides = not is_main or not self._has_bar
        self._bar = tqdm(total=config.run.steps, initial=first_step, disable=hides, unit="step")
        self._writer = _tensorboard(config) if is_main else None
        self._wandb = _wandb(config) if is_main and config.tracking.wandb_project else None
        self._started = time.monotonic()
        self._step_seconds: list[float] = []

    def step(self, loss: float, seconds: float) -> None:
        """Advance the bar by a step that took so many seconds, validation and checkpoints not counted."""
        self._bar.set_postfix_str(f"loss {loss:.4f} · peak {peak_gib():.2f} GiB", refresh=False)
        self._bar.update()
        self._step_seconds.append(seconds)

    def seconds_per_step(self) -> float:
        """Return the mean over the steps since the last call (0 without a step)."""
        steps, self._step_seconds = self._step_seconds, []
        return sum(steps) / len(steps) if steps else 0.0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of a step everywhere; a full disk costs these numbers, not the run."""
        if not self._is_main:
            return
        seconds = time.monotonic() - self._started  # of everything, validation included, for the ETA
        if not self._has_bar and "train/seconds_per_step" in values:
            per_step = seconds / (step - self._first_step)
            logger.info(
                "step %d/%d: loss %.4f, lr %.3g, %.2f s/step, ETA %s", step, self._steps, values["train/loss"],
                values["train/learning_rate"], values["train/seconds_per_step"],
                timedelta(seconds=round(per_step * (self._steps - step))),
            )  # fmt: skip
        record = {"step": step, "seconds": round(seconds, 3), **values}
        numbers = {name: value if math.isfinite(value) else None for name, value in record.items()}  # JSON has no NaN
        try:
            with (self._folder / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(numbers) + "\n")
            if self._writer is not None:
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
        except OSError as error:
            logger.error("numbers of step %d are not written: %s", step, error)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Log an image file to the trackers."""
        if self._writer is None and self._wandb is None:
            return
        import numpy as np

        pixels = np.asarray(read_image(path))
        if self._writer is not None:
            self._writer.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Flush and close everything."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()


@contextmanager
def logged(what: str) -> Iterator[None]:
    """Log the start of something slow and, when it is done, how long it took."""
    logger.info("%s …", what)
    started = time.monotonic()
    yield
    logger.info("%s: %.1f s", what, time.monotonic() - started)


def peak_gib() -> float:
    """Return the peak memory so far in GiB: of the GPU, or of this process on a CPU (0 where unknown)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def require_trackers(config: TrackingConfig) -> None:
    """Raise a SettingsError if the package of a configured tracker is not installed."""
    if config.wandb_project is not None:
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise SettingsError(
                f"tracking.wandb_project is set, but wandb cannot be imported: {error}. Run `pip install wandb` and "
                "`wandb login`, or set tracking.wandb_project: null."
            ) from error


def _tensorboard(config: TrainConfig) -> Any:  # noqa: ANN401 (an optional package's class)
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("TensorBoard is not installed (pip install tensorboard); numbers go to %s only", METRICS_FILE)
        return None
    return SummaryWriter(str(config.run_folder / "tensorboard"))


def _wandb(config: TrainConfig) -> Any:  # noqa: ANN401 (an optional package's class)
    import wandb

    folder, values, project = str(config.run_folder), config.model_dump(mode="json"), config.tracking.wandb_project
    try:
        return wandb.init(project=project, name=config.run.name, dir=folder, config=values)
    except wandb.Error as error:
        raise SettingsError(
            f"The Weights & Biases project {project} cannot be logged to: {error}. Run `wandb login`, set "
            "WANDB_MODE=offline, or set tracking.wandb_project: null."
        ) from error
