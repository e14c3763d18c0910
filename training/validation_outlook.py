"""Which fixed analogies a run is validated on, and what to do where there are none; no picture is read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorweb_core.files import MAX_TEXT_BYTES, read_text
from lorweb_core.images import IMAGE_SUFFIXES, ImageFileError, read_image_size

from .config import TrainConfig
from .data.buckets import cell_buckets, nearest_bucket
from .data.drawing import Quadruplet
from .data.index import PairRecord, TripletRecord
from .data.problems import DataError
from .data.splits import TaskKind, fixed_quadruplets, held_out_tasks
from .data.triplet_splits import validation_triplets as fixed_triplets

logger = logging.getLogger(__name__)
_KINDS: dict[str, TaskKind] = {"seen": "seen", "held_out": "held-out"}


@dataclass(frozen=True)
class ValidationOutlook:
    """What a run will be validated on.

    Attributes:
        counts: `seen` and `held_out` → number of analogies; empty when validation is off.
        line: the same in words.
        warning: which set is missing though it is asked for (or both are), why, and what to do; "" when none is.
    """

    counts: dict[str, int]
    line: str
    warning: str = ""


def validation_outlook(
    config: TrainConfig, records: Sequence[PairRecord] | Sequence[TripletRecord]
) -> ValidationOutlook:
    """Return what a run will be validated on, without reading pictures; also for the check before a run.

    Args:
        config: of the run.
        records: of `divided_pairs`, or all of a triplet index.
    """
    if not config.validation.every:
        return ValidationOutlook({}, "validation: off (validation.every is 0)")
    triplets = [record for record in records if isinstance(record, TripletRecord)]
    pairs = [record for record in records if isinstance(record, PairRecord)]
    sets = validation_triplets(config, triplets) if triplets else validation_quadruplets(config, pairs)
    reasons = _why_none_of_triplets(config) if triplets else _why_none_of_pairs(config, pairs)
    counts = {name: len(chosen) for name, chosen in sets.items()}
    examples = len(read_examples(config)[1])
    told = {
        name: f"{kind} tasks: " + (f"{counts[name]} item(s)" if counts[name] else f"none, since {reasons[name]}")
        for name, kind in _KINDS.items()
    }
    asked_for = {"seen": config.data.hold_out_pairs, "held_out": config.data.hold_out_tasks} if pairs else {}
    is_lacking = not (any(counts.values()) or examples) or any(
        wanted and not counts[name] for name, wanted in asked_for.items()
    )
    missing = ". ".join(f"validation on {told[name]}" for name in counts if not counts[name])
    line = f"validation on {'; '.join(told.values())}" + (f"; {examples} of your own examples" if examples else "")
    return ValidationOutlook(counts, line, missing if is_lacking else "")


def tell_outlook(outlook: ValidationOutlook) -> None:
    """Write the outlook into the log."""
    logger.info("%s", outlook.line)
    if outlook.warning:
        logger.warning("%s", outlook.warning)


def validation_quadruplets(config: TrainConfig, records: Sequence[PairRecord]) -> dict[str, tuple[Quadruplet, ...]]:
    """`seen` and `held_out` → the analogies of a run's pairs."""
    return {
        name: fixed_quadruplets(
            records, cell_buckets(config.data.resolution_px), kind=kind, per_task=config.validation.per_task,
            max_items=config.validation.max_items, caption_source=config.text.caption_source, seed=config.run.seed,
        )
        for name, kind in _KINDS.items()
    }  # fmt: skip


def read_examples(config: TrainConfig) -> tuple[list[PairRecord], list[Quadruplet]]:
    """Pairs and analogies of `validation.examples`, each folder's name being the task.

    Without b_prime.* the answer is unknown: b's pair then has b on both sides.

    Raises: DataError: for everything that is missing or cannot be read, at once.
    """
    records: list[PairRecord] = []
    quadruplets, problems = [], []
    buckets = cell_buckets(config.data.resolution_px)
    for folder in config.validation.examples:
        images = {
            path.stem: path.absolute() for path in sorted(folder.glob("*")) if path.suffix.lower() in IMAGE_SUFFIXES
        }
        absent = [name for name in ("a", "a_prime", "b") if name not in images]
        if absent:
            problems.append(f"{folder} has no image named {' or '.join(absent)}")
            continue
        images.setdefault("b_prime", images["b"])
        for before, after in (("a", "a_prime"), ("b", "b_prime")):
            try:
                (width, height), _ = read_image_size(images[before]), read_image_size(images[after])
            except ImageFileError as error:
                problems.append(str(error))
                continue
            records.append(
                PairRecord(
                    f"example:{folder}/{before}", folder.resolve().name, images[before], images[after],
                    width, height, split="val",
                )
            )  # fmt: skip
        if not problems:
            prompt = folder / "prompt.txt"
            is_told = config.text.caption_source != "none" and prompt.is_file()
            caption = read_text(prompt, MAX_TEXT_BYTES).strip() if is_told else ""
            bucket = nearest_bucket(buckets, records[-1].aspect)
            quadruplets.append(Quadruplet(len(records) - 2, len(records) - 1, bucket, caption))
    if problems:
        raise DataError(
            f"validation.examples cannot be used: {'; '.join(problems)}. Each folder needs a, a_prime and b, such as "
            "a.png, a_prime.png, b.jpg; b_prime and prompt.txt are optional."
        )
    return records, quadruplets


def validation_triplets(config: TrainConfig, records: Sequence[TripletRecord]) -> dict[str, list[TripletRecord]]:
    """`seen` and `held_out` → the analogies of an index of triplets."""
    limit = config.validation.max_items
    return {
        name: fixed_triplets(records, is_held_out_task=kind == "held-out", max_items=limit)
        for name, kind in _KINDS.items()
    }


def _why_none_of_triplets(config: TrainConfig) -> dict[str, str]:
    """Set → why triplets have no analogies for it and what to do."""
    command = f"hold some out with `python -m training.prepare split {config.data.index}"
    lacking = "the index has no val triplet of a task that is"
    return {
        "seen": f"{lacking} trained on; {command} --hold-out-pairs 1`",
        "held_out": f"{lacking} not; {command} --hold-out-tasks 1`",
    }


def _why_none_of_pairs(config: TrainConfig, records: Sequence[PairRecord]) -> dict[str, str]:
    """Set → why pairs have no analogies for it, if there are none, and what to do."""
    data, unseen = config.data, held_out_tasks(records)
    kept = {name: {r.task for r in records if r.split == "val" and (r.task in unseen) == (name == "held_out")}
            for name in _KINDS}  # fmt: skip
    no_partner = "no val pair has another pair of similar shape in its task; add pairs of the same shape"
    reasons = {name: no_partner for name, tasks in kept.items() if tasks}
    if not kept["seen"]:
        counts = Counter(record.task for record in records if record.task not in unseen)
        reasons["seen"] = (
            f"each of {len(counts)} task(s) needs two pairs to train on and has none to spare (at most "
            f"{max(counts.values(), default=0)}); add a third pair to a task, or set data.hold_out_tasks"
            if data.hold_out_pairs
            else "data.hold_out_pairs is 0; set it to 1 or more, or hold some out with `training.prepare split`"
        )
    if not kept["held_out"]:
        reasons["held_out"] = (
            "the tasks held out have no val pair; give them pairs of the split val"
            if data.hold_out_tasks
            else "data.hold_out_tasks is 0; set it to 1 or more, or hold some out with `training.prepare split`"
        )
    return reasons
