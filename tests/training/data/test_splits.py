"""Held-out pairs and tasks, and the fixed analogies of validation."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.training.data.pair_images import pair_at
from training.data.buckets import cell_buckets, nearest_bucket
from training.data.index import DataError
from training.data.splits import batches_by_bucket, fixed_quadruplets, held_out_tasks, hold_out

BUCKETS = cell_buckets(64)


def tasks(**counts):
    return [pair_at(task, i) for task, count in counts.items() for i in range(count)]


def test_a_number_of_tasks_is_held_out_whole():
    records = hold_out(tasks(a=3, b=3, c=3, d=3), tasks=2)
    held = held_out_tasks(records)
    assert len(held) == 2
    assert all((record.split == "val") == (record.task in held) for record in records)


def test_the_choice_depends_on_seed_and_names_not_on_order():
    records = tasks(a=4, b=4, c=4, d=4, e=4)
    chosen = {r.id for r in hold_out(records, tasks=2, pairs_per_task=1) if r.split == "val"}
    assert {r.id for r in hold_out(records[::-1], tasks=2, pairs_per_task=1) if r.split == "val"} == chosen
    others = [{r.id for r in hold_out(records, tasks=2, seed=seed) if r.split == "val"} for seed in range(1, 6)]
    assert any(other != chosen for other in others)


def test_named_tasks_are_held_out_wrong_names_get_a_suggestion_and_not_everything_can_be():
    records = tasks(watercolor=3, night=3)
    assert held_out_tasks(hold_out(records, tasks=["night"])) == {"night"}
    with pytest.raises(DataError, match="Did you mean 'watercolor'"):
        hold_out(records, tasks=["watercolr"])
    with pytest.raises(DataError, match="Hold out fewer tasks"):
        hold_out(records, tasks=2)


def test_every_task_keeps_two_training_pairs():
    records = hold_out(tasks(a=2, b=3, c=9), pairs_per_task=4)
    kept = Counter(r.task for r in records if r.split == "train")
    assert kept == {"a": 2, "b": 2, "c": 5}


def test_an_index_without_training_pairs_is_refused_as_such():
    with pytest.raises(DataError, match="no pair of the split train"):
        hold_out([replace(record, split="val") for record in tasks(a=3)])


def test_other_splits_stay_and_nothing_else_changes():
    records = [replace(r, split="test") if r.id.endswith("0") else r for r in tasks(a=4, b=4)]
    held = hold_out(records, tasks=["a"], split="val")
    assert [replace(r, split="") for r in held] == [replace(r, split="") for r in records]
    assert {r.split for r in held if r.task == "a"} == {"val", "test"}
    assert {r.split for r in held if r.task == "b"} == {"train", "test"}


def with_reversed(records):
    """Every pair in both directions, as `bidirectional` tasks are imported; hashes differ, as those of real files."""
    forward = [replace(record, sha256=f"{record.id} forward") for record in records]
    names = [{"id": f"{r.id} (reversed)", "task": f"{r.task} (reversed)", "sha256": f"{r.id}!"} for r in forward]
    return forward + [replace(r, before=r.after, after=r.before, **n) for r, n in zip(forward, names, strict=True)]


def images(records, split):
    return {frozenset((record.before, record.after)) for record in records if record.split == split}


@pytest.mark.parametrize("seed", range(4))
def test_both_directions_of_a_pair_are_held_out_together(seed):
    records = with_reversed(tasks(a=5, b=6, c=4))
    held = hold_out(records, pairs_per_task=2, seed=seed)
    assert not images(held, "val") & images(held, "train")
    assert set(Counter(r.task for r in held if r.split == "val").values()) == {2}
    forward = [r.id for r in hold_out(records[: len(records) // 2], pairs_per_task=2, seed=seed) if r.split == "val"]
    assert [r.id for r in held if r.split == "val" and r in held[: len(records) // 2]] == forward


@pytest.mark.parametrize("seed", range(4))
def test_a_task_held_out_takes_its_reversed_one_along_and_counts_once(seed):
    records = with_reversed(tasks(a=3, b=3, c=3, d=3))
    held = hold_out(records, tasks=2, seed=seed)
    assert not images(held, "val") & images(held, "train")
    assert len(held_out_tasks(held)) == 4
    assert held_out_tasks(hold_out(records, tasks=["b (reversed)"])) == {"b", "b (reversed)"}


def test_a_pair_whose_images_the_index_has_in_another_split_goes_there():
    records = with_reversed(tasks(a=4))
    records[1] = replace(records[1], split="test")
    held = hold_out(records)
    assert {r.id for r in held if r.split == "test"} == {"a/0001", "a/0001 (reversed)"}


def test_copies_of_a_pair_in_another_task_are_held_out_with_it_and_every_task_keeps_two():
    a, b = (tasks(**{name: 4}) for name in "ab")
    copies = [replace(pair, sha256=f"same {i}") for task in (a, b) for i, pair in enumerate(task)]
    held = hold_out([*copies[:4], *copies[5:]], pairs_per_task=2)
    assert not {r.sha256 for r in held if r.split == "val"} & {r.sha256 for r in held if r.split == "train"}
    assert min(Counter(r.task for r in held if r.split == "train").values()) >= 2


def test_validation_on_held_out_tasks_uses_their_pairs_only():
    records = hold_out(tasks(a=4, b=4, c=4), tasks=["c"], pairs_per_task=2)
    quadruplets = fixed_quadruplets(records, BUCKETS, kind="held-out", per_task=3)
    assert len(quadruplets) == 3
    assert {records[q.a].task for q in quadruplets} == {records[q.b].task for q in quadruplets} == {"c"}
    assert len({q.b for q in quadruplets}) == 3


def test_validation_on_seen_tasks_completes_held_out_pairs_and_a_single_one_takes_a_training_pair_as_example():
    records = hold_out(tasks(a=5, b=5, c=4), tasks=["c"], pairs_per_task=2)
    quadruplets = fixed_quadruplets(records, BUCKETS, kind="seen", per_task=5)
    assert Counter(records[q.b].task for q in quadruplets) == {"a": 2, "b": 2}
    assert {records[q.a].split for q in quadruplets} == {records[q.b].split for q in quadruplets} == {"val"}
    records = hold_out(tasks(a=5), pairs_per_task=1)
    (quadruplet,) = fixed_quadruplets(records, BUCKETS, kind="seen")
    assert (records[quadruplet.a].split, records[quadruplet.b].split) == ("train", "val")
    assert all(fixed_quadruplets(tasks(a=3), BUCKETS, kind=kind) == () for kind in ("seen", "held-out"))


def test_validation_pairs_fit_in_shape():
    sizes = [(64, "val"), (128, "val"), (128, "train"), (300, "train")]
    records = [pair_at("a", i, width=width, split=split) for i, (width, split) in enumerate(sizes)]
    (quadruplet,) = fixed_quadruplets(records, BUCKETS, kind="seen")
    assert (quadruplet.a, quadruplet.b) == (2, 1)
    assert quadruplet.bucket == nearest_bucket(BUCKETS, 2.0)


def test_the_validation_list_survives_new_files_elsewhere():
    records = hold_out(tasks(a=6, b=6), pairs_per_task=3)
    more = hold_out(tasks(a=6, b=6, c=6), pairs_per_task=3)
    before = {(records[q.a].id, records[q.b].id) for q in fixed_quadruplets(records, BUCKETS, kind="seen")}
    after = {(more[q.a].id, more[q.b].id) for q in fixed_quadruplets(more, BUCKETS, kind="seen")}
    assert before <= after


def test_a_limit_leaves_out_as_few_tasks_and_shapes_as_possible():
    records = [pair_at(f"t{t}", i, width=64 if t % 2 else 110, split="val") for t in range(6) for i in range(4)]
    limited = fixed_quadruplets(records, BUCKETS, kind="held-out", per_task=2, max_items=7)
    assert sorted(Counter(records[q.b].task for q in limited).values()) == [1, 1, 1, 1, 1, 2]
    assert len({q.bucket for q in limited}) == 2
    assert limited == tuple(sorted(limited, key=lambda q: q.bucket))
    assert len(fixed_quadruplets(records, BUCKETS, kind="held-out", per_task=2)) == 12


def test_batches_hold_one_cell_size_and_every_item_once():
    buckets = [2, 0, 2, 2, 1, 0, 2]
    batches = batches_by_bucket(buckets, 2)
    assert all(len({buckets[i] for i in batch}) == 1 and len(batch) <= 2 for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches_by_bucket([], 2) == []
