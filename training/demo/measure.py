"""Measure the demo honestly: one table and one picture for any number of bases on the same analogies.

    python -m training.demo.measure --basis LoRWeB=basis.safetensors --basis "one LoRA"=lora.safetensors --out FOLDER

Test analogies use new scenes and photographs that no training step saw. Sets: seen parameters, held-out parameters
(hue of its kind, or amount), held-out edits (whole kinds): held out from encoder and basis, not from the base. Numbers
are means over analogies, kinds weighing alike.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from PIL import Image
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
    packed_noise,
    score,
)
from .base import edit_code
from .scenes import (
    HELD_OUT_KINDS,
    MODEL_FOLDER,
    TEST_PHOTOS,
    TRAINED_KINDS,
    Edit,
    edits_of,
    validation_edits,
)
from .show import sheet, shown_edits
from .tiny_flux import load_base

_BATCH = 32

#: analogies → produced b′ [B, 12, 12, 3]
Method = Callable[[Sequence[Analogy]], Tensor]


@dataclass(frozen=True)
class Split:
    """One set of test analogies."""

    name: str
    edits: tuple[Edit, ...]


def evaluation_splits() -> tuple[Split, ...]:
    """Return the three test sets; edits without parameters have nothing to hold out and count as seen."""
    return (
        Split("seen parameters", edits_of(kinds=TRAINED_KINDS, is_held_out=False)),
        Split("held-out parameters", held_out_parameters()),
        Split("held-out edits", edits_of(kinds=HELD_OUT_KINDS)),
    )


def held_out_parameters() -> tuple[Edit, ...]:
    """Return the edits of trained kinds whose hue or amount is kept for testing; no rate was chosen on them."""
    chosen_on = validation_edits()
    return tuple(edit for edit in edits_of(kinds=TRAINED_KINDS, is_held_out=True) if edit not in chosen_on)


def copy_b(analogies: Sequence[Analogy]) -> Tensor:
    """Return b itself, the answer of who does nothing."""
    return torch.from_numpy(np.stack([analogy.pictures[2] for analogy in analogies]))


def base_method(base: Path, *, told: Literal["nothing", "kind", "edit"]) -> Method:
    """Return the base alone: told nothing, the kind alone (hue and amount come from a′), or the edit (the ceiling).

    What it does told the kind alone is what a basis can reach by choosing kinds; it trained on every hue and amount.
    """
    model = load_base(base)

    def run(analogies: Sequence[Analogy]) -> Tensor:
        prompt, pooled = null_prompt(len(analogies))
        codes = [edit_code(analogy.edit, has_parameter=told == "edit") for analogy in analogies]
        code = pooled if told == "nothing" else torch.stack(codes)
        conditioning = Conditioning(context_latents(analogies), prompt, code, None, GUIDANCE)
        return _answer(lambda noisy, sigmas: predict_velocity(model, noisy, sigmas, conditioning), conditioning)

    return run


def basis_method(model: Path, basis_file: Path, encoder: ImageEncoder) -> Method:
    """Return the base with a basis, the edit told by the pictures alone; `model` as for `demo_model.load_demo`."""
    demo = load_demo(model, basis_file=basis_file, encoder=encoder)

    def run(analogies: Sequence[Analogy]) -> Tensor:
        pictures = (np.stack([analogy.pictures[i] for analogy in analogies]) for i in range(3))
        return demo.answer(*(torch.from_numpy(part) for part in pictures))

    return run


def measure(
    methods: Mapping[str, Method],
    *,
    per_edit: int,
    seed: int,
    splits: Sequence[Split] = (),
    photos: Sequence[str] = TEST_PHOTOS,
) -> dict[str, dict[str, list[Score]]]:
    """Return {split: {method: scores}}, every method on the same analogies and noise; without splits the test's."""
    result: dict[str, dict[str, list[Score]]] = {}
    for split in splits or evaluation_splits():
        analogies = draw_analogies(split.edits, per_edit=per_edit, seed=seed, photos=photos)
        result[split.name] = {
            name: score(_in_batches(method, analogies), analogies) for name, method in methods.items()
        }
    return result


def table(scores: Mapping[str, Mapping[str, Sequence[Score]]]) -> str:
    """Return Markdown: per split a table of edits × methods, `whole / changed dB, right %`."""
    lines = []
    for split, by_method in scores.items():
        lines += [f"### {split}", "", "| edit | " + " | ".join(by_method) + " |", "|---|" + "---|" * len(by_method)]
        grouped = {method: _by_kind(values) for method, values in by_method.items()}
        for kind in next(iter(grouped.values())):
            lines.append(f"| {kind} | " + " | ".join(_cell(values[kind]) for values in grouped.values()) + " |")
        means = [_mean_cell(values) for values in by_method.values()]
        lines += ["| **mean of kinds** | " + " | ".join(means) + " |", ""]
    return "\n".join(lines)


def contact_sheet(methods: Mapping[str, Method], *, seed: int) -> Image.Image:
    """Return a | a′ | b | each method's b̂′ | b′, one row a kind of edit."""
    analogies = draw_analogies(shown_edits(), per_edit=1, seed=seed, photos=TEST_PHOTOS)
    a, a_prime, b, wanted = ([analogy.pictures[i] for analogy in analogies] for i in range(4))
    return sheet(
        [a, a_prime, b, *(list(_in_batches(method, analogies).numpy()) for method in methods.values()), wanted]
    )


def _answer(predict: Callable[[Tensor, Tensor], Tensor], conditioning: Conditioning) -> Tensor:
    return answers(generate(predict, packed_noise(conditioning.context_latents.shape, seed=0)))


def _in_batches(method: Method, analogies: Sequence[Analogy]) -> Tensor:
    parts = [analogies[start : start + _BATCH] for start in range(0, len(analogies), _BATCH)]
    with torch.no_grad():
        return torch.cat([method(part) for part in parts])


def _by_kind(scores: Sequence[Score]) -> dict[str, list[Score]]:
    grouped: dict[str, list[Score]] = defaultdict(list)
    for item in scores:
        grouped[item.edit.kind].append(item)
    return dict(grouped)


def _cell(scores: Sequence[Score]) -> str:
    whole, changed = (fmean(getattr(item, name) for item in scores) for name in ("whole_db", "changed_db"))
    return f"{whole:.1f} / {changed:.1f}, {fmean(item.is_right for item in scores):.0%}"


def mean_of_kinds(scores: Sequence[Score], name: str) -> float:
    """Return the mean of a field of the scores, kinds weighing alike."""
    return fmean(fmean(float(getattr(item, name)) for item in kind) for kind in _by_kind(scores).values())


def _mean_cell(scores: Sequence[Score]) -> str:
    whole, changed, right = (mean_of_kinds(scores, name) for name in ("whole_db", "changed_db", "is_right"))
    return f"**{whole:.1f} / {changed:.1f}, {right:.0%}**"


def main() -> None:
    """Command line, see the module's first lines."""
    parser = argparse.ArgumentParser(description="Measure bases of the demo on test analogies.")
    parser.add_argument("--basis", action="append", default=[], metavar="NAME=FILE", help="may be given many times")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder with base.safetensors and encoder/")
    parser.add_argument("--per-edit", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    base, encoder = arguments.model / "base.safetensors", load_image_encoder(arguments.model / "encoder")
    bases = dict(item.split("=", 1) for item in arguments.basis)
    methods: dict[str, Method] = {
        "copy b": copy_b,
        "base alone": base_method(base, told="nothing"),
        "base told the kind": base_method(base, told="kind"),
        "base with code": base_method(base, told="edit"),
        **{name: basis_method(arguments.model, Path(file), encoder) for name, file in bases.items()},
    }
    scores = measure(methods, per_edit=arguments.per_edit, seed=arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(arguments.out / "table.md", table(scores))
    write_text_atomically(arguments.out / "scores.json", json.dumps(_as_json(scores), indent=1))
    drawn = {name: method for name, method in methods.items() if name in bases}
    contact_sheet(drawn, seed=arguments.seed + 1).save(arguments.out / "sheet.png")
    print(table(scores))


def _as_json(scores: Mapping[str, Mapping[str, Sequence[Score]]]) -> dict[str, dict[str, list[dict[str, object]]]]:
    def plain(item: Score) -> dict[str, object]:
        numbers = {"whole_db": round(item.whole_db, 3), "changed_db": round(item.changed_db, 3)}
        return {"edit": item.edit.name, **numbers, "is_right": item.is_right}

    return {
        split: {method: [plain(item) for item in values] for method, values in by_method.items()}
        for split, by_method in scores.items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
