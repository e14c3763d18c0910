"""From the data part of a configuration to what a run draws from: training items, fixed analogies, prompts.

Pair indices give fresh quadruplets every epoch; the reference's triplet indices give their fixed ones.
"""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from lorweb_core.errors import SettingsError
from lorweb_core.preprocessing import Preprocessing

from .config import DataConfig, TrainConfig
from .data.drawing import DrawSettings
from .data.index import PairIndex, PairRecord, TripletIndex, TripletRecord, open_index
from .data.problems import Problem, errors_among
from .data.quadruplets import BucketBatchSampler, FixedQuadrupletDataset, QuadrupletDataset, collate_quadruplets
from .data.reference import ReferenceDataset
from .data.splits import batches_by_bucket, hold_out
from .data.validation import usable_pairs
from .interruption import STOP_SIGNALS
from .validation_outlook import tell_outlook, validation_outlook, validation_quadruplets, validation_triplets

logger = logging.getLogger(__name__)
_PAIR_SETTINGS = ("task_exponent", "pairing", "hold_out_tasks", "hold_out_pairs")


@dataclass(frozen=True)
class FixedSet:
    """Validation items that never change.

    Attributes:
        dataset: item or None (a broken picture) by position.
        batches: positions, one cell size per batch.
    """

    dataset: Any
    batches: list[list[int]]


@dataclass(frozen=True)
class TrainingData:
    """What a run draws from.

    Attributes:
        training: drawing dataset, indexed by `DrawKey`.
        validation: `seen` and `held_out` → fixed items; either may be absent.
        records: usable pairs, or all triplets, of every split.
        prompts: every prompt of training and validation.
    """

    training: QuadrupletDataset | ReferenceDataset
    validation: dict[str, FixedSet]
    records: tuple[PairRecord, ...] | tuple[TripletRecord, ...]
    prompts: tuple[str, ...]


def open_training_data(config: TrainConfig, preprocessing: Preprocessing | None) -> TrainingData:
    """Return the data of a run; broken pairs are left out or refused as `data.on_bad_data` says.

    Args:
        config: of the run.
        preprocessing: of the image encoder; None when embeddings come from a cache.
    Raises: DataError: unusable index or nothing to draw. SettingsError: options that triplets do not have.
    """
    index = open_index(config.data.index)
    settings = DrawSettings(
        seed=config.run.seed,
        task_exponent=config.data.task_exponent,
        pairing=config.data.pairing,
        caption_source=config.text.caption_source,
        caption_dropout=config.text.caption_dropout,
    )
    if isinstance(index, TripletIndex):
        return _from_triplets(config, index, settings, preprocessing)
    return _from_pairs(config, index, settings, preprocessing)


def divided_pairs(config: TrainConfig, index: PairIndex) -> tuple[list[PairRecord], list[Problem]]:
    """Return the pairs that headers show to be usable, some of them held out as the run asks, and all problems.

    Held out is only what is usable: a broken pair would leave its task without validation.

    Raises: DataError: nothing is usable or left for training; any error with `data.on_bad_data: stop`.
    """
    data = config.data
    usable, problems = usable_pairs(index.records, on_bad_data=data.on_bad_data, resolution_px=data.resolution_px)
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


def _from_pairs(
    config: TrainConfig, index: PairIndex, settings: DrawSettings, preprocessing: Preprocessing | None
) -> TrainingData:
    data = config.data
    usable, problems = divided_pairs(config, index)
    left_out = len(index) - len(usable)
    if left_out:
        logger.warning("%d of %d pairs are left out; first reason: %s", left_out, len(index), errors_among(problems)[0])
    options: dict[str, Any] = {
        "resolution_px": data.resolution_px, "preprocessing": preprocessing, "on_bad_data": data.on_bad_data,
    }  # fmt: skip
    training = QuadrupletDataset([record for record in usable if record.split == "train"], settings, **options)
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


def _from_triplets(
    config: TrainConfig, index: TripletIndex, settings: DrawSettings, preprocessing: Preprocessing | None
) -> TrainingData:
    if config.data.cache_embeddings or config.data.cache_latents:
        raise SettingsError(
            expected="data.cache_embeddings and data.cache_latents off for an index of triplets",
            got="on",
            remedy="Switch them off, or import the pictures as pairs.",
        )
    _tell_idle_settings(config)
    options: dict[str, Any] = {
        "resolution_px": 2 * config.data.resolution_px, "preprocessing": preprocessing,
        "on_bad_data": config.data.on_bad_data,
    }  # fmt: skip
    training = ReferenceDataset([r for r in index.records if r.split == "train"], settings, **options)
    validation = {}
    for name, chosen in validation_triplets(config, index.records).items():
        if chosen and config.validation.every:
            dataset = ReferenceDataset(chosen, settings, **options)
            validation[name] = FixedSet(dataset, batches_by_bucket(dataset.bucket_of, config.run.micro_batch_size))
    tell_outlook(validation_outlook(config, index.records))
    fixed = chain.from_iterable(fixed.dataset.records for fixed in validation.values())
    prompts = {*training.captions(), *(record.caption for record in fixed if settings.caption_source != "none")}
    return TrainingData(training, validation, index.records, tuple(sorted(prompts)))


def _tell_idle_settings(config: TrainConfig) -> None:
    """Triplets are drawn as they stand; a setting that says otherwise would be passed over in silence."""
    changed = [name for name in _PAIR_SETTINGS if getattr(config.data, name) != DataConfig.model_fields[name].default]
    idle = [f"data.{name}" for name in changed]
    if config.text.caption_source in ("b", "task"):
        idle.append("text.caption_source (the stored captions are used)")
    if idle:
        logger.warning("no effect on an index of triplets: %s", ", ".join(idle))
