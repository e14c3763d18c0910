"""Validation of a run: losses at fixed noise and sigmas, generated images beside the baseline, and the router's health.

The analogies, their noise and their sigmas never change within a run, so curves are smooth and comparable. Three sets:
held-out pairs of seen tasks, held-out tasks, and the user's own examples. A loss can fall while the images get worse:
what counts is PSNR and SSIM of the generated b′ against those of b itself, which anybody gets by copying. Every process
computes the same; the main one writes.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorweb_core.errors import OutputError
from lorweb_core.files import write_text_atomically

from ..adapter.health import RouterHealth, draw_use, router_health
from ..adapter.trainable import TrainableKontext
from ..base.flow import SigmaSchedule, sample_generator, sample_latents, target_tokens
from ..base.sheets import contact_sheet, quadrants
from ..config.schema import TrainConfig, ValidationConfig
from ..data.quadruplets import collate_quadruplets
from ..evaluation.metrics import psnr, ssim
from .batches import BatchEncoder
from .data import FixedSet
from .distributed import Processes
from .loop import TrainingState
from .memory import is_out_of_memory
from .monitor import Monitor

# Sheets of images with names, a row per example under column heads; for validation, sampling and evaluation.


#: Steps of training noise start at 0; validation noise must never be one of them.
_NOISE_STEP = -1
#: Noise levels of the validation loss.
SIGMAS = (0.25, 0.5, 0.75, 0.98)
SAMPLING_GUIDANCE = 2.5
#: Where b′ differs from b by more than this in some channel (0-1) lies the edit.
_CHANGED = 8 / 255
#: Task or example, and images a | a′ | b | generated b′ | b′ (None where unknown), [h, w, 3] float 0–1.
Row = tuple[str, list[Any]]
_COLUMNS = ("a", "a'", "b", "b' generated", "b' true")


@dataclass(frozen=True)
class ValidationResult:
    """What one validation gave.

    Attributes:
        numbers: by name for trackers.
        rows: set → rows of a sheet.
        health: of the router, None without validation analogies.
        layer_names: of the rows of `health.use`.
    """

    numbers: dict[str, float]
    rows: dict[str, list[Row]]
    health: RouterHealth | None
    layer_names: tuple[str, ...]

    def line(self) -> str:
        """Return the numbers of every set in words, for the log."""
        parts = []
        for name in dict.fromkeys([*self.rows, *(key.split("/")[1] for key in self.numbers if key.startswith("val"))]):
            own = {
                key.split("/")[2]: value for key, value in self.numbers.items() if key.startswith(f"validation/{name}/")
            }
            told = [f"{len(self.rows[name])} image(s)"] if name in self.rows else []
            if "psnr" in own:
                told = [
                    f"b' {own['psnr']:.1f} dB, SSIM {own['ssim']:.2f} (copying b: {own['copy_b_psnr']:.1f} dB, "
                    f"{own['copy_b_ssim']:.2f})"
                ]
            if "changed_psnr" in own:
                told.append(f"where it changes {own['changed_psnr']:.1f} dB ({own['copy_b_changed_psnr']:.1f} dB)")
            if noisiest := max((float(key.removeprefix("loss_")) for key in own if "loss_" in key), default=None):
                at_most = f"{own[f'loss_{noisiest:g}']:.3f} at sigma {noisiest:g}"
                told.append(f"loss {self.numbers[f'validation/{name}']:.3f} ({at_most})")
            parts.append(f"{name}: {', '.join(told)}")
        return "; ".join(parts) or "no analogies"

    def write(self, folder: Path) -> None:
        """Write `grids-<set>.png`, `numbers.json`, `router.png` and `router.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.rows.items():
            contact_sheet(_COLUMNS, rows).save(folder / f"grids-{name}.png")
        finite = {name: value if math.isfinite(value) else None for name, value in self.numbers.items()}
        write_text_atomically(folder / "numbers.json", json.dumps(finite, indent=1))
        if self.health is not None:
            draw_use(self.health, self.layer_names, folder / "router.png")
            use = dict(zip(self.layer_names, self.health.use.tolist(), strict=True))
            write_text_atomically(folder / "router.json", json.dumps({"use_per_adapter": use}, indent=1))


@contextmanager
def ema_weights(state: TrainingState) -> Iterator[None]:
    """Let the model have its EMA's weights for a while; without one nothing changes."""
    if state.ema is None:
        yield
        return
    trained = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.model.trained_state().items()}
    state.model.load_trained_state(state.ema.tensors)
    try:
        yield
    finally:
        state.model.load_trained_state(trained)


class ValidationStoppedError(Exception):
    """The run was asked to stop in the middle of a validation; what was computed so far is dropped."""


def leave_if(is_stopping: bool) -> None:
    """Raise a ValidationStoppedError if somebody asked the run to stop."""
    if is_stopping:
        raise ValidationStoppedError


@dataclass
class Validator:
    """Fixed analogies and what is computed of them.

    Attributes:
        sets: name (`seen`, `held_out`, `examples`) → items.
        encoder: the frozen encoders.
        config: sigmas, numbers of pictures and steps.
        schedule: sigmas for pictures.
        seed: of the noise.
        pause: called before every forward pass, minutes lie between the first and the last; it may raise
            ValidationStoppedError.
    """

    sets: dict[str, FixedSet]
    encoder: BatchEncoder
    config: ValidationConfig
    schedule: SigmaSchedule
    seed: int
    pause: Callable[[], None] = lambda: None
    _last_coefficients: Tensor | None = None

    def losses(self, model: TrainableKontext) -> dict[str, float]:
        """Return `validation/<set>/loss_<sigma>`, the error of b′'s quadrant, and `validation/<set>`, their mean.

        The other quadrants are copied from the context; three times as large, they would hide what b′ does.
        """
        values = {}
        for name, batches in self._batches.items():
            losses = [
                self._batch_losses(model, batch, places)[:, self._answered(name, places)] for batch, places in batches
            ]
            errors = torch.cat([torch.empty(len(SIGMAS), 0), *losses], 1)
            if errors.numel():
                values[f"validation/{name}"] = float(errors.mean())
                for sigma, loss in zip(SIGMAS, errors.mean(1).tolist(), strict=True):
                    values[f"validation/{name}/loss_{sigma:g}"] = loss
        return values

    @torch.no_grad()
    def health(self, model: TrainableKontext) -> RouterHealth | None:
        """Return the router's health over all validation analogies; None when there are none."""
        batches = [batch for group in self._batches.values() for batch, _ in group]
        if not batches:
            return None
        queries = torch.cat([self.encoder.query_embeddings(batch, slice(None)) for batch in batches])
        device = model.router.keys.device
        coefficients = (model.router(queries.to(device)) / model.router.gain).cpu()
        health = router_health(coefficients, self._last_coefficients)
        self._last_coefficients = coefficients
        return health

    @torch.no_grad()
    def pictures(self, model: TrainableKontext, name: str) -> list[Row]:
        """Return the rows of a set's first analogies (of the examples all)."""
        rows: list[Row] = []
        for batch, places in self._batches.get(name, []):
            room = len(places) if name == "examples" else self.config.images - len(rows)
            if room > 0:
                drawn = self._draw(model, batch, places[:room])
                answered = self._answered(name, places[:room])
                rows += [
                    (task, row if is_known else [*row[:4], None])
                    for task, row, is_known in zip(batch["task"], drawn, answered, strict=False)
                ]
        return rows

    def compute(self, model: TrainableKontext) -> ValidationResult:
        """Return losses, pictures and router health; the same on every process.

        Raises: ValidationStoppedError: when `pause` does.
        """
        rows = {name: self.pictures(model, name) for name in self.sets if self.config.images}
        rows = {name: of_set for name, of_set in rows.items() if of_set}
        numbers = self.losses(model)
        for name, of_set in rows.items():
            numbers |= {f"validation/{name}/{key}": value for key, value in _image_scores(of_set).items()}
        health = self.health(model)
        return ValidationResult(numbers | (health.numbers() if health else {}), rows, health, tuple(model.linears))

    def _answered(self, name: str, places: Sequence[int]) -> list[bool]:
        return [place not in self.sets[name].unanswered for place in places]

    @cached_property
    def _batches(self) -> dict[str, list[tuple[dict[str, Any], list[int]]]]:
        """Collated batches with the items' positions; broken pictures are left out."""
        return {name: _read_batches(fixed) for name, fixed in self.sets.items()}

    @torch.no_grad()
    def _batch_losses(self, model: TrainableKontext, batch: dict[str, Any], places: Sequence[int]) -> Tensor:
        latents, conditioning = self.encoder.encode(batch, slice(None))
        noise = self._noise(latents, places)
        ones = torch.ones(len(noise), device=noise.device)
        per_sigma = []
        for sigma in SIGMAS:
            self.pause()
            per_sigma.append(model(latents, noise, ones * sigma, ones, conditioning, copied_weight=0.0))
        return torch.stack(per_sigma).cpu()

    def _draw(self, model: TrainableKontext, batch: dict[str, Any], places: Sequence[int]) -> list[list[Tensor]]:
        latents, conditioning = self.encoder.encode(batch, slice(0, len(places)))
        conditioning = replace(conditioning, guidance=SAMPLING_GUIDANCE)
        sigmas = self.schedule.sigmas(self.config.image_steps, target_tokens(latents))

        def predict(x: Tensor, sigma: Tensor) -> Tensor:
            self.pause()
            return model.predict(x, sigma, conditioning)

        generated = sample_latents(predict, self._noise(latents, places), sigmas)
        answers = quadrants(self.encoder.vae.decode(generated))[3]
        targets = batch["target"][: len(places)].permute(0, 2, 3, 1).float() / 255
        a, a_prime, b, b_prime = quadrants(targets)
        return [list(row) for row in zip(a, a_prime, b, answers, b_prime, strict=True)]

    def _noise(self, latents: Tensor, places: Sequence[int]) -> Tensor:
        drawn = [
            torch.randn(latents.shape[1:], generator=sample_generator(self.seed, _NOISE_STEP, place))
            for place in places
        ]
        return torch.stack(drawn).to(latents.device)


def _image_scores(rows: Sequence[Row]) -> dict[str, float]:
    """Mean PSNR (dB, also over the pixels that the edit changes) and SSIM of generated b′, and the same of b itself."""
    found: dict[str, list[float]] = {}
    for _, (_, _, b, generated, b_prime) in rows:
        if b_prime is None:
            continue
        b, b_prime = b.cpu(), b_prime.cpu()
        is_changed = (b_prime - b).abs().amax(-1) > _CHANGED
        for prefix, image in (("", generated.clamp(0, 1).cpu()), ("copy_b_", b)):
            found.setdefault(f"{prefix}psnr", []).append(psnr(image, b_prime))
            if isinstance(similarity := ssim(image, b_prime), float):
                found.setdefault(f"{prefix}ssim", []).append(similarity)
            if is_changed.any():
                changed = psnr(image[is_changed], b_prime[is_changed])
                found.setdefault(f"{prefix}changed_psnr", []).append(changed)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _read_batches(fixed: FixedSet) -> list[tuple[dict[str, Any], list[int]]]:
    batches = []
    for positions in fixed.batches:
        items = [(position, fixed.dataset[position]) for position in positions]
        present = [position for position, item in items if item is not None]
        if present:
            batches.append((collate_quadruplets([item for _, item in items]), present))
    return batches


# What the loop calls to validate a run: a failure costs the validation, not the run.


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
        with ema_weights(state):
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
                "no validation at step %d: out of memory (%s); set fewer validation.images or a smaller "
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
