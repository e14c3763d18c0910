"""Draw b′ from a, a′, b with a basis and a diffusers-format base; no ComfyUI needed.

    python -m training.sample --base runs/model --basis mine.safetensors --out drawn --a 1.png --a-prime 2.png --b 3.png
    python -m training.sample --base … --basis … --out drawn --triplets folder [--prompts folder]

A folder of triplets has one folder each with a.*, a_prime.*, b.*; `--prompts` has `<triplet>.txt` (or `prompt.txt` for
all). Written: `<triplet>.png` (b′ in b's size) and `<triplet>-grid.png` (a | a′ | b | b′); of three single pictures
`<b>-edited.png` and `<b>-edited-grid.png`, so that b itself is never written over.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lorweb_core.errors import ImageError, LoRWeBError, ModelError, OutputError
from lorweb_core.files import MAX_TEXT_BYTES, read_text
from lorweb_core.grid import build_grid
from lorweb_core.images import IMAGE_SUFFIXES, from_pil, read_image, read_image_size, to_pil
from lorweb_core.settings import KONTEXT_ID

from .base.sampler import AnalogySampler, SamplingOptions, load_sampler
from .base.sheets import contact_sheet, quadrants
from .config.schema import BaseModelConfig
from .console import count, let_terminal_replace, log_to_terminal, open_device, show, silence_libraries
from .run.memory import is_out_of_memory

logger = logging.getLogger(__name__)
_PARTS = ("a", "a_prime", "b")


@dataclass(frozen=True)
class Triplet:
    """One analogy to complete: a name for its files, three pictures, a prompt."""

    name: str
    image_a: Path
    image_a_prime: Path
    image_b: Path
    prompt: str = ""

    @property
    def pictures(self) -> tuple[Path, Path, Path]:
        """Files of a, a′ and b."""
        return self.image_a, self.image_a_prime, self.image_b


def find_triplets(folder: Path, prompts: Path | None = None) -> list[Triplet]:
    """Return the triplets of a folder, by name, each with its prompt ("" without one).

    Raises: ImageError: when there are none, or one is incomplete; all are named.
    """
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found, incomplete = [], []
    for path in subfolders:
        pictures = [_picture(path, part) for part in _PARTS]
        if any(picture is None for picture in pictures):
            incomplete.append(path.name)
            continue
        a, a_prime, b = (picture for picture in pictures if picture is not None)
        found.append(Triplet(path.name, a, a_prime, b, _prompt(prompts, path.name)))
    if incomplete or not found:
        raise ImageError(
            expected=f"folders with pictures a, a_prime and b in {folder}",
            got=f"{len(incomplete)} incomplete: {', '.join(incomplete[:5])}" if incomplete else "none",
            remedy="Name the pictures a.png, a_prime.png, b.png (any picture type), one folder per triplet.",
        )
    return found


def draw_triplet(
    sampler: AnalogySampler,
    triplet: Triplet,
    out: Path,
    options: SamplingOptions,
    *,
    on_step: Callable[[], object] | None = None,
) -> Path:
    """Draw one triplet, write its picture and its row of four, and return the picture's path.

    Raises: OutputError: when they cannot be written.
    """
    pictures = [from_pil(read_image(path))[None] for path in triplet.pictures]
    answer, generated = sampler.generate(*pictures, prompt=triplet.prompt, options=options, on_step=on_step)
    a, a_prime, b, _ = quadrants(build_grid(*pictures, megapixels=sampler.megapixels(options), fit=options.fit)[0][0])
    grid = contact_sheet(
        ["a", "a'", "b", "b' generated"], [(triplet.name, [a, a_prime, b, quadrants(generated[0])[3]])]
    )
    path = out / f"{triplet.name}.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        to_pil(answer[0]).save(path)
        grid.save(out / f"{triplet.name}-grid.png")
    except OSError as error:
        raise OutputError(
            expected=f"to be able to write pictures into {out}",
            got=error.strerror or str(error),
            remedy="Make room there, or choose another folder with --out.",
        ) from error
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    let_terminal_replace()
    options = _parser().parse_args(arguments)
    log_to_terminal(logging.WARNING)
    silence_libraries()
    try:
        triplets = _triplets_of(options)
        for path in {path for triplet in triplets for path in triplet.pictures}:
            read_image_size(path)  # now, not after the minutes that loading takes
        sampler = _sampler_of(options, triplets)
        drawing = SamplingOptions(
            options.steps, options.guidance, options.megapixels, options.fit, options.strength, options.seed
        )
        with tqdm(total=len(triplets) * options.steps, unit="step", disable=None) as bar:
            files = [draw_triplet(sampler, item, options.out, drawing, on_step=bar.update) for item in triplets]
    except LoRWeBError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {_too_large(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; pictures that were finished are kept", file=sys.stderr)
        return 130
    show(f"Wrote {files[0]}" if len(files) == 1 else f"Wrote {len(files)} pictures to {options.out}")
    return 0


def _too_large(error: RuntimeError) -> ModelError:
    return ModelError(
        expected="base, basis and encoder to fit in memory",
        got=f"out of memory ({str(error)[:150]})",
        remedy="Add --quantize nf4 (6.6 GB for the base) or int8 (12 GB), or set a smaller --megapixels.",
    )


def _sampler_of(options: argparse.Namespace, triplets: Sequence[Triplet]) -> AnalogySampler:
    base = BaseModelConfig(
        model=options.base, components=options.components, dtype=options.dtype, quantize=options.quantize
    )
    prompts = sorted({triplet.prompt for triplet in triplets})
    device = open_device(options.device)
    return load_sampler(
        base, options.basis, prompts, encoder=options.encoder, max_tokens=options.max_tokens, device=device
    )


def _triplets_of(options: argparse.Namespace) -> list[Triplet]:
    if options.triplets is not None:
        return find_triplets(options.triplets, options.prompts)
    if None in (options.a, options.a_prime, options.b):
        raise ImageError(
            expected="--triplets FOLDER, or all of --a, --a-prime and --b",
            got="neither",
            remedy="Name the three pictures, or a folder of triplets.",
        )
    name = f"{options.b.stem}-edited"
    return [Triplet(name, options.a, options.a_prime, options.b, options.prompt)]


def _picture(folder: Path, stem: str) -> Path | None:
    found = [path for path in folder.iterdir() if path.stem == stem and path.suffix.lower() in IMAGE_SUFFIXES]
    return min(found, default=None)


def _prompt(folder: Path | None, name: str) -> str:
    if folder is None:
        return ""
    for path in (folder / f"{name}.txt", folder / "prompt.txt"):
        if path.is_file():
            return read_text(path, MAX_TEXT_BYTES).strip()
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.sample", description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=KONTEXT_ID, help="diffusers folder, Hugging Face id, or single file")
    parser.add_argument("--components", help="folder or id with vae/ and text encoders, for a single file")
    parser.add_argument("--basis", type=Path, required=True, help="trained basis, .safetensors")
    parser.add_argument("--encoder", help="folder or id of the image encoder; default: the one named in the basis")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--triplets", type=Path, help="folder with one folder per triplet: a.*, a_prime.*, b.*")
    parser.add_argument("--prompts", type=Path, help="folder with <triplet>.txt or prompt.txt")
    for name in ("--a", "--a-prime", "--b"):
        parser.add_argument(name, type=Path, help="one picture, instead of --triplets")
    parser.add_argument("--prompt", default="", help="edit instruction, with --a, --a-prime, --b")
    parser.add_argument("--steps", type=count, default=28, help="sampling steps (28)")
    parser.add_argument("--guidance", type=float, default=2.5, help="guidance embedding (2.5)")
    parser.add_argument("--megapixels", type=float, help="of the whole grid (as in training, else 1.0)")
    parser.add_argument("--fit", default="pad", choices=("pad", "crop", "stretch"), help="a and a′ in b's shape")
    parser.add_argument("--strength", type=float, default=1.0, help="factor on the edit (1.0)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--max-tokens", type=count, help="T5 tokens per prompt (as in training, else 512)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the base")
    parser.add_argument("--quantize", default="none", choices=("none", "int8", "nf4"), help="of the base")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu or cuda")
    return parser


if __name__ == "__main__":
    sys.exit(main())
