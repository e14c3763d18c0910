"""Generate b′ from a, a′, b with a basis and a diffusers-format base, without ComfyUI.

\b
    python -m training.sample --basis mine.safetensors --out results --a 1.png --a-prime 2.png --b 3.png
    python -m training.sample --basis mine.safetensors --out results --triplets folder [--prompts folder]

A folder of triplets has one folder each with a.*, a_prime.*, b.*; --prompts has <triplet>.txt (or prompt.txt for all).
Written are <triplet>.png (b′ in b's size) and <triplet>-grid.png (a | a′ | b | b′); of three single images
<b>-edited.png and <b>-edited-grid.png, so that b itself is never overwritten.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from tqdm import tqdm

from lorweb_core.console import make_main, new_app
from lorweb_core.errors import ImageError, LoRWeBError, ModelError, OutputError
from lorweb_core.files import MAX_TEXT_BYTES, read_text
from lorweb_core.grid import build_grid
from lorweb_core.images import IMAGE_SUFFIXES, from_pil, read_image, read_image_size, to_pil
from lorweb_core.settings import KONTEXT_ID

from .base.sampler import AnalogySampler, SamplingOptions, load_sampler
from .base.sheets import contact_sheet, quadrants
from .config.schema import BaseModelConfig
from .console import open_device, show, silence_libraries
from .run.memory import is_out_of_memory

app = new_app(__doc__)
main = make_main(app, "python -m training.sample", interrupted="interrupted; finished images are kept")


@app.command(help=__doc__)
def sample(
    basis: Annotated[Path, typer.Option(help="Trained basis, .safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder for the images.")],
    base: Annotated[str, typer.Option(help="Diffusers folder, Hugging Face id, or single file.")] = KONTEXT_ID,
    components: Annotated[str | None, typer.Option(help="VAE and text encoders, for a single file.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Image encoder, if not the one named in the basis.")] = None,
    triplets: Annotated[Path | None, typer.Option(help="Folder with one folder per triplet.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Folder with <triplet>.txt or prompt.txt.")] = None,
    a: Annotated[Path | None, typer.Option(help="One image, instead of --triplets.")] = None,
    a_prime: Annotated[Path | None, typer.Option(help="The edited a.")] = None,
    b: Annotated[Path | None, typer.Option(help="The image to edit alike.")] = None,
    prompt: Annotated[str, typer.Option(help="Edit instruction, with --a, --a-prime and --b.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 28,
    guidance: Annotated[float, typer.Option(help="Guidance embedding.")] = 2.5,
    megapixels: Annotated[float | None, typer.Option(help="Of the whole grid, if not as in training.")] = None,
    fit: Annotated[Literal["pad", "crop", "stretch"], typer.Option(help="How a and a' fit the shape of b.")] = "pad",
    strength: Annotated[float, typer.Option(help="Factor on the edit.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(min=1, max=512, help="T5 tokens, if not as in training.")] = None,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of the base.")] = "bfloat16",
    quantize: Annotated[Literal["none", "int8", "nf4"], typer.Option(help="Of the base.")] = "none",
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:N.")] = "auto",
) -> None:
    silence_libraries()
    if triplets is not None:
        items = find_triplets(triplets, prompts)
    elif a is not None and a_prime is not None and b is not None:
        items = [Triplet(f"{b.stem}-edited", a, a_prime, b, prompt)]
    else:
        raise typer.BadParameter("Give --triplets FOLDER, or all of --a, --a-prime and --b.")
    problems = []
    for path in dict.fromkeys(path for item in items for path in item.images):
        try:
            read_image_size(path)  # now, not after the minutes that loading takes
        except LoRWeBError as error:
            problems.append(str(error))
    if problems:
        raise ImageError(" ".join(problems))
    options = SamplingOptions(steps, guidance, megapixels, fit, strength, seed)
    try:
        sampler = load_sampler(
            BaseModelConfig(model=base, components=components, dtype=dtype, quantize=quantize),
            basis, sorted({item.prompt for item in items}),
            encoder=encoder, max_tokens=max_tokens, device=open_device(device),
        )  # fmt: skip
        with tqdm(total=len(items) * steps, unit="step", disable=None) as bar:
            files = [generate_triplet(sampler, item, out, options, on_step=bar.update) for item in items]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"Base, basis and encoder do not fit in memory ({str(error)[:150]}). Add --quantize nf4 (6.6 GB for the "
            "base) or int8 (12 GB), or set a smaller --megapixels."
        ) from error
    show(f"Wrote {files[0]}" if len(files) == 1 else f"Wrote {len(files)} images to {out}")


@dataclass(frozen=True)
class Triplet:
    """One analogy to complete: a name for its files, three images, a prompt."""

    name: str
    image_a: Path
    image_a_prime: Path
    image_b: Path
    prompt: str = ""

    @property
    def images(self) -> tuple[Path, Path, Path]:
        """Files of a, a′ and b."""
        return self.image_a, self.image_a_prime, self.image_b


def find_triplets(folder: Path, prompts: Path | None = None) -> list[Triplet]:
    """Return the triplets of a folder, by name, each with its prompt ("" without one).

    Raises ImageError when there are none, or some are incomplete; all are named.
    """
    found, incomplete = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        by_part = {file.stem: file for file in reversed(files)}
        if not {"a", "a_prime", "b"} <= by_part.keys():
            incomplete.append(path.name)
            continue
        texts = [prompts / f"{path.name}.txt", prompts / "prompt.txt"] if prompts else []
        prompt = next((read_text(text, MAX_TEXT_BYTES).strip() for text in texts if text.is_file()), "")
        found.append(Triplet(path.name, by_part["a"], by_part["a_prime"], by_part["b"], prompt))
    if incomplete or not found:
        problem = f"{len(incomplete)} incomplete triplets: {', '.join(incomplete[:5])}" if incomplete else "no triplets"
        raise ImageError(
            f"{folder} has {problem}. Give each triplet a folder of its own with images named a, a_prime and b, such "
            "as a.png, a_prime.png, b.jpg."
        )
    return found


def generate_triplet(
    sampler: AnalogySampler,
    triplet: Triplet,
    out: Path,
    options: SamplingOptions,
    *,
    on_step: Callable[[], object] | None = None,
) -> Path:
    """Generate b′ of a triplet, write it and its row of four images, and return its path.

    Raises OutputError when they cannot be written.
    """
    images = [from_pil(read_image(path))[None] for path in triplet.images]
    answer, generated = sampler.generate(*images, prompt=triplet.prompt, options=options, on_step=on_step)
    a, a_prime, b, _ = quadrants(build_grid(*images, megapixels=sampler.megapixels(options), fit=options.fit)[0][0])
    row = [a, a_prime, b, quadrants(generated[0])[3]]
    path = out / f"{triplet.name}.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        to_pil(answer[0]).save(path)
        contact_sheet(["a", "a'", "b", "b' generated"], [(triplet.name, row)]).save(out / f"{triplet.name}-grid.png")
    except OSError as error:
        raise OutputError(
            f"Images cannot be written into {out}: {error.strerror or error}. Free disk space there, or choose another "
            "folder with --out."
        ) from error
    return path


if __name__ == "__main__":
    sys.exit(main())
