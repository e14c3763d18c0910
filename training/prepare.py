"""Import images into one pair index, check it, and hold pairs out for validation.

\b
    python -m training.prepare folders mydata --out mydata/pairs.jsonl
    python -m training.prepare check mydata/pairs.jsonl
    python -m training.prepare split mydata/pairs.jsonl --hold-out-tasks 2 --hold-out-pairs 1

Options of a command: python -m training.prepare COMMAND --help
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, replace
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import typer

from lorweb_core.console import make_main, new_app

from .console import show
from .data.checks import check_pairs, usable_pairs, without_errors
from .data.importers import folders, hf_datasets, reference, relation252k, strips, webdataset
from .data.importers.building import Found, build_pairs
from .data.index import DataError, as_text, errors_among, read_pairs, stop_on_errors, write_pairs
from .data.splits import held_out_tasks, hold_out

EXIT_PROBLEMS = 1
_EXAMPLE = "example: python -m training.prepare "
app = new_app(__doc__)

Out = Annotated[Path, typer.Option(metavar="INDEX", help="index to write (JSONL)")]
Images = Annotated[Path, typer.Option(metavar="FOLDER", help="folder to write images into, one for every import")]
BadData = Annotated[
    Literal["skip", "stop"], typer.Option(help="list unusable files and continue without them, or write nothing")
]


@app.command("folders", epilog=f"{_EXAMPLE}folders mydata --out mydata/pairs.jsonl")
def import_folders(
    source: Annotated[Path, typer.Argument(help="folder of transformations")],
    out: Out,
    on_bad_data: BadData = "skip",
) -> None:
    """Import a folder per transformation.

    \b
    layouts (pairs in mydata itself are a transformation too, and folders may be nested):
      mydata/watercolor/0001_before.png  0001_after.png  [0001.txt]
      mydata/watercolor/before/0001.png  after/0001.png  [caption/0001.txt]
      mydata/watercolor/task.toml   optional: caption, reverse_caption, split, weight, bidirectional
    """
    _import(folders.find_pairs(source), source, out, on_bad_data)


@app.command("strips", epilog=f"{_EXAMPLE}strips strips --out strips/pairs.jsonl")
def import_strips(
    source: Annotated[Path, typer.Argument(help="folder of strips, or of one folder of strips per transformation")],
    out: Out,
    task: Annotated[str | None, typer.Option(help="name for strips in the folder itself (its name)")] = None,
    on_bad_data: BadData = "skip",
) -> None:
    """Import before|after images side by side.

    Layout: strips/watercolor/0001.png [0001.txt], before on the left half, after on the right half.
    """
    _import(strips.find_pairs(source, task=task), source, out, on_bad_data)


@app.command("relation252k", epilog=f"{_EXAMPLE}relation252k Relation252K --out Relation252K/pairs.jsonl")
def import_relation252k(
    source: Annotated[Path, typer.Argument(help="folder of task folders")],
    out: Out,
    group: Annotated[str, typer.Option(help="subfolder of each task that is read; '' for all")] = "Group1",
    on_bad_data: BadData = "skip",
) -> None:
    """Import the Relation252K data set.

    Layout: Relation252K/115-Colored Pencil Filter/Group1/labels.json and before|after strips beside it.
    """
    _import(relation252k.find_pairs(source, group=group or None), source, out, on_bad_data)


@app.command("reference", epilog=f"{_EXAMPLE}reference lorweb_data --images data/images --out data/pairs.jsonl")
def import_reference(
    source: Annotated[Path, typer.Argument(help="folder of control/ and target/")],
    images: Images,
    out: Out,
    on_bad_data: BadData = "skip",
) -> None:
    """Import the reference's analogies, as two pairs each: (a, a') and (b, b').

    Layout: control/x.jpg (strip a|a'|b), target/x.jpg (b'), target/x.txt (caption) or analogy_metadata.json.
    """
    _import(reference.find_pairs(source, images), source, out, on_bad_data)


@app.command(
    "hf",
    epilog=f"{_EXAMPLE}hf owner/edits --images data/images --out data/pairs.jsonl --caption-column instruction",
)
def import_hf(
    source: Annotated[str, typer.Argument(help="file, folder or hub id")],
    images: Images,
    out: Out,
    task: Annotated[str | None, typer.Option(help="task of rows that name none (the source's name)")] = None,
    before_column: Annotated[str | None, typer.Option(help="default: its usual names")] = None,
    after_column: Annotated[str | None, typer.Option(help="default: its usual names")] = None,
    caption_column: Annotated[str | None, typer.Option(help="default: its usual names")] = None,
    task_column: Annotated[str | None, typer.Option(help="default: its usual names")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="ROWS", help="at most so many rows of each split")] = None,
    on_bad_data: BadData = "skip",
) -> None:
    """Import Hugging Face datasets: parquet, imagefolder, hub id.

    Sources: a .parquet file, a folder of them, an imagefolder (before_file_name, after_file_name; also as a .zip), a
    saved data set, a hub id. Needs `pip install datasets`.
    """
    columns = hf_datasets.Columns(before_column, after_column, caption_column, task_column)
    found = hf_datasets.find_pairs(source, images, columns=columns, task=task, limit=limit)
    _import(found, source, out, on_bad_data)


@app.command("webdataset", epilog=f"{_EXAMPLE}webdataset shards --images data/images --out data/pairs.jsonl")
def import_webdataset(
    source: Annotated[list[Path], typer.Argument(help="tar files, or folders of them")],
    images: Images,
    out: Out,
    task: Annotated[str | None, typer.Option(help="task of rows that name none (the shard's folder)")] = None,
    on_bad_data: BadData = "skip",
) -> None:
    """Import tar shards.

    Members: x.before.jpg, x.after.jpg, and x.json {"task": …, "caption": …} or x.txt (caption).
    """
    _import(webdataset.find_pairs(source, images, task=task), source[0], out, on_bad_data)


@app.command(epilog=f"{_EXAMPLE}check mydata/pairs.jsonl --good mydata/good.jsonl")
def check(
    index: Annotated[Path, typer.Argument(help="pair index (JSONL)")],
    resolution: Annotated[int, typer.Option(min=1, help="cell side in px that training will use")] = 256,
    quick: Annotated[bool, typer.Option("--quick", help="headers only: finds no truncated or changed files")] = False,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object instead of lines")] = False,
    good: Annotated[Path | None, typer.Option(metavar="INDEX", help="write an index of pairs without errors")] = None,
) -> None:
    """List everything that is wrong with an index; exit code 1 when there is an error."""
    records = read_pairs(index)
    problems = check_pairs(records, resolution_px=resolution, decode=not quick, label="checking")
    usable = without_errors(records, problems)
    per_task = Counter(record.task for record in usable)
    facts: dict[str, object] = {
        "pairs": len(records),
        "usable pairs": len(usable),
        "pairs without a caption": sum(not record.caption for record in records),
        "tasks": len({record.task for record in records}),
        "usable tasks": len(per_task),
        "pairs per usable task": f"{min(per_task.values(), default=0)}…{max(per_task.values(), default=0)}",
        "usable pairs per split": dict(sorted(Counter(record.split for record in usable).items())),
        "held-out tasks": sorted(held_out_tasks(usable)),
    }
    if json:
        print(dumps({**facts, "problems": [asdict(problem) for problem in problems]}, indent=2))
    else:
        lines = [as_text(problems), *(f"{name}: {value}" for name, value in facts.items())]
        show(*(part for line in lines for part in line.splitlines()))
    if good is not None:
        if not usable:
            raise DataError(
                f"Nothing to write into {good}: all {len(records)} pairs have errors. Repair the files above."
            )
        write_pairs(good, usable)
        show(f"{len(usable)} of {len(records)} pairs → {good}", file=sys.stderr)
    if any(problem.severity == "error" for problem in problems):
        raise typer.Exit(EXIT_PROBLEMS)


@app.command(epilog=f"{_EXAMPLE}split mydata/pairs.jsonl --hold-out-tasks watercolor --hold-out-pairs 1")
def split(
    index: Annotated[Path, typer.Argument(help="pair index; changed in place unless --out is given")],
    out: Annotated[Path | None, typer.Option(metavar="INDEX", help="write here instead")] = None,
    hold_out_tasks: Annotated[
        list[str] | None, typer.Option(metavar="TASK", help="how many, or a name (again for each further one)")
    ] = None,
    hold_out_pairs: Annotated[int, typer.Option(min=0, metavar="N", help="of every other task")] = 0,
    split: Annotated[Literal["val", "test"], typer.Option(help="where they go")] = "val",
    seed: Annotated[int, typer.Option(help="of the choice")] = 0,
) -> None:
    """Hold out tasks and pairs for validation; pairs that their headers show to be unusable are not chosen."""
    names = hold_out_tasks or ["0"]
    tasks = int(names[0]) if len(names) == 1 and names[0].isdecimal() else names
    every = read_pairs(index)
    usable, problems = usable_pairs(every)
    divided = hold_out(usable, tasks=tasks, pairs_per_task=hold_out_pairs, split=split, seed=seed)

    # An unusable pair goes along with its task when that is held out whole, so it stays held out once repaired.
    by_id, unseen = {record.id: record for record in divided}, held_out_tasks(divided)
    records = [
        by_id.get(record.id)
        or (replace(record, split=split) if record.task in unseen and record.split == "train" else record)
        for record in every
    ]
    if len(divided) < len(records):
        print(f"not chosen: {len(records) - len(divided)} pair(s) that cannot be used", file=sys.stderr)
        print(as_text(errors_among(problems)), file=sys.stderr)
    write_pairs(out or index, records)

    counts = sorted(Counter(record.split for record in records).items())
    print(", ".join(f"{count} {name} pair(s)" for name, count in counts))
    show(f"held-out tasks: {', '.join(sorted(held_out_tasks(records))) or 'none'}")
    untouched = sorted({record.task for record in divided} - {r.task for r in divided if r.split != "train"})
    if untouched and hold_out_pairs:
        show(
            f"nothing to spare in {len(untouched)} task(s), the first is {untouched[0]}: two pairs of each stay for "
            "training",
            file=sys.stderr,
        )


def _import(found: Found, source: Path | str, out: Path, on_bad_data: str) -> None:
    """Write the index of what an importer found, and report problems."""
    records, more = build_pairs(found.candidates)
    problems = found.problems + more
    if on_bad_data == "stop":
        stop_on_errors(problems)
    if not records:
        shown = "; ".join(f"{problem.file} ({problem.reason})" for problem in problems[:3])
        raise DataError(
            f"There are no usable images in the layout of this command in {source}{': ' + shown if shown else ''}. "
            "Compare it with the layout in this command's --help."
        )
    write_pairs(out, records)
    if problems:
        print(as_text(problems), file=sys.stderr)
    without = sum(not record.caption for record in records)
    captions = f", {without} without a caption" if without else ""
    show(f"{len(records)} pair(s) in {len({record.task for record in records})} task(s){captions} → {out}")


main = make_main(app, "python -m training.prepare", interrupted="interrupted; no index was written")

if __name__ == "__main__":
    sys.exit(main(None))
