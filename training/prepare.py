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
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lorweb_core.command_line.arguments import whole_number
from lorweb_core.errors import LoRWeBError
from lorweb_core.images import MAX_PIXELS

from . import prepare as commands
from .console import count, let_terminal_replace, log_to_terminal, show
from .data.checks import check_pairs, check_triplets, usable_pairs, usable_triplets, without_errors
from .data.export_reference import ExportOptions, export_reference
from .data.importers import folders, hf_datasets, reference, relation252k, strips, webdataset
from .data.importers.building import Found, build_pairs, build_triplets
from .data.index import (
    DataError,
    Index,
    PairIndex,
    PairRecord,
    Problem,
    RecordT,
    TripletIndex,
    TripletRecord,
    as_json,
    as_text,
    errors_among,
    open_index,
    stop_if_wanted,
)
from .data.splits import held_out_tasks, hold_out
from .data.triplet_splits import hold_out_triplets, without_known_pairs

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
  mydata/watercolor/0001_before.png  0001_after.png  [0001.txt]
  mydata/watercolor/before/0001.png  after/0001.png  [caption/0001.txt]
  mydata/watercolor/task.toml   optional: caption, reverse_caption, split, weight, bidirectional"""
    parser = _add(subparsers, "folders", commands.import_folders, "a folder per transformation", example)
    _add_import_arguments(parser, "folder of transformations")


def _add_strips(subparsers: Subparsers) -> None:
    example = """strips strips --out strips/pairs.jsonl

layout: strips/watercolor/0001.png  [0001.txt], before on the left half, after on the right half"""
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
  python -m training.prepare split mydata/pairs.jsonl --hold-out-tasks watercolor 'night to day'"""
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


# The bodies of `python -m training.prepare`'s commands: options in, files and lines of text out, exit code back.
#
# Words of the command line are `prepare`'s subject, the work itself is `data`'s.


EXIT_FINE, EXIT_PROBLEMS = 0, 1


def import_folders(options: argparse.Namespace) -> int:
    """A folder per transformation → pair index."""
    return _import_pairs(options, folders.find_pairs(options.source))


def import_strips(options: argparse.Namespace) -> int:
    """before|after strips → pair index."""
    return _import_pairs(options, strips.find_pairs(options.source, task=options.task))


def import_relation252k(options: argparse.Namespace) -> int:
    """Relation252K → pair index."""
    return _import_pairs(options, relation252k.find_pairs(options.source, group=options.group or None))


def import_hf(options: argparse.Namespace) -> int:
    """Hugging Face `datasets` → pair index and pictures."""
    columns = hf_datasets.Columns(
        options.before_column, options.after_column, options.caption_column, options.task_column
    )
    found = hf_datasets.find_pairs(
        options.source,
        options.pictures,
        columns=columns,
        task=options.task,
        limit=options.limit,
        show_progress=_shows_progress(options),
    )
    return _import_pairs(options, found)


def import_webdataset(options: argparse.Namespace) -> int:
    """Webdataset shards → pair index and pictures."""
    shows = _shows_progress(options)
    found = webdataset.find_pairs(options.source, options.pictures, task=options.task, show_progress=shows)
    return _import_pairs(options, found)


def import_reference(options: argparse.Namespace) -> int:
    """The reference's `control/` + `target/` → triplet index."""
    found, problems = reference.find_triplets(options.source)
    records, more = build_triplets(found, max_pixels=options.max_pixels, show_progress=_shows_progress(options))
    _require_any(records, problems + more, options)
    TripletIndex(records).write_index(options.out)
    _report_import(options, problems + more, "triplet(s)", records)
    return EXIT_FINE


def check(options: argparse.Namespace) -> int:
    """Index → every problem, as text or JSON; 1 when a file is broken, 0 when pairs are merely left out."""
    index, shows = open_index(options.index), _shows_progress(options)
    if isinstance(index, TripletIndex):
        decode = not options.quick
        problems = check_triplets(index.records, decode=decode, max_pixels=options.max_pixels, show_progress=shows)
        facts: dict[str, object] = {"triplets": len(index), "tasks": len({r.task for r in index.records})}
        facts["triplets without a caption"] = sum(not record.caption for record in index.records)
    else:
        problems = check_pairs(
            index.records,
            resolution_px=options.resolution,
            decode=not options.quick,
            max_pixels=options.max_pixels,
            show_progress=shows,
        )
        facts = _facts(index.records, without_errors(index.records, problems))
    if options.json:
        print(as_json(problems, **facts))
    else:
        lines = [as_text(problems), *(f"{name}: {value}" for name, value in facts.items())]
        show(*(part for line in lines for part in line.splitlines()))
    if options.good is not None:
        _write_good(index, problems, options.good)
    return EXIT_PROBLEMS if any(problem.severity == "error" for problem in problems) else EXIT_FINE


def split(options: argparse.Namespace) -> int:
    """Index → the same with tasks and pairs held out; what headers show to be unusable is not chosen."""
    index, names = open_index(options.index), options.hold_out_tasks
    tasks = int(names[0]) if len(names) == 1 and names[0].isdigit() else names
    count, how = options.hold_out_pairs, {"tasks": tasks, "split": options.split, "seed": options.seed}
    if isinstance(index, TripletIndex):
        usable, problems = usable_triplets(index.records)
        _write_split(index, hold_out_triplets(usable, triplets_per_task=count, **how), problems, options)
        if unnamed := len(without_known_pairs(usable)):
            print(
                f"{unnamed} triplet(s) do not say which pairs they show: only equal pictures b' were kept together. "
                "Import again if there is an analogy_metadata.json with pair_A and pair_C.",
                file=sys.stderr,
            )
    else:
        pairs, problems = usable_pairs(index.records)
        _write_split(index, hold_out(pairs, pairs_per_task=count, **how), problems, options)
    return EXIT_FINE


def _write_split(
    index: Index[RecordT], divided: Sequence[RecordT], problems: Sequence[Problem], options: argparse.Namespace
) -> None:
    """Write the index with the divided records in place of their own, and tell what went where.

    What cannot be used goes along with its task when that is held out whole, so it stays so when it is repaired.
    """
    what = "triplet(s)" if isinstance(index, TripletIndex) else "pair(s)"
    by_id, unseen = {record.id: record for record in divided}, held_out_tasks(divided)
    records = [
        by_id.get(record.id)
        or (replace(record, split=options.split) if record.task in unseen and record.split == "train" else record)
        for record in index.records
    ]
    if len(divided) < len(records):
        print(f"not held out: {len(records) - len(divided)} {what} that cannot be used", file=sys.stderr)
        print(as_text(errors_among(problems)), file=sys.stderr)
    type(index)(records).write_index(options.out or options.index)
    counts = sorted(Counter(record.split for record in records).items())
    print(", ".join(f"{count} {name} {what}" for name, count in counts))
    show(f"held-out tasks: {', '.join(sorted(held_out_tasks(records))) or 'none'}")
    untouched = sorted({record.task for record in divided} - {r.task for r in divided if r.split != "train"})
    if untouched and options.hold_out_pairs:
        show(
            f"nothing to spare in {len(untouched)} task(s), the first is {untouched[0]}: two pairs (or one triplet) of "
            "each stay for training",
            file=sys.stderr,
        )


def export(options: argparse.Namespace) -> int:
    """Pair index → `control/` + `target/`."""
    index = PairIndex.read_index(options.index)
    chosen = [record for record in index.records if record.split == options.split]
    how = ExportOptions(options.per_task, options.caption, f".{options.format}", options.seed)
    count, problems = export_reference(chosen, options.out, how, show_progress=_shows_progress(options))
    if problems:
        print(as_text(problems), file=sys.stderr)
    show(f"{count} analogies → {options.out}")
    return EXIT_FINE


def _import_pairs(options: argparse.Namespace, found: Found) -> int:
    records, more = build_pairs(found.candidates, max_pixels=options.max_pixels, show_progress=_shows_progress(options))
    _require_any(records, found.problems + more, options)
    PairIndex(records).write_index(options.out)
    _report_import(options, found.problems + more, "pair(s)", records)
    return EXIT_FINE


def _require_any(records: Sequence[object], problems: Sequence[Problem], options: argparse.Namespace) -> None:
    stop_if_wanted(problems, options.on_bad_data)
    if records:
        return
    shown = "; ".join(f"{problem.file} ({problem.reason})" for problem in problems[:3])
    raise DataError(
        expected=f"pictures in the layout of this command in {options.source}",
        got=f"nothing usable{': ' + shown if shown else ''}",
        remedy="Compare it with the example in this command's --help.",
    )


def _report_import(
    options: argparse.Namespace, problems: Sequence[Problem], what: str, records: Sequence[PairRecord | TripletRecord]
) -> None:
    if problems:
        print(as_text(problems), file=sys.stderr)
    without = sum(not record.caption for record in records)
    captions = f", {without} without a caption" if without else ""
    show(f"{len(records)} {what} in {len({record.task for record in records})} task(s){captions} → {options.out}")


def _write_good(index: PairIndex | TripletIndex, problems: Sequence[Problem], path: Path) -> None:
    broken = {problem.pair_id for problem in errors_among(problems)}
    good = index.without(broken)
    if not len(good):
        raise DataError(
            expected="at least one usable record to write",
            got=f"problems in all {len(index)}",
            remedy="Repair the files that are listed above.",
        )
    good.write_index(path)
    show(f"{len(good)} of {len(index)} records → {path}", file=sys.stderr)


def _facts(records: Sequence[PairRecord], usable: Sequence[PairRecord]) -> dict[str, object]:
    per_task = Counter(record.task for record in usable)
    return {
        "pairs": len(records),
        "usable pairs": len(usable),
        "pairs without a caption": sum(not record.caption for record in records),
        "tasks": len({record.task for record in records}),
        "usable tasks": len(per_task),
        "pairs per usable task": f"{min(per_task.values(), default=0)}…{max(per_task.values(), default=0)}",
        "usable pairs per split": dict(sorted(Counter(record.split for record in usable).items())),
        "held-out tasks": sorted(held_out_tasks(usable)),
    }


def _shows_progress(options: argparse.Namespace) -> bool:
    return sys.stderr.isatty() and not options.no_progress


if __name__ == "__main__":
    sys.exit(main())
