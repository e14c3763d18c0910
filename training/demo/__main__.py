"""The demo's command line: python -m training.demo COMMAND --help

Commands import what they need when they run, so `show` and `comfyui` start without the trainer.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from lorweb_core.console import make_main, new_app

app = new_app("The tiny Kontext: make it, see it, compare it.")
main = make_main(
    app, "python -m training.demo", log_format="%(asctime)s %(message)s", level=logging.INFO,
    interrupted="interrupted; run it again to continue",
)  # fmt: skip
Folder = Annotated[Path, typer.Option(help="Folder for everything that is made.")]


@app.callback()
def _one_thread() -> None:
    torch.set_num_threads(1)  # faster at this size, and the same numbers everywhere


@app.command()
def show(
    out: Annotated[Path, typer.Option(help="Folder for the image.")] = Path("runs/demo"),
    a: Annotated[str, typer.Option(help="Your own images: give all three or none.")] = "",
    a_prime: Annotated[str, typer.Option(help="The edited a.")] = "",
    b: Annotated[str, typer.Option(help="The image to edit alike.")] = "",
) -> None:
    """Answer analogies with the shipped model, on bundled images or your own."""
    from ..console import silence_libraries
    from .show import show as run

    silence_libraries()
    logging.getLogger().setLevel(logging.WARNING)
    run(out, [Path(name) for name in (a, a_prime, b) if name])


@app.command()
def train(out: Folder = Path("runs/demo")) -> None:
    """Train encoder, base and basis from nothing, about 80 minutes on one core."""
    from .train import train_parts

    train_parts(out)


@app.command()
def compare(
    out: Folder = Path("runs/demo"),
    sweep_steps: Annotated[int, typer.Option(help="Of each run of the rate sweep.")] = 300,
    steps: Annotated[int, typer.Option(help="Of the runs that are tested.")] = 1200,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per method.")] = 3,
    per_edit: Annotated[int, typer.Option(min=1, help="Test analogies of every edit.")] = 2,
) -> None:
    """Compare LoRWeB with one LoRA of equal rank; needs what `train` leaves in --out."""
    from .compare import compare as run

    print(run(out, sweep_steps=sweep_steps, steps=steps, seeds=seeds, per_edit=per_edit))


@app.command()
def ablation(
    out: Folder = Path("runs/ablation"),
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant; repeatable.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of every variant; 300 take about 5 min on a core.")] = 300,
    seed: Annotated[int, typer.Option(help="Of every run.")] = 0,
    per_edit: Annotated[int, typer.Option(min=1, help="Test analogies of every edit.")] = 2,
    pairs_per_edit: Annotated[int, typer.Option(min=1, help="Training pairs of every edit.")] = 60,
) -> None:
    """Train and measure the paper's ablations; writes OUT/ablation.md."""
    from ..console import silence_libraries
    from .ablation import ablation as run

    silence_libraries()
    print(run(out, variant or (), steps=steps, seed=seed, per_edit=per_edit, pairs_per_edit=pairs_per_edit))


@app.command()
def comfyui(models: Annotated[Path, typer.Argument(help="ComfyUI's models folder.")]) -> None:
    """Write the demo model into ComfyUI's models folder."""
    from .comfyui import write_for_comfyui

    write_for_comfyui(models)


@app.command()
def tiny_parts(folder: Annotated[Path, typer.Argument(help="Gets model/, encoder/ and images/.")]) -> None:
    """Write a random tiny Kontext, an encoder and image pairs, to try the trainer with tiny.yaml."""
    from .tiny_kontext import write_image_pairs, write_tiny_encoder, write_tiny_kontext

    write_tiny_kontext(folder / "model")
    write_tiny_encoder(folder / "encoder")
    pairs = write_image_pairs(folder / "images")
    print(f"Next: python -m training.prepare folders {pairs} --out {folder / 'pairs.jsonl'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
