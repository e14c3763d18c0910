"""Compare LoRWeB and one LoRA on the demo: sweep the rate of each on validation analogies, then test three seeds.

    python -m training.demo.compare --out runs/demo --sweep-steps 300 --steps 1200 --seeds 3

Needs what `python -m training.demo` leaves in --out. Every run is an ordinary `training.train` run in that folder;
finished ones are reused, stopped ones resumed. Writes comparison.md (mean ± standard deviation of the seeds
themselves, and how many numbers each method trains, with and without its router) and comparison.png (a | a′ | b |
answers of seed 0 | b′). The test is looked at once, after the rates are fixed. `--only METHOD …` trains these methods
and stops before the test: one process a core, then once more without it.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

import torch

from lorweb_core.checkpoint import load_basis
from lorweb_core.encoder import ImageEncoder, load_image_encoder
from lorweb_core.files import write_text_atomically
from training.train import train

from .__main__ import basis_config
from .analogies import Score
from .measure import Method, Split, base_method, basis_method, contact_sheet, copy_b, mean_of_kinds, measure
from .scenes import TRAINING_PHOTOS, validation_edits

log = logging.getLogger(__name__)

VALIDATION_SEED, TEST_SEED = 101, 202


@dataclass(frozen=True)
class Contender:
    """A method and the rates to choose from.

    Attributes:
        name: for tables and run folders.
        overrides: of `basis.yaml`.
        rates: (adapters, router).
    """

    name: str
    overrides: tuple[str, ...]
    rates: tuple[tuple[float, float], ...]


CONTENDERS = (
    Contender("lorweb-gain-n", (), ((1e-3, 1e-3), (3e-3, 1e-3), (1e-2, 1e-3))),
    Contender("lorweb-gain-1", ("basis.coefficient_gain=1",), ((3e-3, 1e-3), (1e-2, 1e-3), (3e-2, 1e-3))),
    Contender(
        "one-lora",
        ("basis.basis_size=1", "basis.rank=64", "basis.coefficient_gain=1"),
        ((1e-3, 1e-3), (3e-3, 1e-3), (1e-2, 1e-3)),
    ),
)


def trained_basis(out: Path, contender: Contender, rates: tuple[float, float], *, steps: int, seed: int) -> Path:
    """Return the basis file of one run, training it when it is not there."""
    name = f"{contender.name}-{rates[0]:g}-{rates[1]:g}-{steps}-seed{seed}"
    file = out / name / f"{name}.safetensors"
    if not file.is_file():
        log.info("training %s", name)
        own = (f"optimizer.learning_rate={rates[0]}", f"optimizer.router_learning_rate={rates[1]}")
        run = (f"run.name={name}", f"run.steps={steps}", f"run.seed={seed}")
        train(basis_config(out, *contender.overrides, *own, *run), resume="latest")
    return file


def best_rates(
    out: Path, contender: Contender, encoder: ImageEncoder, *, steps: int
) -> tuple[tuple[float, float], dict[tuple[float, float], float]]:
    """Return the rates with the highest validation PSNR, and every rate's PSNR in dB."""
    split = Split("validation", validation_edits())
    found = {}
    for rates in contender.rates:
        file = trained_basis(out, contender, rates, steps=steps, seed=0)
        methods = {contender.name: basis_method(out, file, encoder)}
        scores = measure(methods, per_edit=4, seed=VALIDATION_SEED, splits=[split], photos=TRAINING_PHOTOS)
        found[rates] = mean_of_kinds(scores["validation"][contender.name], "whole_db")
        log.info("%s at %s: %.2f dB", contender.name, rates, found[rates])
    return max(found, key=lambda rates: found[rates]), found


def trained_seeds(
    out: Path, contender: Contender, encoder: ImageEncoder, *, sweep_steps: int, steps: int, seeds: int
) -> tuple[str, list[Path]]:
    """Sweep the rates, train every seed at the best, and return (line about the sweep, basis files)."""
    rates, found = best_rates(out, contender, encoder, steps=sweep_steps)
    tried = ", ".join(f"{first:g}/{second:g}: {value:.1f} dB" for (first, second), value in found.items())
    files = [trained_basis(out, contender, rates, steps=steps, seed=seed) for seed in range(seeds)]
    return f"* {contender.name}: {tried}; chosen {rates[0]:g}/{rates[1]:g}", files


def report(out: Path, encoder: ImageEncoder, swept: Mapping[str, tuple[str, list[Path]]], *, per_edit: int) -> str:
    """Return the sweep and the test of all trained bases as Markdown, and write comparison.png beside it."""
    base = out / "base.safetensors"
    runs = {name: files for name, (_, files) in swept.items()}
    methods: dict[str, Method] = {
        "copy b": copy_b,
        "base alone": base_method(base, told="nothing"),
        "base told the kind": base_method(base, told="kind"),
        "base with code": base_method(base, told="edit"),
    }
    for name, files in runs.items():
        methods |= {f"{name}#{seed}": basis_method(out, file, encoder) for seed, file in enumerate(files)}
    scores = measure(methods, per_edit=per_edit, seed=TEST_SEED)
    contact_sheet({name: methods[f"{name}#0"] for name in runs}, seed=TEST_SEED + 1).save(out / "comparison.png")
    lines = ["## Rates (adapters/router), on validation analogies, seed 0", "", *(line for line, _ in swept.values())]
    lines += [
        "",
        "## Test, mean ± deviation of the seeds themselves: whole / changed region in dB, share right",
        "",
    ]
    lines += _test_table(scores, ("copy b", "base alone", "base told the kind", "base with code", *runs))
    lines += ["", "## Numbers trained", "", *(_capacity(name, files[0]) for name, files in runs.items())]
    return "\n".join(lines) + "\n"


def _test_table(scores: Mapping[str, Mapping[str, Sequence[Score]]], names: Sequence[str]) -> list[str]:
    lines = ["| method | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores)]
    for name in names:
        cells = []
        for by_method in scores.values():
            own = [values for label, values in by_method.items() if label.split("#")[0] == name]
            cells.append(
                ", ".join(_spread([mean_of_kinds(values, field) for values in own], field) for field in _FIELDS)
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


_FIELDS = ("whole_db", "changed_db", "is_right")


def _spread(values: Sequence[float], field: str) -> str:
    if field == "is_right":
        return f"{fmean(values):.0%}"
    return f"{fmean(values):.1f}" + (f" ± {pstdev(values):.1f}" if len(values) > 1 else "")


def _capacity(name: str, file: Path) -> str:
    layers = load_basis(file).layers.values()
    adapters = sum(layer.lora_down.numel() + layer.lora_up.numel() for layer in layers)
    router = sum(layer.keys.numel() for layer in layers)
    router += sum(layer.query_projection.numel() for layer in layers if layer.query_projection is not None)
    return f"* {name}: {adapters:,} in adapters, {0 if name == 'one-lora' else router:,} in the router"


def main() -> None:
    """Command line, see the module's first lines."""
    parser = argparse.ArgumentParser(description="Compare LoRWeB with one LoRA of equal rank on the demo.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--sweep-steps", type=int, default=300, help="length of each run of the rate sweep")
    parser.add_argument("--steps", type=int, default=1200, help="length of the runs that are tested")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-edit", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=[item.name for item in CONTENDERS], help="train these, no test")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    encoder = load_image_encoder(arguments.out / "encoder")
    length = {name: getattr(arguments, name) for name in ("sweep_steps", "steps", "seeds")}
    chosen = [item for item in CONTENDERS if not arguments.only or item.name in arguments.only]
    swept = {item.name: trained_seeds(arguments.out, item, encoder, **length) for item in chosen}
    if arguments.only:
        return
    text = report(arguments.out, encoder, swept, per_edit=arguments.per_edit)
    write_text_atomically(arguments.out / "comparison.md", text)
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
