"""Our own model as a method: a basis on a base, drawn as `training.sample` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from lorweb_core.images import from_pil, read_image

from ..analogy_sampler import DrawOptions
from ..config import BaseModelConfig
from ..previews import to_picture
from .errors import EvaluationError
from .folder import EvaluationFolder, file_hash
from .generation import DrawnMethod
from .model_files import model_key
from .samples import Sample


@dataclass(frozen=True)
class GeneratorSettings:
    """What all our generators of one call share.

    Attributes:
        base: the base model.
        drawing: steps, guidance, size, strength and seed.
        encoder: folder or id of the image encoder; None takes the one named in the basis.
        max_tokens: T5 tokens per prompt; None: as many as the basis was trained with.
        device: where the base runs.
    """

    base: BaseModelConfig
    drawing: DrawOptions
    encoder: str | None = None
    max_tokens: int | None = None
    device: str = "cpu"


def parse_generator(
    text: str, settings: GeneratorSettings, folder: EvaluationFolder, samples: Sequence[Sample]
) -> DrawnMethod:
    """Return the method of a command line word NAME=BASIS; nothing is loaded before a picture is needed.

    Raises: EvaluationError: when it has another form, or there is no such file.
    """
    name, separator, file = text.partition("=")
    basis_file = Path(file)
    if not separator or not name.strip() or not basis_file.is_file():
        raise EvaluationError(
            expected="NAME=BASIS with BASIS a trained basis (.safetensors)",
            got=repr(text) + ("" if not separator else f", and there is no file {file!r}"),
            remedy="Write for example --generator LoRWeB=runs/mine/mine.safetensors.",
        )
    prompts = sorted({sample.prompt for sample in samples})
    made_of = (
        file_hash(basis_file), model_key(settings.base.model), model_key(settings.base.components),
        settings.base.dtype, settings.base.quantize, asdict(settings.drawing), model_key(settings.encoder),
        settings.max_tokens,
    )  # fmt: skip
    return DrawnMethod(name.strip(), made_of, lambda: _load(basis_file, settings, folder, prompts))


def _load(
    basis_file: Path, settings: GeneratorSettings, folder: EvaluationFolder, prompts: Sequence[str]
) -> Callable[[Sample], Image.Image]:
    from ..sample import load_sampler  # diffusers and transformers, seconds to import

    sampler = load_sampler(
        settings.base, basis_file, prompts, encoder=settings.encoder, max_tokens=settings.max_tokens,
        device=torch.device(settings.device),
    )  # fmt: skip

    def draw(sample: Sample) -> Image.Image:
        paths = [folder.inputs(sample.id) / f"{part}.png" for part in ("a", "a_prime", "b")]
        pictures = [from_pil(read_image(path))[None] for path in paths]
        answer, _ = sampler.draw(*pictures, prompt=sample.prompt, options=settings.drawing)
        return to_picture(answer[0])

    return draw
