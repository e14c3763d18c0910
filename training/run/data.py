"""The data of a run: training batches, fixed validation analogies, and every prompt."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
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
from ..data.index import DataError, PairRecord, Problem, errors_among, read_pairs
from ..data.pairing import Quadruplet, missing_captions_line
from ..data.quadruplets import BucketBatchSampler, FixedQuadrupletDataset, QuadrupletDataset, collate_quadruplets
from ..data.splits import TaskKind, batches_by_bucket, fixed_quadruplets, held_out_tasks, hold_out
from .signals import STOP_SIGNALS

logger = logging.getLogger(__name__)
_KINDS: dict[str, TaskKind] = {"seen": "seen", "held_out": "held-out"}
#: At most so many validation analogies of each kind, one per task.
MAX_VALIDATION_ITEMS = 32
#: How torch reports a worker that died, and how it begins to report an error inside a living one.
_WORKER_DIED, _ERROR_IN_WORKER = ("DataLoader worker (pid", "Pin memory thread"), "Caught "


class DataLostError(DataError):
    """What a step needs is gone: a DataLoader worker was killed, or an image replaced during the run."""


@dataclass(frozen=True)
class FixedSet:
    """Validation items that never change.

    Attributes:
        dataset: item or None (an unreadable image) by position.
        batches: positions, one cell size per batch.
        unanswered: positions of items whose b′ is not known (b stands in its place).
    """

    dataset: FixedQuadrupletDataset
    batches: list[list[int]]
    unanswered: frozenset[int] = frozenset()


@dataclass(frozen=True)
class TrainingData:
    """The data of a run.

    Attributes:
        training: chooses training items, indexed by `DrawKey`.
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
    """Return the data of a run; unusable pairs are left out with a warning.

    Args:
        config: of the run.
        preprocessing: of the image encoder; None when no single images are embedded during the run.
    Raises DataError for an unusable index or examples, or nothing to train on.
    """
    pairs = read_pairs(config.data.index)
    records, problems = divided_pairs(config, pairs)
    if left_out := len(pairs) - len(records):
        logger.warning("%d of %d pairs are left out; first reason: %s", left_out, len(pairs), errors_among(problems)[0])
    options: dict[str, Any] = {"resolution_px": config.data.resolution_px, "preprocessing": preprocessing}
    trained_on = [record for record in records if record.split == "train"]
    source = config.text.caption_source
    training = QuadrupletDataset(trained_on, seed=config.run.seed, caption_source=source, **options)
    if line := missing_captions_line(trained_on, source):
        logger.warning("%s", line)
    outlook = validation_outlook(config, records)
    logger.info("%s", outlook.line)
    if outlook.warning:
        logger.warning("%s", outlook.warning)

    chosen = {name: (records, quadruplets) for name, quadruplets in validation_quadruplets(config, records).items()}
    examples, own = read_examples(config)
    chosen["examples"] = examples, tuple(own)
    unanswered = frozenset(i for i, q in enumerate(own) if examples[q.b].after == examples[q.b].before)
    validation = {
        name: FixedSet(
            FixedQuadrupletDataset(pairs, quadruplets, **options),
            batches_by_bucket([quadruplet.bucket for quadruplet in quadruplets], config.run.micro_batch_size),
            unanswered if name == "examples" else frozenset(),
        )
        for name, (pairs, quadruplets) in chosen.items()
        if quadruplets and config.validation.every
    }
    prompts = {*training.captions(), *(q.caption for fixed in validation.values() for q in fixed.dataset.quadruplets)}
    examples = examples if "examples" in validation else []
    return TrainingData(training, validation, tuple(records), tuple(sorted(prompts)), tuple(examples))


def divided_pairs(config: TrainConfig, pairs: Sequence[PairRecord]) -> tuple[list[PairRecord], list[Problem]]:
    """Return the pairs whose headers show no error, some of them held out as configured, and all problems.

    Only usable pairs are held out: a broken one would leave its task without validation.

    Raises DataError when nothing is usable or left for training.
    """
    data = config.data
    usable, problems = usable_pairs(pairs, resolution_px=data.resolution_px)
    records = hold_out(usable, tasks=data.hold_out_tasks, pairs_per_task=data.hold_out_pairs, seed=config.run.seed)
    return records, problems


def validation_quadruplets(config: TrainConfig, records: Sequence[PairRecord]) -> dict[str, tuple[Quadruplet, ...]]:
    """`seen` and `held_out` → the validation analogies among a run's pairs."""
    return {
        name: fixed_quadruplets(
            records, cell_buckets(config.data.resolution_px), kind=kind, per_task=1, max_items=MAX_VALIDATION_ITEMS,
            caption_source=config.text.caption_source, seed=config.run.seed,
        )
        for name, kind in _KINDS.items()
    }  # fmt: skip


def read_examples(config: TrainConfig) -> tuple[list[PairRecord], list[Quadruplet]]:
    """Pairs and analogies of `validation.examples`; each folder's name is the task.

    Without b_prime.* the answer is unknown: b's pair then has b on both sides.

    Raises DataError for everything that is missing or cannot be read, at once.
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
            has_prompt = config.text.caption_source != "none" and prompt.is_file()
            caption = read_text(prompt, MAX_TEXT_BYTES).strip() if has_prompt else ""
            bucket = nearest_bucket(buckets, records[-1].aspect)
            quadruplets.append(Quadruplet(len(records) - 2, len(records) - 1, bucket, caption))
    if problems:
        raise DataError(
            f"validation.examples cannot be used: {'; '.join(problems)}. Each folder needs a, a_prime and b, such as "
            "a.png, a_prime.png, b.jpg; b_prime and prompt.txt are optional."
        )
    return records, quadruplets


@dataclass(frozen=True)
class ValidationOutlook:
    """What a run will be validated on.

    Attributes:
        counts: `seen` and `held_out` → number of analogies; empty when validation is off.
        line: the same in words.
        warning: which configured set is empty (or that all are), why, and what to do; "" when none is.
    """

    counts: dict[str, int]
    line: str
    warning: str = ""


def validation_outlook(config: TrainConfig, records: Sequence[PairRecord]) -> ValidationOutlook:
    """Return what a run will be validated on; `records` are those of `divided_pairs`, no images are read."""
    data = config.data
    if not config.validation.every:
        return ValidationOutlook({}, "validation: off (validation.every is 0)")
    counts = {name: len(chosen) for name, chosen in validation_quadruplets(config, records).items()}
    unseen = held_out_tasks(records)
    held_out = {record.task for record in records if record.split == "val"}
    no_partner = "no val pair has another pair of similar shape in its task; add pairs of the same shape"
    reasons = dict.fromkeys(_KINDS, no_partner)
    if not held_out - unseen:
        tasks = Counter(record.task for record in records if record.task not in unseen)
        reasons["seen"] = (
            f"each of {len(tasks)} task(s) needs two pairs to train on and has none to spare (at most "
            f"{max(tasks.values(), default=0)}); add a third pair to a task, or set data.hold_out_tasks"
            if data.hold_out_pairs
            else "data.hold_out_pairs is 0; set it to 1 or more, or hold some out with `training.prepare split`"
        )
    if not held_out & unseen:
        reasons["held_out"] = (
            "the held-out tasks have no pair of the split val; move some there"
            if data.hold_out_tasks
            else "data.hold_out_tasks is 0; set it to 1 or more, or hold some out with `training.prepare split`"
        )
    texts = {
        name: f"{kind} tasks: " + (f"{counts[name]} item(s)" if counts[name] else f"none, since {reasons[name]}")
        for name, kind in _KINDS.items()
    }
    examples = len(read_examples(config)[1])
    wanted = {"seen": data.hold_out_pairs, "held_out": data.hold_out_tasks}
    is_lacking = not (any(counts.values()) or examples) or any(wanted[name] and not counts[name] for name in counts)
    missing = ". ".join(f"validation on {texts[name]}" for name in counts if not counts[name])
    line = f"validation on {'; '.join(texts.values())}" + (f"; {examples} of your own examples" if examples else "")
    return ValidationOutlook(counts, line, missing if is_lacking else "")


def training_batches(
    data: TrainingData, config: TrainConfig, *, first_step: int, rank: int, world_size: int
) -> Generator[dict[str, Any], None, None]:
    """Give this process's share of one batch per step, without end, starting with that of `first_step`.

    Each unreadable image is logged once (here, since the workers do not know of each other); `close()` ends the workers
    and logs the count.

    Raises DataLostError while iterating.
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
        worker_init_fn=_ignore_stop_signals,
    )
    return _batches_of(iter(loader))  # here, since it replaces a signal handler and draws a random number


def _batches_of(batches: Iterator[Any]) -> Generator[dict[str, Any], None, None]:
    replaced: Counter[str] = Counter()
    try:
        for batch in batches:
            for line in chain.from_iterable(batch["skipped"]):
                if line not in replaced:
                    logger.warning("replaced by another sample (from now on only counted): %s", line)
                replaced[line] += 1
            yield batch
    except (RuntimeError, ConnectionError, EOFError) as error:
        text = str(error)
        is_error_in_worker = text.startswith(_ERROR_IN_WORKER)
        if is_error_in_worker or (isinstance(error, RuntimeError) and not any(part in text for part in _WORKER_DIED)):
            raise
        raise DataLostError(
            "A DataLoader worker was killed, most likely by the out-of-memory killer. Lower data.workers (0 loads in "
            "the main process) or give the container more shared memory (docker run --shm-size 8g), then continue with "
            f"--resume latest. ({type(error).__name__}: {text[:150]})"
        ) from error
    finally:
        # Workers ignore SIGTERM, so Python's exit would wait for them forever where a traceback keeps the loader alive.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()
        if replaced:
            logger.warning(
                "%d samples replaced because of %d unreadable image(s); `python -m training.prepare check` lists them",
                replaced.total(), len(replaced),
            )  # fmt: skip


def _ignore_stop_signals(_worker: int) -> None:
    """Ctrl-C and schedulers signal all processes of a group; loading must go on until the state is saved."""
    for name in STOP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
