"""The methods that are compared, and their images in one folder and one format.

An image is generated or copied again only if its source has changed. Every table needs two baselines to be readable:
copy b, copy a′. Other projects process one analogy per call: run them once per sample into a folder named after the
sample, and keep the file name of the project's script (`LAYOUTS`): infer_single.py of RelationAdapter, edit_transfer.py
of Edit-Transfer (the whole 2×2 image), the examples in diffusers of VisualClozePipeline and FluxKontextPipeline.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from lorweb_core.images import IMAGE_SUFFIXES, ImageFileError, from_pil, read_image, to_pil

from ..config.schema import BaseModelConfig
from .folder import EvaluationError, EvaluationFolder, file_sha256, fingerprint, model_key, write_file
from .test_set import Sample

if TYPE_CHECKING:
    from ..base.sampler import SamplingOptions

logger = logging.getLogger(__name__)
BASELINES = ("copy-b", "copy-a-prime")
_SHOWN = 3
#: layout → (file below the method's folder without suffix, whether it is a 2×2 grid with b′ at the bottom right).
LAYOUTS = {
    "plain": ("{sample}", False),
    "grid": ("{sample}", True),
    "relation-adapter": ("{sample}/generated", False),
    "visualcloze": ("{sample}/visualcloze", False),
    "edit-transfer": ("{sample}/result_*", True),
    "kontext-lora": ("{sample}/output", False),
}


@dataclass(frozen=True)
class Method:
    """Something that answers test analogies."""

    name: str  # as in the tables
    source: Callable[[Sample], str | None]  # identifies everything the image is made from; None if there is no image
    make: Callable[[Sample], Image.Image]  # b′ in any size; may raise ImageFileError


def baseline(name: str, folder: EvaluationFolder) -> Method:
    """Return `copy-b` (does nothing) or `copy-a-prime` (ignores b)."""
    file = "b.png" if name == "copy-b" else "a_prime.png"

    def make(sample: Sample) -> Image.Image:
        b = read_image(folder.inputs(sample.id) / "b.png")
        return ImageOps.fit(read_image(folder.inputs(sample.id) / file), b.size, method=Image.Resampling.LANCZOS)

    return Method(name, lambda sample: fingerprint(name, sample.inputs), make)


def images_method(text: str) -> Method:
    """Return a method whose images were made elsewhere, from `NAME=[LAYOUT:]FOLDER`. Raises EvaluationError."""
    name, _, root = text.partition("=")
    layout, colon, rest = root.partition(":")
    layout, root = (layout, rest) if colon and layout in LAYOUTS else ("plain", root)
    if not name.strip() or not root or not Path(root).is_dir():
        missing = f": there is no folder {root}" if root else ""
        raise EvaluationError(
            f"--method {text!r} cannot be used{missing}. Write NAME=FOLDER or NAME=LAYOUT:FOLDER with one of the "
            f"layouts {', '.join(LAYOUTS)}, for example RelationAdapter=relation-adapter:outputs/relation_adapter."
        )
    pattern, is_grid = LAYOUTS[layout]

    def find(sample: Sample) -> Path | None:
        for form in (pattern, "{sample}"):
            wanted = Path(root) / form.format(sample=sample.id)
            regex = re.compile(re.escape(wanted.name).replace(r"\*", ".*"))
            files = sorted(wanted.parent.iterdir()) if wanted.parent.is_dir() else []
            found = [path for path in files if regex.fullmatch(path.stem) and path.suffix.lower() in IMAGE_SUFFIXES]
            if found:  # of several seeds the lowest
                return min(found, key=lambda path: [int(digits) for digits in re.findall(r"\d+", path.stem)])
        return None

    def make(sample: Sample) -> Image.Image:
        image = read_image(find(sample) or Path(root) / f"{sample.id}.png")
        left, top = image.width - image.width // 2, image.height - image.height // 2
        return image.crop((left, top, image.width, image.height)) if is_grid else image

    def source(sample: Sample) -> str | None:
        path = find(sample)
        return None if path is None else file_sha256(path)

    return Method(name.strip(), source, make)


def basis_method(
    text: str, folder: EvaluationFolder, samples: Sequence[Sample], *, base: BaseModelConfig, options: SamplingOptions,
    encoder: str | None, max_tokens: int | None, device: torch.device,
) -> Method:  # fmt: skip
    """Return our own generator from `NAME=BASIS`; the models are loaded when the first image is needed.

    `samples` are all of them, for their prompts; `base` and the rest as for `load_sampler`.

    Raises EvaluationError if the text has another form, or if there is no such file.
    """
    name, _, file = text.partition("=")
    if not name.strip() or not Path(file).is_file():
        raise EvaluationError(
            f"--generator {text!r} cannot be used: {file!r} is not a file. Write NAME=BASIS, for example "
            "LoRWeB=runs/mine/mine.safetensors."
        )
    models = [model_key(model) for model in (file, base.model, base.components, encoder)]
    settings = fingerprint(models, base.dtype, base.quantize, asdict(options), max_tokens)

    @cache
    def load() -> Callable[[Sample], Image.Image]:
        from ..base.sampler import load_sampler  # diffusers and transformers take seconds to import

        prompts = sorted({sample.prompt for sample in samples})
        sampler = load_sampler(base, Path(file), prompts, encoder=encoder, max_tokens=max_tokens, device=device)

        def generate_one(sample: Sample) -> Image.Image:
            images = [from_pil(read_image(path))[None] for path in folder.triplet(sample.id)]
            return to_pil(sampler.generate(*images, prompt=sample.prompt, options=options)[0][0])

        return generate_one

    return Method(
        name.strip(), lambda sample: fingerprint(settings, sample.prompt, sample.inputs), lambda sample: load()(sample)
    )


def require_distinct(folder: EvaluationFolder, methods: Sequence[str]) -> None:
    """Raise EvaluationError for two methods whose images would be in one folder, such as `x+1` and `x*1`."""
    owners: dict[str, str] = {}
    known = list(dict.fromkeys(record["method"] for record in folder.generated))
    for name in (*(name for name in known if name not in methods), *methods):
        images = folder.image(name, "x").parent
        owner = owners.setdefault(images.name.lower(), name)
        if owner != name or methods.count(name) > 1:
            raise EvaluationError(
                f"The methods {owner!r} and {name!r} would both keep their images in {images}. Rename one of them: "
                "names must differ in letters (ignoring case), digits, spaces, '-', '_' or '.'."
            )


def generate(folder: EvaluationFolder, method: Method, samples: Sequence[Sample]) -> None:
    """Bring the images of a method into the folder; unchanged ones are kept, missing ones are reported."""
    lacking = []
    for sample in tqdm(samples, desc=method.name, unit="image", disable=None):
        source = method.source(sample)
        found = folder.generated.get(method.name, sample.id)
        if found is not None and found["source"] == source and folder.image_sha256(method.name, sample.id):
            continue
        record = {"method": method.name, "sample": sample.id, "source": source, "sha256": None, "problem": None}
        try:
            if source is None:
                record["problem"] = "no image"
            else:
                path = folder.image(method.name, sample.id)
                write_file(path, method.make(sample).convert("RGB"))
                record["sha256"] = folder.sha256(path)
        except ImageFileError as error:
            record["problem"] = f"{error.path}: {error.reason}"
        if record != found:
            folder.generated.append(record)
        if record["problem"]:
            lacking.append(f"{sample.id} ({record['problem']})")
    if lacking:
        logger.warning(
            "%s: %d of %d images are missing or unreadable: %s",
            method.name, len(lacking), len(samples), ", ".join(lacking[:_SHOWN]),
        )  # fmt: skip


def methods_of(folder: EvaluationFolder, wanted: Sequence[str] = ()) -> list[str]:
    """Return the methods of an evaluation (those in `wanted`, else all). Raises EvaluationError if one is unknown."""
    names = list(dict.fromkeys(record["method"] for record in folder.generated))
    unknown = [name for name in wanted if name not in names]
    if unknown or not names:
        raise EvaluationError(
            f"The evaluation in {folder.root} has no method {', '.join(unknown)}. It has: {', '.join(names) or 'none'}."
            " Add methods with `python -m training.evaluate generate`."
        )
    return [name for name in names if not wanted or name in wanted]


def missing_images(folder: EvaluationFolder, methods: Sequence[str], samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Return method → samples for which it has no usable image, for the methods that lack some."""
    missing = {
        method: [sample.id for sample in samples if folder.image_sha256(method, sample.id) is None]
        for method in methods
    }
    return {method: lacking for method, lacking in missing.items() if lacking}


def common_samples(folder: EvaluationFolder, methods: Sequence[str], samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples for which every method has an image. Raises EvaluationError if there are none."""
    missing = missing_images(folder, methods, samples)
    common = [sample for sample in samples if not any(sample.id in ids for ids in missing.values())]
    if not common:
        counts = ", ".join(f"{method} lacks {len(ids)} of {len(samples)}" for method, ids in missing.items())
        raise EvaluationError(
            f"No sample has an image of every method: {counts}. Choose the methods to compare with --method, or "
            "generate the missing images."
        )
    return common
