"""From the data part of a configuration to what a run draws from: training items, fixed analogies, prompts."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lorweb_core.files import MAX_TEXT_BYTES, read_text
from lorweb_core.images import IMAGE_SUFFIXES, ImageFileError, read_image_size
from lorweb_core.preprocessing import Preprocessing

from ..config.schema import TrainConfig
from ..data.buckets import cell_buckets, nearest_bucket
from ..data.checks import usable_pairs
from ..data.index import (
    DataError,
    PairIndex,
    PairRecord,
    Problem,
    errors_among,
)
from ..data.pairing import Quadruplet, missing_captions_line
from ..data.quadruplets import BucketBatchSampler, FixedQuadrupletDataset, QuadrupletDataset, collate_quadruplets
from ..data.splits import TaskKind, batches_by_bucket, fixed_quadruplets, held_out_tasks, hold_out
from .signals import STOP_SIGNALS

# Which fixed analogies a run is validated on, and what to do where there are none; no picture is read.


#: At most so many validation analogies of each kind, one per task.
MAX_VALIDATION_ITEMS = 32
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


def validation_outlook(config: TrainConfig, records: Sequence[PairRecord]) -> ValidationOutlook:
    """Return what a run will be validated on, without reading pictures; also for the check before a run.

    Args:
        config: of the run.
        records: of `divided_pairs`.
    """
    if not config.validation.every:
        return ValidationOutlook({}, "validation: off (validation.every is 0)")
    sets = validation_quadruplets(config, records)
    reasons = _why_no_validation(config, records)
    counts = {name: len(chosen) for name, chosen in sets.items()}
    examples = len(read_examples(config)[1])
    told = {
        name: f"{kind} tasks: " + (f"{counts[name]} item(s)" if counts[name] else f"none, since {reasons[name]}")
        for name, kind in _KINDS.items()
    }
    asked_for = {"seen": config.data.hold_out_pairs, "held_out": config.data.hold_out_tasks}
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
            records, cell_buckets(config.data.resolution_px), kind=kind, per_task=1, max_items=MAX_VALIDATION_ITEMS,
            caption_source=config.text.caption_source, seed=config.run.seed,
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


def _why_no_validation(config: TrainConfig, records: Sequence[PairRecord]) -> dict[str, str]:
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


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FixedSet:
    """Validation items that never change.

    Attributes:
        dataset: item or None (a broken picture) by position.
        batches: positions, one cell size per batch.
        unanswered: positions of items whose b′ is not known (b stands in its place).
    """

    dataset: Any
    batches: list[list[int]]
    unanswered: frozenset[int] = frozenset()


@dataclass(frozen=True)
class TrainingData:
    """What a run draws from.

    Attributes:
        training: drawing dataset, indexed by `DrawKey`.
        validation: `seen`, `held_out` and `examples` → fixed items; any may be absent.
        records: usable pairs of every split.
        prompts: every prompt of training and validation.
        examples: pairs of `validation.examples`.
    """

    training: QuadrupletDataset
    validation: dict[str, FixedSet]
    records: tuple[PairRecord, ...]
    prompts: tuple[str, ...]
    examples: tuple[PairRecord, ...] = ()


def open_training_data(config: TrainConfig, preprocessing: Preprocessing | None) -> TrainingData:
    """Return the data of a run; broken pairs are left out.

    Args:
        config: of the run.
        preprocessing: of the image encoder; None when embeddings come from a cache.
    Raises: DataError: unusable index or nothing to draw.
    """
    index = PairIndex.read_index(config.data.index)
    data = _from_pairs(config, index, preprocessing)
    examples, quadruplets = read_examples(config)
    if not examples or not config.validation.every:
        return data
    dataset = FixedQuadrupletDataset(
        examples, quadruplets, resolution_px=config.data.resolution_px, preprocessing=preprocessing
    )
    batches = batches_by_bucket([q.bucket for q in quadruplets], config.run.micro_batch_size)
    unanswered = frozenset(i for i, q in enumerate(quadruplets) if examples[q.b].after == examples[q.b].before)
    validation = data.validation | {"examples": FixedSet(dataset, batches, unanswered)}
    prompts = tuple(sorted({*data.prompts, *(q.caption for q in quadruplets)}))
    return replace(data, validation=validation, prompts=prompts, examples=tuple(examples))


def divided_pairs(config: TrainConfig, index: PairIndex) -> tuple[list[PairRecord], list[Problem]]:
    """Return the pairs that headers show to be usable, some of them held out as the run asks, and all problems.

    Held out is only what is usable: a broken pair would leave its task without validation.

    Raises: DataError: nothing is usable or left for training.
    """
    data = config.data
    usable, problems = usable_pairs(index.records, resolution_px=data.resolution_px)
    records = hold_out(usable, tasks=data.hold_out_tasks, pairs_per_task=data.hold_out_pairs, seed=config.run.seed)
    return records, problems


def training_batches(
    data: TrainingData, config: TrainConfig, *, first_step: int, rank: int, world_size: int
) -> Generator[dict[str, Any], None, None]:
    """Give this process's share of one batch per step, without end, starting with that of `first_step`.

    Every picture that breaks is told once; a line with the count follows on `close()`, which also ends the workers.
    """
    sampler = BucketBatchSampler(
        data.training, batch_size=config.run.batch_size, rank=rank, world_size=world_size, start=first_step
    )
    loader: DataLoader[Any] = DataLoader(
        data.training,
        batch_sampler=sampler,
        collate_fn=collate_quadruplets,
        num_workers=config.data.workers,
        pin_memory=torch.cuda.is_available() and config.run.device != "cpu",
        worker_init_fn=_leave_signals_to_the_main_process,
    )
    return _telling_replacements(iter(loader))


def _telling_replacements(batches: Iterator[dict[str, Any]]) -> Generator[dict[str, Any], None, None]:
    """The same batches; told here and not where pictures are read, as loading processes do not know of each other."""
    replaced: Counter[str] = Counter()
    try:
        for batch in batches:
            for line in chain.from_iterable(batch["skipped"]):
                if line not in replaced:
                    logger.warning("replaced by another draw, from now on without a word: %s", line)
                replaced[line] += 1
            yield batch
    finally:
        # Workers ignore SIGTERM, so Python's exit would wait for them forever where a traceback keeps the loader alive.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()
        if replaced:
            logger.warning(
                "%d draw(s) replaced because of %d picture(s); `python -m training.prepare check` names them",
                replaced.total(),
                len(replaced),
            )


def _leave_signals_to_the_main_process(_worker: int) -> None:
    """Ctrl-C and schedulers signal all processes of a group; loading must go on until the state is saved."""
    for name in STOP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _from_pairs(config: TrainConfig, index: PairIndex, preprocessing: Preprocessing | None) -> TrainingData:
    data = config.data
    usable, problems = divided_pairs(config, index)
    left_out = len(index) - len(usable)
    if left_out:
        logger.warning("%d of %d pairs are left out; first reason: %s", left_out, len(index), errors_among(problems)[0])
    options: dict[str, Any] = {"resolution_px": data.resolution_px, "preprocessing": preprocessing}
    trained_on = [record for record in usable if record.split == "train"]
    source = config.text.caption_source
    training = QuadrupletDataset(trained_on, seed=config.run.seed, caption_source=source, **options)
    if line := missing_captions_line(trained_on, source):
        logger.warning("%s", line)
    validation = {}
    for name, chosen in validation_quadruplets(config, usable).items():
        if chosen and config.validation.every:
            dataset = FixedQuadrupletDataset(usable, chosen, **options)
            validation[name] = FixedSet(
                dataset, batches_by_bucket([q.bucket for q in chosen], config.run.micro_batch_size)
            )
    tell_outlook(validation_outlook(config, usable))
    prompts = {*training.captions(), *(q.caption for fixed in validation.values() for q in fixed.dataset.quadruplets)}
    return TrainingData(training, validation, tuple(usable), tuple(sorted(prompts)))
