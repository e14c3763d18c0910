"""Items and batches: right pixels in the right quadrant, equal on all workers and ranks, robust to broken images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lorweb_core.errors import ImageError
from lorweb_core.images import read_image
from lorweb_core.preprocessing import CLIP_PREPROCESSING, Preprocessing, fit_image
from tests.training.data.pair_images import paint, truncate, write_tasks
from training.data.buckets import cell_buckets, nearest_bucket
from training.data.images import fit_cell
from training.data.index import DataError, PairRecord
from training.data.quadruplets import (
    BrokenImageError,
    BucketBatchSampler,
    EncoderImages,
    FixedQuadrupletDataset,
    QuadrupletDataset,
    collate_quadruplets,
)
from training.data.splits import batches_by_bucket, fixed_quadruplets, hold_out

SMALL = Preprocessing(16, 16, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIZES = {"negative": [(64, 64), (70, 64), (128, 72), (120, 72), (64, 64)], "other": [(48, 80)] * 4 + [(64, 64)] * 2}


@pytest.fixture
def records(tmp_path):
    return write_tasks(tmp_path, SIZES)


def dataset_of(records, **options):
    return QuadrupletDataset(records, seed=5, **{"resolution_px": 64, **options})


def take(dataset, batches, *, batch_size=4, **loader):
    sampler = BucketBatchSampler(dataset, batch_size=batch_size)
    source = iter(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_quadruplets, **loader))
    return [next(source) for _ in range(batches)]


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


def test_every_quadrant_holds_its_image(records):
    dataset = dataset_of(records, preprocessing=SMALL)
    by_id = {record.id: record for record in records}
    for keys in (BucketBatchSampler(dataset, batch_size=2).batch(n) for n in range(8)):
        for key in keys:
            item = dataset[key]
            a, b = by_id[item["pair_a"]], by_id[item["pair_b"]]
            cell = dataset.buckets[nearest_bucket(dataset.buckets, b.aspect)]
            w, h = cell.width, cell.height
            wanted = [fit_cell(read_image(path), cell) for path in (a.before, a.after, b.before, b.after)]
            target, context = (item[name].permute(1, 2, 0).numpy() for name in ("target", "context"))
            assert target.shape == context.shape == (2 * h, 2 * w, 3)
            for image, (y, x) in zip(wanted, ((0, 0), (0, w), (h, 0), (h, w)), strict=True):
                assert np.array_equal(target[y : y + h, x : x + w], image)
            assert np.array_equal(context[:h], target[:h])
            assert np.array_equal(context[h:, :w], target[h:, :w])
            assert np.array_equal(context[h:, w:], target[h:, :w])
            encoder = [np.array(fit_image(read_image(path), SMALL)) for path in (a.before, a.after, b.before)]
            assert np.array_equal(item["images"].numpy(), np.stack(encoder))
            assert item["image_keys"] == [a.before_key, a.after_key, b.before_key]
            assert item["task"] == a.task == b.task
            assert item["caption"] in ("", a.caption)


def test_batches_have_one_cell_size_and_stack(records):
    shapes = set()
    dataset = dataset_of(records, preprocessing=SMALL)
    for batch in take(dataset, 12):
        assert batch["target"].dtype == torch.uint8
        assert batch["target"].shape == batch["context"].shape
        assert batch["images"].shape == (4, 3, 16, 16, 3)
        assert len(batch["caption"]) == len(batch["task"]) == 4
        assert set(batch["caption"]) <= set(dataset.captions())
        shapes.add(tuple(batch["target"].shape[2:]))
    assert len(shapes) > 1
    assert all(side % 32 == 0 for shape in shapes for side in shape)


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_and_a_resumed_run_give_the_same_batches_in_the_same_order(records, start_method):
    dataset = dataset_of(records, preprocessing=SMALL)
    alone = take(dataset, 7)
    shared = take(dataset, 7, num_workers=2, multiprocessing_context=start_method, prefetch_factor=2)
    assert_equal_batches(alone, shared)
    resumed = BucketBatchSampler(dataset, batch_size=4, start=4)
    loader = iter(DataLoader(dataset, batch_sampler=resumed, collate_fn=collate_quadruplets, num_workers=1))
    assert_equal_batches(alone[4:], [next(loader) for _ in range(3)])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_one_batch_without_overlap_and_one_that_cannot_be_shared_is_refused(records, world_size):
    dataset = dataset_of(records)
    whole = BucketBatchSampler(dataset, batch_size=4)
    ranks = [BucketBatchSampler(dataset, batch_size=4, rank=r, world_size=world_size) for r in range(world_size)]
    for number in range(20):
        shares = [rank.batch(number) for rank in ranks]
        assert [key for share in shares for key in share] == whole.batch(number)
        assert len({key.bucket for share in shares for key in share}) == 1
    assert len(whole) == 3  # 11 pairs
    places = [(key.epoch, key.place) for number in range(12) for key in whole.batch(number)]
    assert len(set(places)) == 48
    assert {epoch for epoch, _ in places} == {0, 1, 2, 3}
    for options in ({"batch_size": 3, "world_size": world_size}, {"batch_size": 0}, {"batch_size": 2, "rank": 1}):
        with pytest.raises(DataError, match="multiple of the number of processes"):
            BucketBatchSampler(dataset, **options)


def test_an_image_that_breaks_mid_epoch_is_replaced_by_the_same_on_every_worker(records):
    dataset = dataset_of(records)
    intact = take(dataset, 10)
    truncate(records[0].after)
    batches = take(dataset, 10)
    assert_equal_batches(batches, take(dataset, 10, num_workers=2))
    skipped = [line for batch in batches for lines in batch["skipped"] for line in lines]
    assert skipped
    assert all("0000_after.png: damaged" in line for line in skipped)
    used = {name for batch in batches for name in (*batch["pair_a"], *batch["pair_b"])}
    assert records[0].id not in used
    for before, after in zip(intact, batches, strict=True):
        assert after["target"].shape == before["target"].shape
        for i in range(4):
            if not after["skipped"][i]:
                assert torch.equal(after["target"][i], before["target"][i])


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_went_away_stop_the_run_with_one_line_from_any_process(records, workers):
    for record in records:
        record.after.unlink()
    with pytest.raises(BrokenImageError) as caught:
        take(dataset_of(records), 1, num_workers=workers)
    message = str(caught.value)
    assert isinstance(caught.value, ImageError)
    assert message.startswith("20 quadruplets in a row could not be read, the last one because of ")
    assert "_after.png: missing: " in message
    assert "Traceback" not in message
    assert "\n" not in message


def test_broken_validation_items_are_left_out(records):
    held = hold_out(records, pairs_per_task=2)
    buckets = cell_buckets(64)
    chosen = fixed_quadruplets(held, buckets, kind="seen", per_task=4)
    assert len(chosen) == 4
    dataset = FixedQuadrupletDataset(held, chosen, resolution_px=64, preprocessing=SMALL)
    batches = batches_by_bucket([q.bucket for q in chosen], 2)

    def count():
        loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate_quadruplets)
        return sum(len(batch["caption"]) for batch in loader if batch)

    assert count() == 4
    broken = chosen[0].b
    held[broken].after.write_bytes(b"")
    assert count() == sum(broken not in (q.a, q.b) for q in chosen) < 4
    assert collate_quadruplets([None, None]) == {}


def test_encoder_images_are_those_of_the_items_known_ones_left_out_and_broken_ones_none(records):
    loader = DataLoader(EncoderImages(records, SMALL), batch_size=3, collate_fn=collate_quadruplets, num_workers=1)
    embedded = {
        key: image
        for batch in loader
        for keys, images in zip(batch["keys"], batch["images"], strict=True)
        for key, image in zip(keys, images, strict=True)
    }
    assert len(embedded) == 2 * len(records)
    for batch in take(dataset_of(records, preprocessing=SMALL), 6):
        for keys, images in zip(batch["image_keys"], batch["images"], strict=True):
            assert all(torch.equal(embedded[key], image) for key, image in zip(keys, images, strict=True))
    known = {key for record in records[1:] for key in (record.before_key, record.after_key)}
    remaining = EncoderImages(records, SMALL, known=known)
    assert [record.id for record in remaining.records] == [records[0].id]
    truncate(records[0].before)
    assert remaining[0] is None


def test_large_photographs_give_the_same_encoder_image_in_cache_and_item(tmp_path):
    for stem in ("0_before", "0_after", "1_before", "1_after"):
        paint(len(stem) + int(stem[0])).resize((2600, 2400)).save(tmp_path / f"{stem}.jpg")
    records = [
        PairRecord(str(i), "t", tmp_path / f"{i}_before.jpg", tmp_path / f"{i}_after.jpg", 2600, 2400) for i in (0, 1)
    ]
    dataset = dataset_of(records, preprocessing=CLIP_PREPROCESSING)
    items = [item for item in EncoderImages(records, CLIP_PREPROCESSING) if item is not None]
    cached = {key: image for item in items for key, image in zip(item["keys"], item["images"], strict=True)}
    item = dataset[BucketBatchSampler(dataset, batch_size=1).batch(0)[0]]
    assert all(torch.equal(cached[k], image) for k, image in zip(item["image_keys"], item["images"], strict=True))


def test_strips_are_items_like_any_other(tmp_path):
    records = []
    for number in range(3):
        strip = Image.new("RGB", (128, 64))
        strip.paste(paint(number), (0, 0))
        strip.paste(paint(10 + number), (64, 0))
        path = tmp_path / f"{number}.png"
        strip.save(path)
        records.append(PairRecord(str(number), "t", path, path, 64, 64, strip=True))
    dataset = dataset_of(records)
    item = dataset[BucketBatchSampler(dataset, batch_size=1).batch(0)[0]]
    a, b = int(item["pair_a"]), int(item["pair_b"])
    cells = [np.asarray(paint(seed)) for seed in (a, 10 + a, b, 10 + b)]
    wanted = np.concatenate([np.concatenate(cells[:2], 1), np.concatenate(cells[2:], 1)], 0)
    assert np.array_equal(item["target"].permute(1, 2, 0).numpy(), wanted)
