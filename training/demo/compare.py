"""Compare LoRWeB and one LoRA on the demo: sweep the learning rates of each on validation analogies, test three seeds.

Every run is an ordinary `training.train` run in the folder that `python -m training.demo train` has filled; finished
runs are reused, stopped ones resumed. The test is evaluated once, after the rates are fixed: new scenes and photographs
that no training step saw, in three sets: seen parameters, held-out parameters (hue of its kind, or amount) and held-out
edits (whole kinds), held out from encoder and basis, not from the base. Numbers are means over analogies, kinds
weighing alike.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Literal

import torch
from torch import Tensor

from lorweb_core.encoder import ImageEncoder, load_image_encoder
from lorweb_core.files import write_text_atomically

from ..base.transformer import Conditioning, predict_velocity
from .analogies import (
    GUIDANCE,
    Analogy,
    Score,
    answers,
    context_latents,
    draw_analogies,
    generate,
    load_demo,
    null_prompt,
    score,
    stack_images,
)
from .base import edit_code
from .scenes import (
    HELD_OUT_KINDS,
    TEST_PHOTOS,
    TRAINED_KINDS,
    TRAINING_PHOTOS,
    Edit,
    edits_of,
    held_out_parameters,
    validation_edits,
)
from .show import sheet, shown_edits
from .tiny_kontext import load_base
from .train import trained_basis

log = logging.getLogger(__name__)

VALIDATION_SEED, TEST_SEED = 101, 202
_BATCH = 32
#: Config overrides of each method, and the (adapters, router) rates to choose from.
METHODS: dict[str, tuple[tuple[str, ...], tuple[tuple[float, float], ...]]] = {
    "lorweb": ((), ((1e-3, 1e-3), (3e-3, 1e-3), (1e-2, 1e-3))),
    "gain-1": (("basis.coefficient_gain=1",), ((3e-3, 1e-3), (1e-2, 1e-3), (3e-2, 1e-3))),
    "one-lora": (
        ("basis.basis_size=1", "basis.rank=64", "basis.coefficient_gain=1"),
        ((1e-3, 1e-3), (3e-3, 1e-3), (1e-2, 1e-3)),
    ),
}

#: Edits without parameters have nothing to hold out and count as seen.
TEST_SETS: dict[str, tuple[Edit, ...]] = {
    "seen parameters": edits_of(kinds=TRAINED_KINDS, is_held_out=False),
    "held-out parameters": held_out_parameters(),
    "held-out edits": edits_of(kinds=HELD_OUT_KINDS),
}

#: analogies → generated b′ [B, 12, 12, 3]
Answerer = Callable[[Sequence[Analogy]], Tensor]


def compare(out: Path, *, sweep_steps: int, steps: int, seeds: int, per_edit: int) -> str:
    """Train, test, write comparison.md and comparison.png, and return the report."""
    encoder = load_image_encoder(out / "encoder")
    sweeps: list[str] = []
    bases: dict[str, list[Path]] = {}
    for name, (overrides, candidates) in METHODS.items():
        found = {}
        for rates in candidates:
            file = trained_basis(out, name, overrides, rates, steps=sweep_steps, seed=0)
            answerer = {name: basis_answerer(out, file, encoder)}
            sets = {"validation": validation_edits()}
            scores = measure(answerer, sets, per_edit=4, seed=VALIDATION_SEED, photos=TRAINING_PHOTOS)
            found[rates] = mean_of_kinds(scores["validation"][name], "whole_db")
            log.info("%s at %s: %.2f dB", name, rates, found[rates])
        best = max(found, key=lambda rates: found[rates])
        tried = ", ".join(f"{first:g}/{second:g}: {value:.1f} dB" for (first, second), value in found.items())
        sweeps.append(f"* {name}: {tried}; chosen {best[0]:g}/{best[1]:g}")
        bases[name] = [trained_basis(out, name, overrides, best, steps=steps, seed=seed) for seed in range(seeds)]
    base = out / "base.safetensors"
    answerers: dict[str, Answerer] = {
        "copy b": copy_b,
        "base alone": base_answerer(base, knows="nothing"),
        "base that knows the kind": base_answerer(base, knows="kind"),
        "base that knows the edit": base_answerer(base, knows="edit"),
    }
    names = [*answerers, *bases]
    for name, files in bases.items():
        answerers |= {f"{name}#{seed}": basis_answerer(out, file, encoder) for seed, file in enumerate(files)}
    scores = measure(answerers, TEST_SETS, per_edit=per_edit, seed=TEST_SEED)
    # a | a′ | b | b̂′ of each method | b′, one row a kind of edit
    analogies = draw_analogies(shown_edits(), per_edit=1, seed=TEST_SEED + 1, photos=TEST_PHOTOS)
    a, a_prime, b, truth = stack_images(analogies)
    generated = [_in_batches(answerers[f"{name}#0"], analogies) for name in bases]
    sheet([a, a_prime, b, *generated, truth]).save(out / "comparison.png")
    report = (
        "## Rates (adapters/router), on validation analogies, seed 0\n\n" + "\n".join(sweeps)
        + "\n\n## Test, mean ± deviation of the seeds themselves: whole / changed region in dB, share right\n\n"
        + as_table(scores, names) + "\n"
    )  # fmt: skip
    write_text_atomically(out / "comparison.md", report)
    return report


def copy_b(analogies: Sequence[Analogy]) -> Tensor:
    """b itself: the baseline that does nothing."""
    return stack_images(analogies)[2]


def base_answerer(base: Path, *, knows: Literal["nothing", "kind", "edit"]) -> Answerer:
    """The base alone, without code, with the kind alone (hue and amount come from a′), or with the edit (the ceiling).

    With the kind it reaches what a basis can by choosing kinds; it trained on every hue and amount.
    """
    model = load_base(base)

    def answer(analogies: Sequence[Analogy]) -> Tensor:
        prompt, code = null_prompt(len(analogies))
        if knows != "nothing":
            code = torch.stack([edit_code(analogy.edit, has_parameter=knows == "edit") for analogy in analogies])
        context = context_latents(*stack_images(analogies)[:3])
        conditioning = Conditioning(context, prompt, code, None, GUIDANCE)
        return answers(generate(lambda noisy, sigmas: predict_velocity(model, noisy, sigmas, conditioning), context))

    return answer


def basis_answerer(model: Path, basis_file: Path, encoder: ImageEncoder) -> Answerer:
    """The base with a basis, which sees the images alone; `model` as for `load_demo`."""
    demo = load_demo(model, basis_file=basis_file, encoder=encoder)
    return lambda analogies: demo.answer(*stack_images(analogies)[:3])


def measure(
    answerers: Mapping[str, Answerer], sets: Mapping[str, Sequence[Edit]], *, per_edit: int, seed: int,
    photos: Sequence[str] = TEST_PHOTOS,
) -> dict[str, dict[str, list[Score]]]:  # fmt: skip
    """{set: {method: scores}}, every method on the same analogies and noise."""
    result: dict[str, dict[str, list[Score]]] = {}
    for name, edits in sets.items():
        analogies = draw_analogies(edits, per_edit=per_edit, seed=seed, photos=photos)
        result[name] = {
            method: score(_in_batches(answerer, analogies), analogies) for method, answerer in answerers.items()
        }
    return result


def as_table(scores: Mapping[str, Mapping[str, Sequence[Score]]], names: Sequence[str]) -> str:
    """Markdown: methods × sets, `whole ± deviation / changed ± deviation, right`; NAME#SEED are the seeds of NAME."""
    lines = ["| method | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores)]
    for name in names:
        cells = []
        for by_method in scores.values():
            seeds = [values for label, values in by_method.items() if label.split("#")[0] == name]
            whole, changed = (_spread(seeds, field) for field in ("whole_db", "changed_db"))
            right = fmean(mean_of_kinds(values, "is_right") for values in seeds)
            cells.append(f"{whole} / {changed}, {right:.0%}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_of_kinds(scores: Sequence[Score], field: str) -> float:
    """The mean of a field of the scores, kinds weighing alike."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for item in scores:
        by_kind[item.edit.kind].append(float(getattr(item, field)))
    return fmean(map(fmean, by_kind.values()))


def _spread(seeds: Sequence[Sequence[Score]], field: str) -> str:
    values = [mean_of_kinds(scores, field) for scores in seeds]
    return f"{fmean(values):.1f}" + (f" ± {pstdev(values):.1f}" if len(values) > 1 else "")


@torch.no_grad()
def _in_batches(answerer: Answerer, analogies: Sequence[Analogy]) -> Tensor:
    return torch.cat([answerer(analogies[start : start + _BATCH]) for start in range(0, len(analogies), _BATCH)])
