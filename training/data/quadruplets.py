"""Quadruplets for a torch DataLoader: images read, fitted and tiled.

    target = a | a'     context = a | a'
             b | b'               b | b

    dataset = QuadrupletDataset(records, seed=0, resolution_px=256, preprocessing=CLIP_PREPROCESSING)
    sampler = BucketBatchSampler(dataset, batch_size=6, rank=rank, world_size=world_size)
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_quadruplets, num_workers=4)

`pairing` chooses what is read. The image encoder gets the whole images (as in the nodes), not the cells.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lorweb_core.errors import ImageError
from lorweb_core.images import ImageFileError
from lorweb_core.preprocessing import Preprocessing, fit_image

from .buckets import Cell, cell_buckets
from .images import DECODE_AT_LEAST_PX, fit_cell, load_pair, tile_grid
from .index import DataError, PairRecord
from .pairing import Quadruplet, QuadrupletDrawer, all_captions

logger = logging.getLogger(__name__)

#: After so many broken images in a row the data are gone, not an image broken.
MAX_ATTEMPTS = 20
Item: TypeAlias = dict[str, Any]


class BrokenImageError(ImageError):
    """Many images in a row broke during training.

    A DataLoader raises a worker's error again from its printed traceback alone; the last line of that is kept.
    """

    def __init__(self, message: str) -> None:
        lines = message.strip().splitlines() or [""]
        Exception.__init__(self, lines[-1].split(f"{type(self).__name__}: ", 1)[-1])


class DrawKey(NamedTuple):
    """Names one training item completely: its place in which epoch, and the cell size of its batch."""

    epoch: int
    place: int
    bucket: int


class QuadrupletDataset(Dataset[Item]):
    """Training items, chosen anew in every epoch; map-style, indexed by `DrawKey` (see `BucketBatchSampler`).

    An item is a dict: `target` and `context` uint8 [3, 2h, 2w]; `images` uint8 [3, S, S, 3], a, a' and b as the encoder
    sees them (absent without `preprocessing`); `image_keys`, their three names in a cache; `caption`; `task`;
    `pair_a`, `pair_b` (ids); `skipped`, one line per broken image that was replaced.

    Args:
        records: pairs of the split `train`.
        seed, caption_source: see `QuadrupletDrawer`.
        resolution_px: cells have about resolution² pixels; the grid has four times that.
        preprocessing: of the image encoder, or None when no single images are embedded.
    Raises DataError when these records give no quadruplet.
    """

    def __init__(
        self, records: Sequence[PairRecord], *, seed: int = 0, caption_source: str = "a", resolution_px: int = 256,
        preprocessing: Preprocessing | None = None,
    ) -> None:  # fmt: skip
        self.records = tuple(records)
        self.buckets = cell_buckets(resolution_px)
        self.drawer = QuadrupletDrawer(self.records, self.buckets, seed=seed, caption_source=caption_source)
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        """Items of an epoch: as many as there are pairs."""
        return len(self.records)

    def __getitem__(self, key: DrawKey | tuple[int, int, int]) -> Item:
        epoch, place, bucket = key
        skipped: list[str] = []
        for attempt in range(MAX_ATTEMPTS):
            quadruplet = self.drawer.draw(epoch, place, bucket, attempt=attempt)
            cell = self.buckets[quadruplet.bucket]
            try:
                item = read_quadruplet(self.records, quadruplet, cell, self.preprocessing)
            except ImageFileError as error:
                skipped.append(f"{error.path}: {error.kind}: {error.reason}")
            else:
                return {**item, "skipped": skipped}
        raise BrokenImageError(
            f"{MAX_ATTEMPTS} quadruplets in a row could not be read, the last one because of {skipped[-1]}. Check that "
            "the data's disk is still connected, then run `python -m training.prepare check`."
        )

    def captions(self) -> tuple[str, ...]:
        """Every prompt an item can have, "" included."""
        return all_captions(self.records, self.drawer.caption_source)


class FixedQuadrupletDataset(Dataset[Item | None]):
    """The items of a fixed list (see `splits.fixed_quadruplets`), by position; for validation.

    A broken image gives None, which `collate_quadruplets` leaves out.
    """

    def __init__(
        self, records: Sequence[PairRecord], quadruplets: Sequence[Quadruplet], *, resolution_px: int = 256,
        preprocessing: Preprocessing | None = None,
    ) -> None:  # fmt: skip
        self.records, self.quadruplets = tuple(records), tuple(quadruplets)
        self.buckets, self.preprocessing = cell_buckets(resolution_px), preprocessing

    def __len__(self) -> int:
        return len(self.quadruplets)

    def __getitem__(self, position: int) -> Item | None:
        chosen = self.quadruplets[position]
        cell = self.buckets[chosen.bucket]
        try:
            return read_quadruplet(self.records, chosen, cell, self.preprocessing)
        except ImageFileError as error:
            logger.warning("validation item %d is left out: %s", position, error)
            return None


class BucketBatchSampler:
    """Endless batches of `DrawKey`s, one cell size per batch over all ranks, as a pure function of the batch number.

    Batch n of an epoch is the same whatever the number of ranks; every rank takes its own slice of it.

    Args:
        batch_size: of all ranks together, per optimizer update; a multiple of `world_size`.
        start: how many batches were used before; resuming needs nothing else.
    Raises DataError when `batch_size` cannot be shared equally.
    """

    def __init__(
        self, dataset: QuadrupletDataset, *, batch_size: int, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise DataError(
                f"A batch size of {batch_size} cannot be shared equally (rank {rank} of {world_size} processes). "
                "Set run.batch_size to a multiple of the number of processes."
            )
        self.dataset, self.batch_size, self.start = dataset, batch_size, start
        share = batch_size // world_size
        self._places = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        """Batches of one epoch, rounded up; iteration continues with the next epoch."""
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[DrawKey]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1

    def batch(self, number: int) -> list[DrawKey]:
        """This rank's keys of batch `number`, counted from the start of training."""
        epoch, batch = divmod(number, len(self))
        bucket = self.dataset.drawer.draw_bucket(epoch, batch)
        return [DrawKey(epoch, batch * self.batch_size + place, bucket) for place in self._places]


def read_quadruplet(
    records: Sequence[PairRecord], quadruplet: Quadruplet, cell: Cell, preprocessing: Preprocessing | None
) -> Item:
    """The item of a quadruplet (see `QuadrupletDataset`). Raises ImageFileError when an image cannot be used."""
    record_a, record_b = records[quadruplet.a], records[quadruplet.b]
    enough_px = max(DECODE_AT_LEAST_PX, 2 * cell.width, 2 * cell.height)
    a, a_prime = load_pair(record_a, at_least_px=enough_px)
    b, b_prime = load_pair(record_b, at_least_px=enough_px)
    cell_a, cell_a_prime, cell_b = (fit_cell(image, cell) for image in (a, a_prime, b))
    item: Item = {
        "target": tile_grid(cell_a, cell_a_prime, cell_b, fit_cell(b_prime, cell)),
        "context": tile_grid(cell_a, cell_a_prime, cell_b, cell_b),
        "image_keys": [record_a.before_key, record_a.after_key, record_b.before_key],
        "caption": quadruplet.caption,
        "task": record_b.task,
        "pair_a": record_a.id,
        "pair_b": record_b.id,
        "skipped": [],
    }
    if preprocessing is not None:
        item["images"] = torch.stack([fit_for_encoder(image, preprocessing) for image in (a, a_prime, b)])
    return item


def fit_for_encoder(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """One RGB image as the image encoder sees it, uint8 [S, S, 3]."""
    return torch.from_numpy(np.array(fit_image(image, preprocessing)))


def collate_quadruplets(items: Sequence[Item | None]) -> dict[str, Any]:
    """A batch: tensors stacked, everything else as lists; items that are None are left out, {} when all are."""
    present = [item for item in items if item is not None]
    if not present:
        return {}
    return {
        name: torch.stack([item[name] for item in present])
        if isinstance(value, Tensor)
        else [item[name] for item in present]
        for name, value in present[0].items()
    }


class EncoderImages(Dataset[Item | None]):
    """Every image of a pair index once, as the image encoder sees it; a cache of embeddings is filled from it.

    Per pair `keys` [before, after] and `images` uint8 [2, S, S, 3]; None for a broken image. Pairs of which both keys
    are `known` are left out.
    """

    def __init__(
        self, records: Sequence[PairRecord], preprocessing: Preprocessing, *, known: Collection[str] = ()
    ) -> None:
        held = set(known)
        wanted = {r.before_key + r.after_key: r for r in records if not {r.before_key, r.after_key} <= held}
        self.records = tuple(wanted.values())
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> Item | None:
        record = self.records[position]
        try:
            images = load_pair(record)
        except ImageFileError as error:
            logger.warning("no embedding for %s: %s: %s", error.path, error.kind, error.reason)
            return None
        fitted = torch.stack([fit_for_encoder(image, self.preprocessing) for image in images])
        return {"keys": [record.before_key, record.after_key], "images": fitted}
