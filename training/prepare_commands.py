"""The bodies of `python -m training.prepare`'s commands: options in, files and lines of text out, exit code back.

Words of the command line are `prepare`'s subject, the work itself is `data`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .data.export_reference import ExportOptions, export_reference
from .data.importers import folders, hf_datasets, reference, relation252k, strips, webdataset
from .data.importers.building import Found, build_pairs, build_triplets
from .data.index import Index, PairIndex, PairRecord, RecordT, TripletIndex, TripletRecord, open_index
from .data.problems import DataError, Problem, as_json, as_text, errors_among, stop_if_wanted
from .data.splits import held_out_tasks, hold_out
from .data.triplet_splits import hold_out_triplets, without_known_pairs
from .data.validation import check_pairs, check_triplets, usable_pairs, usable_triplets, without_errors
from .terminal import show

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
