"""Validation of a run: losses at fixed noise, generated images beside the baseline of copying b, and router health.

The analogies, their noise and their noise levels never change within a run, so curves are smooth and comparable. Three
sets: held-out pairs of seen tasks, held-out tasks, and the user's own examples. A loss can fall while the images get
worse; what counts is PSNR and SSIM of the generated b′ compared with those of copying b. Every process computes the
same; the main one writes.
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
from ..config.schema import TrainConfig
from ..data.quadruplets import collate_quadruplets
from ..evaluation.metrics import psnr, ssim
from .batches import BatchEncoder
from .data import FixedSet
from .distributed import Processes
from .loop import TrainingState
from .memory import is_out_of_memory
from .monitor import Monitor

logger = logging.getLogger(__name__)
#: Noise levels of the validation loss.
SIGMAS = (0.25, 0.5, 0.75, 0.98)
SAMPLING_GUIDANCE = 2.5
#: Steps of training noise start at 0; validation noise must never be one of them.
_NOISE_STEP = -1
#: Where b′ differs from b by more than this in some channel (0-1), the edit changes the image.
_CHANGED = 8 / 255
#: Task or example, and images a | a′ | b | generated b′ | b′ (None where unknown), [h, w, 3] float 0–1.
Row = tuple[str, list[Any]]
_COLUMNS = ("a", "a'", "b", "b' generated", "b' true")


class ValidationStoppedError(Exception):
    """The run was asked to stop in the middle of a validation; what was computed so far is dropped."""


@dataclass(frozen=True)
class ValidationResult:
    """The result of one validation.

    Attributes:
        numbers: by the name they have in the metrics.
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
        sets: dict[str, dict[str, float]] = {name: {} for name in self.rows}
        for key, value in self.numbers.items():
            if key.startswith("validation/"):
                _, name, *number = key.split("/")
                sets.setdefault(name, {})["".join(number)] = value
        texts = []
        for name, own in sets.items():
            parts = [f"{len(self.rows[name])} image(s)"] if name in self.rows and "psnr" not in own else []
            if "psnr" in own:
                copied = f"copying b: {own['copy_b_psnr']:.1f} dB, {own['copy_b_ssim']:.2f}"
                parts.append(f"b' {own['psnr']:.1f} dB, SSIM {own['ssim']:.2f} ({copied})")
            if "changed_psnr" in own:
                parts.append(f"where it changes {own['changed_psnr']:.1f} dB ({own['copy_b_changed_psnr']:.1f} dB)")
            if f"loss_{SIGMAS[-1]}" in own:
                parts.append(f"loss {own['']:.3f} ({own[f'loss_{SIGMAS[-1]}']:.3f} at sigma {SIGMAS[-1]})")
            texts.append(f"{name}: {', '.join(parts)}")
        return "; ".join(texts) or "no analogies"

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


@dataclass
class Validator:
    """Fixed analogies, and what is computed of them.

    Attributes:
        sets: name (`seen`, `held_out`, `examples`) → items.
        encoder: the frozen encoders.
        config: of the run.
        schedule: sigmas of sampling.
        monitor: where numbers and images are logged.
        processes: the process group.
        is_stopping: asked before every forward pass, since minutes lie between the first and the last.
    """

    sets: dict[str, FixedSet]
    encoder: BatchEncoder
    config: TrainConfig
    schedule: SigmaSchedule
    monitor: Monitor
    processes: Processes
    is_stopping: Callable[[], bool]
    _last_coefficients: Tensor | None = None

    def __call__(self, state: TrainingState) -> None:
        """Validate a state, with its EMA weights if there are any; a failure costs the validation, not the run."""
        started, step = time.monotonic(), state.step
        result = None
        try:
            with ema_weights(state):
                result = self.compute(state.model)
        except ValidationStoppedError:
            logger.warning("the validation of step %d was stopped", step)
        except RuntimeError as error:
            if self.processes.world_size > 1 or not is_out_of_memory(error):
                raise
            logger.error(
                "no validation at step %d: out of memory (%s); set fewer validation.images or a smaller "
                "run.micro_batch_size", step, str(error)[:150],
            )  # fmt: skip
        if result is None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if result is not None and self.processes.is_main:
            folder = self.config.run_folder / "validation" / f"step-{step:09d}"
            try:
                result.write(folder)
            except (OSError, OutputError) as error:  # such as a full disk
                logger.error("the validation of step %d is not written: %s", step, error)
            seconds = time.monotonic() - started
            self.monitor.log(step, result.numbers | {"validation/seconds": round(seconds, 3)})
            logger.info("validation at step %d: %s; %.0f s, %s", step, result.line(), seconds, folder)
            for path in sorted(folder.glob("*.png")):
                self.monitor.image(step, f"validation/{path.stem}", path)
        self.processes.wait()

    def compute(self, model: TrainableKontext) -> ValidationResult:
        """Return losses, images with their scores, and router health; the same on every process.

        Raises ValidationStoppedError.
        """
        rows = {name: self.images(model, name) for name in self.sets if self.config.validation.images}
        rows = {name: of_set for name, of_set in rows.items() if of_set}
        numbers = self.losses(model)
        for name, of_set in rows.items():
            numbers |= {f"validation/{name}/{key}": value for key, value in image_scores(of_set).items()}
        health = self.health(model)
        return ValidationResult(numbers | (health.numbers() if health else {}), rows, health, tuple(model.linears))

    @torch.no_grad()
    def losses(self, model: TrainableKontext) -> dict[str, float]:
        """Return `validation/<set>/loss_<sigma>`, the loss of b′'s quadrant, and `validation/<set>`, their mean.

        The other quadrants are copied from the context; three times as large, they would hide what happens to b′.
        """
        values = {}
        for name, batches in self._batches.items():
            of_batches = [torch.empty(len(SIGMAS), 0)]
            for batch, positions in batches:
                latents, conditioning = self.encoder.encode(batch, slice(None))
                noise, ones = self._noise(latents, positions), torch.ones(len(positions), device=latents.device)
                of_sigmas = []
                for sigma in SIGMAS:
                    self._stop_if_asked()
                    of_sigmas.append(model(latents, noise, ones * sigma, ones, conditioning, copied_weight=0.0))
                of_batches.append(torch.stack(of_sigmas).cpu()[:, self._answered(name, positions)])
            losses = torch.cat(of_batches, 1)
            if losses.numel():
                values[f"validation/{name}"] = float(losses.mean())
                for sigma, loss in zip(SIGMAS, losses.mean(1).tolist(), strict=True):
                    values[f"validation/{name}/loss_{sigma:g}"] = loss
        return values

    @torch.no_grad()
    def images(self, model: TrainableKontext, name: str) -> list[Row]:
        """Generate b′ of a set's first analogies (of the examples all); returns rows of a sheet."""
        rows: list[Row] = []
        for batch, positions in self._batches.get(name, []):
            room = len(positions) if name == "examples" else self.config.validation.images - len(rows)
            if room <= 0:
                break
            chosen = positions[:room]
            latents, conditioning = self.encoder.encode(batch, slice(0, len(chosen)))
            conditioning = replace(conditioning, guidance=SAMPLING_GUIDANCE)

            def predict(x: Tensor, sigma: Tensor, conditioning: Any = conditioning) -> Tensor:  # noqa: ANN401
                self._stop_if_asked()
                return model.predict(x, sigma, conditioning)

            sigmas = self.schedule.sigmas(self.config.validation.image_steps, target_tokens(latents))
            generated = sample_latents(predict, self._noise(latents, chosen), sigmas)
            answers = quadrants(self.encoder.vae.decode(generated))[3]
            truth = quadrants(batch["target"][: len(chosen)].permute(0, 2, 3, 1).float() / 255)
            for row, is_known in enumerate(self._answered(name, chosen)):
                a, a_prime, b, b_prime = (part[row] for part in truth)
                rows.append((batch["task"][row], [a, a_prime, b, answers[row], b_prime if is_known else None]))
        return rows

    @torch.no_grad()
    def health(self, model: TrainableKontext) -> RouterHealth | None:
        """Return the router's health over all validation analogies; None when there are none."""
        batches = [batch for group in self._batches.values() for batch, _ in group]
        if not batches:
            return None
        queries = torch.cat([self.encoder.query_embeddings(batch, slice(None)) for batch in batches])
        coefficients = (model.router(queries.to(model.router.keys.device)) / model.router.gain).cpu()
        health = router_health(coefficients, self._last_coefficients)
        self._last_coefficients = coefficients
        return health

    @cached_property
    def _batches(self) -> dict[str, list[tuple[dict[str, Any], list[int]]]]:
        """Collated batches with the items' positions; unreadable images are left out."""
        found: dict[str, list[tuple[dict[str, Any], list[int]]]] = {name: [] for name in self.sets}
        for name, fixed in self.sets.items():
            for positions in fixed.batches:
                items = [fixed.dataset[position] for position in positions]
                present = [position for position, item in zip(positions, items, strict=True) if item is not None]
                if present:
                    found[name].append((collate_quadruplets(items), present))
        return found

    def _answered(self, name: str, positions: Sequence[int]) -> list[bool]:
        return [position not in self.sets[name].unanswered for position in positions]

    def _noise(self, latents: Tensor, positions: Sequence[int]) -> Tensor:
        generators = [sample_generator(self.config.run.seed, _NOISE_STEP, position) for position in positions]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
        return noise.to(latents.device)

    def _stop_if_asked(self) -> None:
        if self.is_stopping():
            raise ValidationStoppedError


@contextmanager
def ema_weights(state: TrainingState) -> Iterator[None]:
    """Give the model its EMA weights for a while; without an EMA nothing changes."""
    if state.ema is None:
        yield
        return
    trained = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.model.trained_state().items()}
    state.model.load_trained_state(state.ema.tensors)
    try:
        yield
    finally:
        state.model.load_trained_state(trained)


def image_scores(rows: Sequence[Row]) -> dict[str, float]:
    """Mean PSNR (dB; also of the pixels that the edit changes) and SSIM of generated b′, and those of copying b."""
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
