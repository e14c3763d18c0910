"""The paper's evaluation, in three stages that go on where they stopped.

    python -m training.evaluate generate --set mydata/pairs.jsonl --out runs/eval \\
        --generator LoRWeB=runs/mine/mine.safetensors --method RelationAdapter=relation-adapter:outputs/ra
    python -m training.evaluate judge runs/eval --endpoint http://localhost:8000/v1 --model google/gemma-3-27b-it
    python -m training.evaluate aggregate runs/eval
    python -m training.evaluate sensitivity runs/eval-pairs

How to start a judge, where weights come from and what the numbers mean: training/evaluation/README.md
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lorweb_core.command_line.arguments import finite_number, whole_number
from lorweb_core.errors import LoRWeBError
from lorweb_core.settings import CLIP_ENCODER_ID, KONTEXT_ID

from .arguments import count, open_device
from .data.drawing import CAPTION_SOURCES
from .demo.scenes import MODEL_FOLDER
from .evaluation import commands
from .evaluation.methods import LAYOUTS
from .quiet import silence_libraries
from .terminal import let_terminal_replace, log_to_terminal

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 for a user's mistake or a judge that fails, 130 interrupted."""
    let_terminal_replace()
    log_to_terminal(logging.WARNING)
    options = build_parser().parse_args(arguments)
    silence_libraries()
    try:
        if hasattr(options, "device"):
            options.device = str(open_device(options.device))  # refused before any work is done
        options.run(options)
    except LoRWeBError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        print("evaluate: interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_generate(subparsers)
    _add_judge(subparsers)
    _add_aggregate(subparsers)
    _add_sensitivity(subparsers)
    _add_ablation(subparsers)
    return parser


def _add_generate(subparsers: Subparsers) -> None:
    parser = _add(subparsers, "generate", commands.run_generate, "make a test set and bring in every method's pictures")
    parser.add_argument("--set", help="index file, relation252k:FOLDER or evalset:FOLDER; leave out to add methods")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the evaluation's folder")
    layouts = ", ".join(LAYOUTS)
    parser.add_argument(
        "--method", action="append", default=[], metavar="NAME=[LAYOUT:]FOLDER",
        help=f"pictures made elsewhere, named <sample>.png or as LAYOUT does ({layouts}); may be given several times",
    )  # fmt: skip
    parser.add_argument("--no-baselines", action="store_true", help="leave out copy-b and copy-a-prime")
    choice = parser.add_argument_group("which analogies")
    choice.add_argument("--split", choices=("train", "val", "test", "all"), default="test", help="of an index (test)")
    choice.add_argument("--tasks", nargs="*", default=[], metavar="TASK", help="names; all without")
    choice.add_argument("--b-per-pair", type=count, default=2, metavar="N", help="b for every pair a, a′ (2)")
    choice.add_argument(
        "--pairs-per-b",
        type=whole_number,
        default=0,
        metavar="K",
        help="for sensitivity: K pairs for every b, one prompt (off)",
    )
    choice.add_argument("--per-task", type=whole_number, default=0, metavar="N", help="at most so many; 0: all (0)")
    choice.add_argument("--caption", choices=CAPTION_SOURCES, default="a", help="whose instruction is the prompt (a)")
    choice.add_argument("--max-side", type=count, default=1024, metavar="PX", help="longest side of a picture (1024)")
    choice.add_argument("--seed", type=int, default=0, help="of the choice (0)")
    _add_generator_arguments(parser)


def _add_generator_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("our own generator")
    group.add_argument(
        "--generator", action="append", default=[], metavar="NAME=BASIS", help="draw with a basis; several times"
    )
    group.add_argument("--base", default=KONTEXT_ID, help="diffusers folder, Hugging Face id, or single file")
    group.add_argument("--components", help="folder or id with vae/ and text encoders, for a single file")
    group.add_argument("--encoder", help="image encoder of the basis; default: the one named in it")
    group.add_argument("--steps", type=count, default=28, help="sampling steps (28)")
    group.add_argument("--guidance", type=finite_number, default=2.5, help="guidance embedding (2.5)")
    group.add_argument("--megapixels", type=_above_zero, help="of the whole grid (as in training, else 1.0)")
    group.add_argument("--fit", default="pad", choices=("pad", "crop", "stretch"), help="a and a′ in b's shape (pad)")
    group.add_argument("--strength", type=finite_number, default=1.0, help="factor on the edit (1.0)")
    group.add_argument("--noise-seed", type=int, default=0, help="of the noise (0)")
    group.add_argument("--max-tokens", type=count, help="T5 tokens per prompt (as in training, else 512)")
    group.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the base (bfloat16)")
    group.add_argument("--quantize", default="none", choices=("none", "int8", "nf4"), help="of the base (none)")
    _add_device(group)


def _add_judge(subparsers: Subparsers) -> None:
    parser = _add(subparsers, "judge", commands.run_judge, "measure every picture, and have it judged")
    _add_folder_arguments(parser)
    _add_meter_arguments(parser)
    _add_reference(parser)
    group = parser.add_argument_group("judge (without one only the numbers are made)")
    group.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, http://localhost:8000/v1 for example")
    group.add_argument("--model", help="as the endpoint names it; the key is read from OPENAI_API_KEY")
    group.add_argument("--local-model", metavar="FOLDER", help="a transformers model in this process instead")
    group.add_argument("--both-orders", action="store_true", help="ask every comparison in both orders")
    group.add_argument("--paper-prompts", type=Path, metavar="FOLDER", help="the paper's own wording, if you have it")
    group.add_argument("--answers", type=Path, metavar="FILE", help="kept answers, to share them between evaluations")
    group.add_argument("--workers", type=count, default=4, help="questions under way at once (4)")
    group.add_argument("--timeout-seconds", type=_above_zero, default=300.0, help="for one reply (300)")
    group.add_argument(
        "--tries-again", type=whole_number, default=5, metavar="N", help="after rate limits and lost connections (5)"
    )
    group.add_argument("--retry-invalid", action="store_true", help="ask unreadable answers again")


def _add_aggregate(subparsers: Subparsers) -> None:
    parser = _add(subparsers, "aggregate", commands.run_aggregate, "write tables, the Pareto plot and picture sheets")
    _add_folder_arguments(parser)
    _add_reference(parser)
    parser.add_argument("--judge", metavar="MODEL", help="whose answers, when several were asked")
    parser.add_argument(
        "--wording", metavar="WORDING",
        help="own, paper or a wording's hash, when the judge was asked in several (the newest with the most answers)",
    )  # fmt: skip
    parser.add_argument("--resamples", type=_at_least_two, default=2000, help="of the bootstrap over tasks (2000)")
    parser.add_argument("--no-plot", action="store_true", help="leave out the plot (needs matplotlib)")
    parser.add_argument("--sheets", type=whole_number, default=4, help="how many picture sheets (4)")
    parser.add_argument("--sheet-rows", type=count, default=8, help="samples on one sheet (8)")


def _add_sensitivity(subparsers: Subparsers) -> None:
    parser = _add(
        subparsers, "sensitivity", commands.run_sensitivity,
        "how much results vary with the pair, under one b and prompt (set made with --pairs-per-b)",
    )  # fmt: skip
    _add_folder_arguments(parser)
    _add_meter_arguments(parser)


def _add_ablation(subparsers: Subparsers) -> None:
    parser = _add(subparsers, "ablation", commands.run_ablation, "the paper's ablations on the demo's tiny Kontext")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="for runs and pictures (runs/ablation)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="where the table goes (OUT/ablation.md)")
    parser.add_argument("--variants", nargs="*", default=[], metavar="NAME", help="only these; all without")
    parser.add_argument("--steps", type=count, default=300, help="of every variant (300; about 5 min on a core)")
    parser.add_argument("--seed", type=int, default=0, help="of every run (0)")
    parser.add_argument("--per-edit", type=count, default=2, metavar="N", help="test analogies of every edit (2)")
    parser.add_argument("--pairs-per-edit", type=count, default=60, metavar="N", help="training pairs (60)")
    _add_meter_arguments(parser, clip_encoder=str(MODEL_FOLDER / "encoder"))


def _add(
    subparsers: Subparsers, name: str, run: Callable[[argparse.Namespace], None], summary: str
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    parser.set_defaults(run=run)
    return parser


def _add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the evaluation's folder")
    parser.add_argument("--methods", nargs="*", default=[], metavar="NAME", help="only these; all without")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="leave these out")


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference", action="append", default=[], metavar="NAME",
        help="compared with all others (the first that is no baseline); several times for a column of win rates each",
    )  # fmt: skip


def _add_meter_arguments(parser: argparse.ArgumentParser, *, clip_encoder: str = CLIP_ENCODER_ID) -> None:
    parser.add_argument("--lpips-backbone", type=Path, metavar="FILE", help="AlexNet or VGG-16 weights; without: null")
    parser.add_argument("--lpips-heads", type=Path, metavar="FILE", help="default: from the installed package lpips")
    parser.add_argument(
        "--clip-encoder", metavar="FOLDER",
        help=f"folder or id for the CLIP direction, or none ({Path(clip_encoder).name}, and null where it is not here)",
    )  # fmt: skip
    parser.set_defaults(default_encoder=clip_encoder)
    _add_device(parser)


def _at_least_two(text: str) -> int:
    number = whole_number(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 2; got {text}")
    return number


def _above_zero(text: str) -> float:
    number = finite_number(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text}")
    return number


def _add_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu or cuda")


if __name__ == "__main__":
    sys.exit(main())
