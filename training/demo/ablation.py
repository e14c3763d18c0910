"""The paper's ablations on the demo's tiny Kontext: train every variant and measure all of them on one test set.

Every variant changes one thing of the demo's `basis.yaml`. It is an ordinary `training.train` run: finished runs are
reused, stopped ones resumed. The test set is the demo's held-out parameters without those on which learning rates were
chosen, and the edits without parameters, on new scenes and photos; a task is a kind of edit. Learning rates are the
best of the sweep of `training.demo compare` for the variant's family (gain N, gain 1, one LoRA), not swept per variant,
and there is one seed: read large differences only. `training.demo compare` compares LoRWeB with one LoRA fairly.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from lorweb_core.encoder import load_image_encoder
from lorweb_core.errors import SettingsError
from lorweb_core.images import read_image

from ..console import open_device
from ..evaluation.aggregation import evaluate
from ..evaluation.folder import EvaluationFolder, file_sha256, fingerprint, write_file
from ..evaluation.methods import Method, baseline, generate
from ..evaluation.metrics import load_meter, measure_all
from ..evaluation.report import as_markdown, write_sheets
from ..evaluation.test_set import Analogy, ImagePart, Sample, read_samples, write_samples
from .analogies import draw_analogies, load_demo, to_art
from .compare import METHODS, TEST_SEED
from .scenes import (
    INDEX_NAME,
    MODEL_FOLDER,
    PLAIN_KINDS,
    TEST_PHOTOS,
    edits_of,
    held_out_parameters,
    to_image,
    write_dataset,
)
from .tiny_kontext import write_diffusers_folder
from .train import PAIRS_SEED, trained_basis

#: Learning rates of adapters and router.
_GAIN_N_RATES, _GAIN_1_RATES, _LORA_RATES = (3e-3, 1e-3), (1e-2, 1e-3), (3e-3, 1e-3)
_UNTRAINED = "untrained-encoder"
#: Name → (title, config overrides): the difference from the demo's basis (N 16, r 4, gain N, softmax, a + a′ + b).
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lorweb": ("LoRWeB, 16 × rank 4", ()),
    "fewer-larger": ("same capacity, 8 × rank 8", ("basis.basis_size=8", "basis.rank=8")),
    "smaller": ("smaller, 8 × rank 4", ("basis.basis_size=8",)),
    "more-rank": ("more rank alone, 16 × rank 16", ("basis.rank=16",)),
    "larger": ("larger, 32 × rank 4", ("basis.basis_size=32",)),
    "gain-1": ("gain 1 (as published)", METHODS["gain-1"][0]),
    "tanh": ("tanh instead of softmax", ("basis.activation=tanh", "basis.coefficient_gain=1")),
    "grid-query": ("encoder sees the grid only", ("basis.query_mode=aa'bb'",)),
    _UNTRAINED: ("untrained encoder", ()),
    "one-lora": ("one LoRA, equal rank 64", METHODS["one-lora"][0]),
    "one-lora-larger": (
        "one LoRA, rank 128", ("basis.basis_size=1", "basis.rank=128", "basis.coefficient_gain=1"),
    ),
}  # fmt: skip


def ablation(out: Path, names: Sequence[str], *, steps: int, seed: int, per_edit: int, pairs_per_edit: int) -> str:
    """Train and measure the variants, write ablation.md and a sheet of images, and return the text."""
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise SettingsError(f"--variant {', '.join(unknown)} is unknown. There are {', '.join(VARIANTS)}.")
    folder = EvaluationFolder(out / "evaluation")
    prepare_demo(out, pairs_per_edit=pairs_per_edit)
    methods = [baseline("copy-b", folder)]
    for name in tqdm(names or VARIANTS, desc="training", unit="variant", disable=None):
        title, overrides = VARIANTS[name]
        encoder = out / (_UNTRAINED if name == _UNTRAINED else "encoder")
        rates = _GAIN_1_RATES if "basis.coefficient_gain=1" in overrides else _GAIN_N_RATES
        rates = _LORA_RATES if "basis.basis_size=1" in overrides else rates
        basis_file = trained_basis(out, name, (*overrides, f"encoder.model={encoder}"), rates, steps=steps, seed=seed)
        methods.append(_variant_method(title, basis_file, encoder, folder))
    write_samples(folder, write_test_images(out / "test", per_edit=per_edit), max_side_px=1024)
    samples = read_samples(folder)
    for method in methods:
        generate(folder, method, samples)
    titles = [method.name for method in methods]
    meter = load_meter(lpips_backbone=None, clip_encoder=str(MODEL_FOLDER / "encoder"), device=open_device())
    measure_all(folder, meter, titles, samples)
    caveats = " ".join((__doc__ or "").split("\n\n")[1].split())
    table = as_markdown(evaluate(folder, titles, samples, reference=titles[1]))
    text = f"# Ablations on the tiny Kontext: {steps} steps, seed {seed}\n\n{caveats}\n\n{table}"
    write_file(out / "ablation.md", text)
    write_sheets(folder, titles, samples, rows=10, sheets=1, cell_px=96)
    return text


def prepare_demo(out: Path, *, pairs_per_edit: int) -> None:
    """Write `kontext/`, `encoder/`, `untrained-encoder/` and `pairs/` from the shipped model; what exists is kept.

    Raises SettingsError if `out` was made from something else, since its runs would be reused.
    """
    origin_file = out / "ablation-origin.json"
    origin = {"pairs_per_edit": pairs_per_edit, "base": file_sha256(MODEL_FOLDER / "base.safetensors")}
    found = json.loads(origin_file.read_text(encoding="utf-8")) if origin_file.is_file() else origin
    if found != origin:
        raise SettingsError(
            f"{out} was made with {found}, not with {origin}: its finished runs cannot be reused. Choose another --out."
        )
    write_file(origin_file, json.dumps(origin) + "\n")
    if not (out / "kontext" / "model_index.json").is_file():
        write_diffusers_folder(MODEL_FOLDER / "base.safetensors", out / "kontext")
    if not (out / "encoder" / "model.safetensors").is_file():
        shutil.copytree(MODEL_FOLDER / "encoder", out / "encoder", dirs_exist_ok=True)
    if not (out / "pairs" / INDEX_NAME).is_file():
        write_dataset(out / "pairs", pairs_per_edit=pairs_per_edit, seed=PAIRS_SEED)
    untrained = out / _UNTRAINED  # seeded random weights: what the router gains from a trained encoder
    if not (untrained / "model.safetensors").is_file():
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        shutil.copytree(out / "encoder", untrained, dirs_exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(out / "encoder")).save_pretrained(untrained)


def write_test_images(folder: Path, *, per_edit: int) -> list[Analogy]:
    """Write the images of the test analogies, and return them as a set for `write_samples`."""
    edits = (*held_out_parameters(), *edits_of(kinds=PLAIN_KINDS))
    found = []
    for number, drawn in enumerate(draw_analogies(edits, per_edit=per_edit, seed=TEST_SEED, photos=TEST_PHOTOS)):
        name = f"{drawn.edit.name}--{number:04d}"
        paths = [folder / f"{name}--{part}.png" for part in ("a", "a_prime", "b", "b_prime")]
        for path, pixels in zip(paths, drawn.images, strict=True):
            write_file(path, to_image(pixels))
        a, a_prime, b, b_prime = (ImagePart(path) for path in paths)
        found.append(Analogy(name, drawn.edit.kind, "", f"{name}/a", f"{name}/b", a, a_prime, b, b_prime))
    return found


def _variant_method(title: str, basis_file: Path, encoder: Path, folder: EvaluationFolder) -> Method:
    @cache
    def load() -> Callable[[Sample], Image.Image]:
        demo = load_demo(MODEL_FOLDER, basis_file=basis_file, encoder=load_image_encoder(encoder))

        def answer(sample: Sample) -> Image.Image:
            images = [torch.from_numpy(to_art(read_image(path)))[None] for path in folder.triplet(sample.id)]
            return to_image(demo.answer(*images)[0].clamp(0, 1).numpy())

        return answer

    source = fingerprint(file_sha256(basis_file), file_sha256(MODEL_FOLDER / "base.safetensors"))
    return Method(title, lambda sample: fingerprint(source, sample.inputs), lambda sample: load()(sample))
