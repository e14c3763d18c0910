"""Bring pictures to one pair index, look at them, hold some out.

    python -m training.prepare folders mydata --out mydata/pairs.jsonl
    python -m training.prepare check mydata/pairs.jsonl
    python -m training.prepare split mydata/pairs.jsonl --hold-out-tasks 2 --hold-out-pairs 1

Every command explains itself: python -m training.prepare COMMAND --help
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lorweb_core.command_line.arguments import whole_number
from lorweb_core.errors import LoRWeBError
from lorweb_core.images import MAX_PIXELS

from . import prepare_commands as commands
from .arguments import count
from .terminal import let_terminal_replace, log_to_terminal

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns: 0 when all is well, 1 when `check` found errors, 2 for a mistake in the call or in where things are.
    """
    let_terminal_replace()
    log_to_terminal(logging.WARNING)
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except LoRWeBError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        print("prepare: interrupted; no index was written", file=sys.stderr)
        return EXIT_INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_folders(subparsers)
    _add_strips(subparsers)
    _add_relation252k(subparsers)
    _add_reference(subparsers)
    _add_hf(subparsers)
    _add_webdataset(subparsers)
    _add_check(subparsers)
    _add_split(subparsers)
    _add_export(subparsers)
    return parser


def _add_folders(subparsers: Subparsers) -> None:
    example = """folders mydata --out mydata/pairs.jsonl

layouts (pairs in mydata itself are a transformation too, and folders may lie deeper):
  mydata/watercolour/0001_before.png  0001_after.png  [0001.txt]
  mydata/watercolour/before/0001.png  after/0001.png  [caption/0001.txt]
  mydata/watercolour/task.toml   optional: caption, reverse_caption, split, weight, bidirectional"""
    parser = _add(subparsers, "folders", commands.import_folders, "a folder per transformation", example)
    _add_import_arguments(parser, "folder of transformations")


def _add_strips(subparsers: Subparsers) -> None:
    example = """strips strips --out strips/pairs.jsonl

layout: strips/watercolour/0001.png  [0001.txt], before on the left half, after on the right half"""
    parser = _add(subparsers, "strips", commands.import_strips, "before|after pictures side by side", example)
    _add_import_arguments(parser, "folder of strips, or of one folder of strips per transformation")
    parser.add_argument("--task", help="name for strips that lie in the folder itself (its name)")


def _add_relation252k(subparsers: Subparsers) -> None:
    example = """relation252k Relation252K --out Relation252K/pairs.jsonl

layout: Relation252K/115-Colored Pencil Filter/Group1/labels.json and before|after strips beside it"""
    parser = _add(subparsers, "relation252k", commands.import_relation252k, "the Relation252K data set", example)
    _add_import_arguments(parser, "folder of task folders")
    parser.add_argument("--group", default="Group1", help="subfolder of each task that is read; '' for all (Group1)")


def _add_reference(subparsers: Subparsers) -> None:
    example = """reference lorweb_data --out lorweb_data/triplets.jsonl

layout: control/x.jpg (strip a|a'|b), target/x.jpg (b'), target/x.txt (caption) or analogy_metadata.json"""
    parser = _add(subparsers, "reference", commands.import_reference, "the reference's ready-made triplets", example)
    _add_import_arguments(parser, "folder of control/ and target/")


def _add_hf(subparsers: Subparsers) -> None:
    example = """hf owner/edits --pictures data/pictures --out data/pairs.jsonl --caption-column instruction

sources: a .parquet file, a folder of them, an imagefolder (before_file_name, after_file_name; also as a .zip), a
saved data set, a hub id. Needs `pip install datasets`."""
    parser = _add(subparsers, "hf", commands.import_hf, "Hugging Face datasets: parquet, imagefolder, hub id", example)
    _add_import_arguments(parser, "file, folder or hub id", source_type=str)
    parser.add_argument("--pictures", type=Path, required=True, help="folder to write the tables' pictures into")
    parser.add_argument("--task", help="task of rows that name none (the source's name)")
    for role in ("before", "after", "caption", "task"):
        parser.add_argument(f"--{role}-column", metavar="NAME", help=f"column of the {role}; default: its usual names")
    parser.add_argument("--limit", type=count, metavar="ROWS", help="take only so many rows of each split")


def _add_webdataset(subparsers: Subparsers) -> None:
    example = """webdataset shards/*.tar --pictures data/pictures --out data/pairs.jsonl

members: x.before.jpg, x.after.jpg, and x.json {"task": …, "caption": …} or x.txt (caption)"""
    parser = _add(subparsers, "webdataset", commands.import_webdataset, "tar shards", example)
    _add_import_arguments(parser, "tar files, or folders of them", several=True)
    parser.add_argument("--pictures", type=Path, required=True, help="folder to unpack pictures into")
    parser.add_argument("--task", help="task of samples that name none (the name of the shard's folder)")


def _add_check(subparsers: Subparsers) -> None:
    parser = _add(
        subparsers, "check", commands.check, "list everything that is wrong with an index",
        "check mydata/pairs.jsonl --good mydata/good.jsonl",
    )  # fmt: skip
    parser.add_argument("index", type=Path, help="pair or triplet index (JSONL)")
    parser.add_argument("--resolution", type=count, default=256, help="cell side in px that training will use (256)")
    parser.add_argument("--quick", action="store_true", help="headers only: finds no truncated or changed files")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--good", type=Path, metavar="INDEX", help="also write an index of the records without errors")
    _add_max_pixels(parser)


def _add_split(subparsers: Subparsers) -> None:
    example = """split mydata/pairs.jsonl --hold-out-tasks 2 --hold-out-pairs 1
  python -m training.prepare split mydata/pairs.jsonl --hold-out-tasks watercolour 'night to day'"""
    parser = _add(subparsers, "split", commands.split, "hold out tasks and pairs for validation", example)
    parser.add_argument("index", type=Path, help="pair or triplet index; changed in place unless --out is given")
    parser.add_argument("--out", type=Path, metavar="INDEX", help="write here instead")
    parser.add_argument("--hold-out-tasks", nargs="*", default=["0"], metavar="TASK", help="names, or how many (0)")
    parser.add_argument(
        "--hold-out-pairs", type=whole_number, default=0, metavar="N",
        help="of every other task; of a triplet index at least so many triplets (0)",
    )  # fmt: skip
    parser.add_argument("--split", choices=("val", "test"), default="val", help="where they go (val)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (0)")


def _add_export(subparsers: Subparsers) -> None:
    parser = _add(
        subparsers, "export-reference", commands.export, "write the reference's control/ and target/",
        "export-reference mydata/pairs.jsonl --out reference --per-task 200",
    )  # fmt: skip
    parser.add_argument("index", type=Path, help="pair index")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="whose pairs (train)")
    parser.add_argument("--per-task", type=count, metavar="N", help="analogies of a task at most; default: all couples")
    parser.add_argument("--caption", choices=("a", "b", "task", "none"), default="a", help="whose caption (a)")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the pictures (jpg, quality 95)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice with --per-task (0)")


def _add(
    subparsers: Subparsers, name: str, run: Callable[[argparse.Namespace], int], summary: str, example: str
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  python -m training.prepare {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--no-progress", action="store_true", help="draw no progress bars")
    return parser


def _add_import_arguments(
    parser: argparse.ArgumentParser, source: str, *, source_type: type = Path, several: bool = False
) -> None:
    parser.add_argument("source", type=source_type, nargs="+" if several else None, help=source)
    parser.add_argument("--out", type=Path, required=True, metavar="INDEX", help="index to write (JSONL)")
    parser.add_argument(
        "--on-bad-data", choices=("skip", "stop"), default="skip",
        help="list unusable files and go on without them, or write nothing (skip)",
    )  # fmt: skip
    _add_max_pixels(parser)


def _add_max_pixels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-pixels", type=count, default=MAX_PIXELS, metavar="N", help=f"refuse larger pictures ({MAX_PIXELS})"
    )


if __name__ == "__main__":
    sys.exit(main())
