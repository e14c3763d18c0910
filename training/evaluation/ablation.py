"""The paper's ablations on the demo's tiny Kontext: one command trains every variant and measures all on one set.

Variants change one thing of the demo's `basis.yaml`; each is an ordinary `training.train` run, finished ones are reused
and stopped ones resumed. The test set is the demo's held-out parameters without those on which rates were chosen, and
the edits without parameters, on new scenes and photographs; a task is a kind of edit. Rates are the best of
`training.demo.compare`'s sweep for the variant's family (gain N, gain 1, one LoRA), not swept per variant; seeds are
one: read large differences only. `training.demo.compare` is the fair comparison of LoRWeB with one LoRA.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from lorweb_core.encoder import ImageEncoder, load_image_encoder
from lorweb_core.files import read_json, write_text_atomically
from lorweb_core.images import read_image

from ..demo.analogies import draw_analogies
from ..demo.compare import Contender, trained_basis
from ..demo.dataset import INDEX_NAME, write_dataset
from ..demo.demo_model import load_demo, to_art
from ..demo.diffusers_folder import write_diffusers_folder
from ..demo.measure import held_out_parameters
from ..demo.scenes import MODEL_FOLDER, PLAIN_KINDS, TEST_PHOTOS, edits_of, to_image
from .errors import EvaluationError
from .folder import EvaluationFolder, file_hash, save_picture
from .generation import DrawnMethod
from .samples import Analogy, PicturePart, Sample

logger = logging.getLogger(__name__)

#: Of adapters and router.
_GAIN_N_RATES, _GAIN_1_RATES, _LORA_RATES = (3e-3, 1e-3), (1e-2, 1e-3), (3e-3, 1e-3)
_RUNS_OF_COMPARE = {"lorweb": "lorweb-gain-n", "gain-1": "lorweb-gain-1"}
_PAIRS_SEED, _TEST_SEED = 77, 202
_ENCODER_SEED = 1


@dataclass(frozen=True)
class Variant:
    """One row of the table: how it differs from the demo's basis (N 16, r 4, gain N, softmax, a + a′ + b).

    Attributes:
        name: for the command line.
        title: for the table.
        contender: its training; runs that `training.demo.compare` also makes have its names, and are reused.
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
        pairs_per_edit: training pictures of every edit.
        model: the demo's model folder.
    Raises: EvaluationError: when `out` was made from something else, since its runs would be reused.
    """
    _require_same_origin(out, {"pairs_per_edit": pairs_per_edit, "base": file_hash(model / "base.safetensors")})
    if not (out / "kontext" / "model_index.json").is_file():
        write_diffusers_folder(model / "base.safetensors", out / "kontext")
    if not (out / "encoder" / "model.safetensors").is_file():
        shutil.copytree(model / "encoder", out / "encoder", dirs_exist_ok=True)
    if not (out / "pairs" / INDEX_NAME).is_file():
        write_dataset(out / "pairs", pairs_per_edit=pairs_per_edit, seed=_PAIRS_SEED)
    return _write_untrained_encoder(out)


def train_variants(out: Path, chosen: Sequence[Variant], *, steps: int, seed: int) -> dict[str, Path]:
    """Return title → basis file of every variant, training those that have none.

    Raises: KeyboardInterrupt: when a run was stopped; calling again resumes it.
    """
    files = {}
    for variant in tqdm(chosen, desc="training", unit="variant", disable=None):
        contender = variant.contender
        files[variant.title] = trained_basis(out, contender, contender.rates[0], steps=steps, seed=seed)
        if not files[variant.title].is_file():  # the trainer ends early, and well, when it is asked to stop
            raise KeyboardInterrupt
    return files


def write_test_pictures(folder: Path, *, per_edit: int) -> list[Analogy]:
    """Write the test analogies' pictures, and return them as a set for `write_samples`."""
    edits = (*held_out_parameters(), *edits_of(kinds=PLAIN_KINDS))
    found = []
    for number, drawn in enumerate(draw_analogies(edits, per_edit=per_edit, seed=_TEST_SEED, photos=TEST_PHOTOS)):
        sample = f"{drawn.edit.name}--{number:04d}"
        parts = [folder / f"{sample}--{part}.png" for part in ("a", "a_prime", "b", "b_prime")]
        for path, pixels in zip(parts, drawn.pictures, strict=True):
            save_picture(to_image(pixels), path)
        a, a_prime, b, b_prime = (PicturePart(path) for path in parts)
        kind = drawn.edit.kind
        found.append(Analogy(sample, kind, "", f"{sample}/a", f"{sample}/b", a, a_prime, b, b_prime))
    return found


def as_report(table: str, *, steps: int, seed: int) -> str:
    """Return the table under a heading and this module's words about what it can show."""
    caveats = " ".join((__doc__ or "").split("\n\n")[1].split())
    return f"# Ablations on the tiny Kontext: {steps} steps, seed {seed}\n\n{caveats}\n\n{table}"


def demo_method(title: str, basis_file: Path, folder: EvaluationFolder, out: Path, model: Path) -> DrawnMethod:
    """Return a variant as a method of the evaluation."""

    def load() -> Callable[[Sample], Image.Image]:
        demo = load_demo(model, basis_file=basis_file, encoder=_encoder_of(basis_file, out))

        def draw(sample: Sample) -> Image.Image:
            paths = [folder.inputs(sample.id) / f"{part}.png" for part in ("a", "a_prime", "b")]
            pictures = [torch.from_numpy(to_art(read_image(path)))[None] for path in paths]
            return to_image(demo.answer(*pictures)[0].clamp(0, 1).numpy())

        return draw

    return DrawnMethod(title, (file_hash(basis_file), file_hash(model / "base.safetensors")), load)


def _encoder_of(basis_file: Path, out: Path) -> ImageEncoder:
    is_untrained = basis_file.name.startswith("untrained-encoder")
    return load_image_encoder(out / ("untrained-encoder" if is_untrained else "encoder"))


def _require_same_origin(out: Path, origin: dict[str, object]) -> None:
    file = out / "ablation-origin.json"
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, json.dumps(origin) + "\n")
    elif (found := read_json(file)) != origin:
        raise EvaluationError(
            expected=f"an --out folder made with {origin}",
            got=f"{found} in {out}",
            remedy="Choose another --out folder; its finished runs would be taken for those of these data.",
        )


def _write_untrained_encoder(out: Path) -> Path:
    """The demo's encoder with seeded random weights: what the router gains from a trained one."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = out / "untrained-encoder"
    if not (folder / "model.safetensors").is_file():
        shutil.copytree(out / "encoder", folder, dirs_exist_ok=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_ENCODER_SEED)
            CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(out / "encoder")).save_pretrained(folder)
    return folder
