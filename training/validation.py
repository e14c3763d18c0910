"""Looking at a run from outside: losses at fixed noise and sigmas, pictures, and the router's health.

The analogies, their noise and their sigmas never change within a run, so curves are smooth and comparable. Two sets:
held-out pairs of seen tasks, and held-out tasks. Every process computes the same; the main one writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorweb_core.files import write_text_atomically

from .batches import BatchEncoder
from .config import ValidationConfig
from .data.quadruplets import collate_quadruplets
from .flow import sample_generator
from .health import RouterHealth, draw_use, router_health
from .loop import TrainingState
from .previews import contact_sheet, quadrants
from .sampling import SigmaSchedule, sample_latents, target_tokens
from .trainable import Conditioning, TrainableKontext
from .training_data import FixedSet

#: Steps of training noise start at 0; validation noise must never be one of them.
_NOISE_STEP = -1


@dataclass(frozen=True)
class ValidationResult:
    """What one look at a run gave.

    Attributes:
        losses: by name for trackers.
        rows: set → rows of pictures a | a′ | b | b̂′ | b′.
        health: of the router, None without validation analogies.
        layer_names: of the rows of `health.use`.
    """

    losses: dict[str, float]
    rows: dict[str, list[list[Tensor]]]
    health: RouterHealth | None
    layer_names: tuple[str, ...]

    @property
    def numbers(self) -> dict[str, float]:
        """Everything for trackers."""
        return self.losses | (self.health.numbers() if self.health is not None else {})

    def write(self, folder: Path) -> None:
        """Write `grids-<set>.png`, `numbers.json`, `router.png` and `router.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.rows.items():
            contact_sheet(rows).save(folder / f"grids-{name}.png")
        write_text_atomically(folder / "numbers.json", json.dumps(self.numbers, indent=1))
        if self.health is not None:
            draw_use(self.health, folder / "router.png")
            use = dict(zip(self.layer_names, self.health.use.tolist(), strict=True))
            write_text_atomically(folder / "router.json", json.dumps({"use_per_adapter": use}, indent=1))


@contextmanager
def averaged_weights(state: TrainingState) -> Iterator[None]:
    """Let the model have its moving average's weights for a while; without one nothing changes."""
    if state.average is None:
        yield
        return
    trained = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.model.trained_state().items()}
    state.model.load_trained_state(state.average.tensors)
    try:
        yield
    finally:
        state.model.load_trained_state(trained)


class ValidationStoppedError(Exception):
    """Somebody asked the run to stop in the middle of a validation; what is done so far is let go of."""


def leave_if(is_stopping: bool) -> None:
    """Raise a ValidationStoppedError if somebody asked the run to stop."""
    if is_stopping:
        raise ValidationStoppedError


@dataclass
class Validator:
    """Fixed analogies and how they are looked at.

    Attributes:
        sets: name (`seen`, `held_out`) → items.
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
        """Return `validation/<set>` → mean squared error over items, sigmas and positions (weights 1)."""
        values = {}
        for name, batches in self._batches.items():
            losses = [self._batch_losses(model, batch, places) for batch, places in batches]
            if losses:
                values[f"validation/{name}"] = float(torch.cat(losses).mean())
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
    def pictures(self, model: TrainableKontext, name: str) -> list[list[Tensor]]:
        """Return rows a | a′ | b | b̂′ | b′ of a set's first analogies, [h, w, 3] float 0–1."""
        rows: list[list[Tensor]] = []
        for batch, places in self._batches.get(name, []):
            room = self.config.pictures - len(rows)
            if room > 0:
                rows += self._draw(model, batch, places[:room])
        return rows

    def compute(self, model: TrainableKontext) -> ValidationResult:
        """Return losses, pictures and router health; the same on every process.

        Raises: ValidationStoppedError: when `pause` does.
        """
        rows = {name: self.pictures(model, name) for name in self.sets if self.config.pictures}
        losses = self.losses(model)
        return ValidationResult(losses, {name: row for name, row in rows.items() if row}, self.health(model),
                                tuple(model.linears))  # fmt: skip

    @cached_property
    def _batches(self) -> dict[str, list[tuple[dict[str, Any], list[int]]]]:
        """Collated batches with the items' positions; broken pictures are left out."""
        return {name: _read_batches(fixed) for name, fixed in self.sets.items()}

    @torch.no_grad()
    def _batch_losses(self, model: TrainableKontext, batch: dict[str, Any], places: Sequence[int]) -> Tensor:
        encoded = self.encoder.encode(batch, slice(None))
        noise = self._noise(encoded.latents, places)
        ones = torch.ones(len(noise), device=noise.device)
        per_sigma = []
        for sigma in self.config.sigmas:
            self.pause()
            per_sigma.append(model(encoded.latents, noise, ones * sigma, ones, encoded.conditioning))
        return torch.cat(per_sigma).cpu()

    def _draw(self, model: TrainableKontext, batch: dict[str, Any], places: Sequence[int]) -> list[list[Tensor]]:
        encoded = self.encoder.encode(batch, slice(0, len(places)))
        picture_conditioning = Conditioning(
            **{**vars(encoded.conditioning), "guidance": self.config.picture_guidance},
        )
        sigmas = self.schedule.sigmas(self.config.picture_steps, target_tokens(encoded.latents))

        def predict(x: Tensor, sigma: Tensor) -> Tensor:
            self.pause()
            return model.predict(x, sigma, picture_conditioning)

        latents = sample_latents(predict, self._noise(encoded.latents, places), sigmas)
        answers = quadrants(self.encoder.grids.codec.decode(latents))[3]
        targets = batch["target"][: len(places)].permute(0, 2, 3, 1).float() / 255
        a, a_prime, b, b_prime = quadrants(targets)
        return [list(row) for row in zip(a, a_prime, b, answers, b_prime, strict=True)]

    def _noise(self, latents: Tensor, places: Sequence[int]) -> Tensor:
        drawn = [
            torch.randn(latents.shape[1:], generator=sample_generator(self.seed, _NOISE_STEP, place))
            for place in places
        ]
        return torch.stack(drawn).to(latents.device)


def _read_batches(fixed: FixedSet) -> list[tuple[dict[str, Any], list[int]]]:
    batches = []
    for positions in fixed.batches:
        items = [(position, fixed.dataset[position]) for position in positions]
        present = [position for position, item in items if item is not None]
        if present:
            batches.append((collate_quadruplets([item for _, item in items]), present))
    return batches
