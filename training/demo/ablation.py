"""The paper's ablations on the demo's tiny Kontext: train every variant and measure all of them on one test set.

    python -m training.demo.ablation --out runs/ablation --steps 300      # writes runs/ablation/ablation.md

Every variant changes one thing of the demo's `basis.yaml`. It is an ordinary `training.train` run: finished runs are
reused, stopped ones resumed. The test set is the demo's held-out parameters without those on which learning rates were
chosen, and the edits without parameters, on new scenes and photos; a task is a kind of edit. Learning rates are the
best of the sweep of `training.demo.compare` for the variant's family (gain N, gain 1, one LoRA), not swept per variant,
and there is one seed: read large differences only. `training.demo.compare` compares LoRWeB with one LoRA fairly.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from tqdm import tqdm

from lorweb_core.console import make_main, new_app
from lorweb_core.encoder import load_image_encoder
from lorweb_core.errors import SettingsError
from lorweb_core.images import read_image

from ..console import open_device, silence_libraries
from ..evaluation.aggregation import evaluate
from ..evaluation.folder import EvaluationFolder, file_sha256, fingerprint, write_file
from ..evaluation.methods import Method, baseline, generate
from ..evaluation.metrics import load_meter, measure_all
from ..evaluation.report import as_markdown, write_sheets
from ..evaluation.test_set import Analogy, ImagePart, Sample, read_samples, write_samples
from .analogies import draw_analogies, load_demo, to_art
from .compare import Contender, trained_basis
from .measure import held_out_parameters
from .scenes import INDEX_NAME, MODEL_FOLDER, PLAIN_KINDS, TEST_PHOTOS, edits_of, to_image, write_dataset
from .tiny_flux import write_diffusers_folder

app = new_app("The paper's ablations on the demo's tiny Kontext.")
main = make_main(app, "python -m training.demo.ablation", interrupted="interrupted; run it again to continue")

#: Learning rates of adapters and router.
_GAIN_N_RATES, _GAIN_1_RATES, _LORA_RATES = (3e-3, 1e-3), (1e-2, 1e-3), (3e-3, 1e-3)
_RUNS_OF_COMPARE = {"lorweb": "lorweb-gain-n", "gain-1": "lorweb-gain-1"}
_PAIRS_SEED, _TEST_SEED = 77, 202
_ENCODER_SEED = 1


@dataclass(frozen=True)
class Variant:
    """One row of the table: how it differs from the demo's basis (N 16, r 4, gain N, softmax, a + a′ + b).

    Attributes:
        name, title: on the command line and in the table.
        contender: its training; runs of `training.demo.compare` have the same names and are reused.
    """

    name: str
    title: str
    contender: Contender


def variants(untrained_encoder: Path) -> tuple[Variant, ...]:
    """Return all variants, in the order of the paper's table."""

    def basis(title: str, name: str, *overrides: str) -> Variant:
        has_gain_1 = "basis.coefficient_gain=1" in overrides
        rates = _GAIN_1_RATES if has_gain_1 else _GAIN_N_RATES
        return Variant(name, title, Contender(_RUNS_OF_COMPARE.get(name, name), overrides, (rates,)))

    def lora(title: str, name: str, rank: int) -> Variant:
        overrides = ("basis.basis_size=1", f"basis.rank={rank}", "basis.coefficient_gain=1")
        return Variant(name, title, Contender(name, overrides, (_LORA_RATES,)))

    return (
        basis("LoRWeB, 16 × rank 4", "lorweb"),
        basis("same capacity, 8 × rank 8", "fewer-larger", "basis.basis_size=8", "basis.rank=8"),
        basis("smaller, 8 × rank 4", "smaller", "basis.basis_size=8"),
        basis("more rank alone, 16 × rank 16", "more-rank", "basis.rank=16"),
        basis("larger, 32 × rank 4", "larger", "basis.basis_size=32"),
        basis("gain 1 (as published)", "gain-1", "basis.coefficient_gain=1"),
        basis("tanh instead of softmax", "tanh", "basis.activation=tanh", "basis.coefficient_gain=1"),
        basis("encoder sees the grid only", "grid-query", "basis.query_mode=aa'bb'", "data.cache_embeddings=false"),
        basis("untrained encoder", "untrained-encoder", f"encoder.model={untrained_encoder}"),
        lora("one LoRA, equal rank 64", "one-lora", 64),
        lora("one LoRA, rank 128", "one-lora-larger", 128),
    )


def prepare_demo(out: Path, *, pairs_per_edit: int, model: Path = MODEL_FOLDER) -> Path:
    """Lay out what the runs need from the shipped model, and return the folder of an untrained encoder.

    Args:
        out: gets `kontext/`, `encoder/`, `untrained-encoder/` and `pairs/`; what is there is kept.
        pairs_per_edit: training pairs of every edit.
        model: the demo's model folder.
    Raises SettingsError if `out` was made from something else, since its runs would be reused.
    """
    origin_file = out / "ablation-origin.json"
    origin = {"pairs_per_edit": pairs_per_edit, "base": file_sha256(model / "base.safetensors")}
    found = json.loads(origin_file.read_text(encoding="utf-8")) if origin_file.is_file() else origin
    if found != origin:
        raise SettingsError(
            f"{out} was made with {found}, not with {origin}: its finished runs cannot be reused. Choose another --out."
        )
    write_file(origin_file, json.dumps(origin) + "\n")
    if not (out / "kontext" / "model_index.json").is_file():
        write_diffusers_folder(model / "base.safetensors", out / "kontext")
    if not (out / "encoder" / "model.safetensors").is_file():
        shutil.copytree(model / "encoder", out / "encoder", dirs_exist_ok=True)
    if not (out / "pairs" / INDEX_NAME).is_file():
        write_dataset(out / "pairs", pairs_per_edit=pairs_per_edit, seed=_PAIRS_SEED)
    untrained = out / "untrained-encoder"  # seeded random weights: what the router gains from a trained encoder
    if not (untrained / "model.safetensors").is_file():
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        shutil.copytree(out / "encoder", untrained, dirs_exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_ENCODER_SEED)
            CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(out / "encoder")).save_pretrained(untrained)
    return untrained


def write_test_images(folder: Path, *, per_edit: int) -> list[Analogy]:
    """Write the images of the test analogies, and return them as a set for `write_samples`."""
    edits = (*held_out_parameters(), *edits_of(kinds=PLAIN_KINDS))
    found = []
    for number, drawn in enumerate(draw_analogies(edits, per_edit=per_edit, seed=_TEST_SEED, photos=TEST_PHOTOS)):
        sample = f"{drawn.edit.name}--{number:04d}"
        paths = [folder / f"{sample}--{part}.png" for part in ("a", "a_prime", "b", "b_prime")]
        for path, pixels in zip(paths, drawn.pictures, strict=True):
            write_file(path, to_image(pixels))
        a, a_prime, b, b_prime = (ImagePart(path) for path in paths)
        found.append(Analogy(sample, drawn.edit.kind, "", f"{sample}/a", f"{sample}/b", a, a_prime, b, b_prime))
    return found


def variant_method(title: str, basis_file: Path, folder: EvaluationFolder, out: Path) -> Method:
    """Return a trained variant as a method of the evaluation."""
    is_untrained = basis_file.name.startswith("untrained-encoder")

    @cache
    def load() -> Callable[[Sample], Image.Image]:
        encoder = load_image_encoder(out / ("untrained-encoder" if is_untrained else "encoder"))
        demo = load_demo(MODEL_FOLDER, basis_file=basis_file, encoder=encoder)

        def answer(sample: Sample) -> Image.Image:
            paths = [folder.inputs(sample.id) / f"{part}.png" for part in ("a", "a_prime", "b")]
            images = [torch.from_numpy(to_art(read_image(path)))[None] for path in paths]
            return to_image(demo.answer(*images)[0].clamp(0, 1).numpy())

        return answer

    source = fingerprint(file_sha256(basis_file), file_sha256(MODEL_FOLDER / "base.safetensors"))
    return Method(title, lambda sample: fingerprint(source, sample.inputs), lambda sample: load()(sample))


@app.command()
def ablation(
    out: Annotated[Path, typer.Option(help="Folder for runs and images.")] = Path("runs/ablation"),
    results: Annotated[Path | None, typer.Option(help="File for the table, if not OUT/ablation.md.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant; repeatable.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of every variant; 300 take about 5 min on a core.")] = 300,
    seed: Annotated[int, typer.Option(help="Of every run.")] = 0,
    per_edit: Annotated[int, typer.Option(min=1, help="Test analogies of every edit.")] = 2,
    pairs_per_edit: Annotated[int, typer.Option(min=1, help="Training pairs of every edit.")] = 60,
    device: Annotated[str, typer.Option(help="Of the encoder for the CLIP direction.")] = "auto",
) -> None:
    """Train and measure the paper's ablations on the demo's tiny Kontext."""
    silence_libraries()
    opened = open_device(device)
    folder = EvaluationFolder(out / "evaluation")
    known = {found.name: found for found in variants(prepare_demo(out, pairs_per_edit=pairs_per_edit))}
    unknown = [name for name in variant or () if name not in known]
    if unknown:
        raise SettingsError(f"--variant {', '.join(unknown)} is unknown. There are {', '.join(known)}.")
    files = {}
    for name in tqdm(variant or known, desc="training", unit="variant", disable=None):
        contender = known[name].contender
        files[known[name].title] = trained_basis(out, contender, contender.rates[0], steps=steps, seed=seed)
        if not files[known[name].title].is_file():  # the trainer was asked to stop
            raise KeyboardInterrupt
    write_samples(folder, write_test_images(out / "test", per_edit=per_edit), max_side_px=1024)
    samples = read_samples(folder)
    methods = [baseline("copy-b", folder), *(variant_method(title, file, folder, out) for title, file in files.items())]
    for method in methods:
        generate(folder, method, samples)
    names = [method.name for method in methods]
    meter = load_meter(lpips_backbone=None, clip_encoder=str(MODEL_FOLDER / "encoder"), device=opened)
    measure_all(folder, meter, names, samples)
    caveats = " ".join((__doc__ or "").split("\n\n")[2].split())
    table = as_markdown(evaluate(folder, names, samples, reference=names[1]))
    text = f"# Ablations on the tiny Kontext: {steps} steps, seed {seed}\n\n{caveats}\n\n{table}"
    write_file(results or out / "ablation.md", text)
    write_sheets(folder, names, samples, rows=10, sheets=1, cell_px=96)
    print(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
