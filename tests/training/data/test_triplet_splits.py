"""Held-out triplets: what they show is not trained on, as far as that can be known."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from tests.training.data.pair_images import paint
from training.data.index import DataError, TripletIndex, TripletRecord
from training.data.splits import held_out_tasks
from training.data.triplet_splits import hold_out_triplets, validation_triplets, without_known_pairs


def triplets(**counts: int) -> list[TripletRecord]:
    """Every couple of so many pairs of each task, as `export-reference` writes them; no files."""
    return [triplet(task, a, b) for task, count in counts.items() for a, b in combinations(range(count), 2)]


def triplet(task: str, a: int, b: int, suffix: str = "") -> TripletRecord:
    name, nowhere = f"{task}_{a}_{b}{suffix}", Path("/nowhere")
    return TripletRecord(
        name, task + suffix, nowhere / f"{name}_c.png", nowhere / f"{name}_t.png", 64, 64,
        pair_a=f"{task}/{a}{suffix}", pair_b=f"{task}/{b}{suffix}",
    )  # fmt: skip


def pairs(records: list[TripletRecord], split: str) -> set[str]:
    chosen = [record for record in records if record.split == split]
    return {name.removesuffix(" (reversed)") for record in chosen for name in (record.pair_a, record.pair_b)}


@pytest.mark.parametrize("seed", range(4))
def test_no_answer_of_validation_is_trained_on_and_every_task_has_some(seed: int) -> None:
    records = hold_out_triplets(triplets(a=5, b=4, c=6), triplets_per_task=1, seed=seed)
    seen = validation_triplets(records, is_held_out_task=False)
    assert {record.task for record in seen} == {"a", "b", "c"}
    assert not {record.pair_b for record in seen} & pairs(records, "train")
    assert {record.task for record in records if record.split == "train"} == {"a", "b", "c"}


def test_the_choice_depends_on_the_seed_and_not_on_the_order() -> None:
    records = triplets(a=6, b=6)
    chosen = {r.id for r in hold_out_triplets(records, triplets_per_task=1) if r.split == "val"}
    assert {r.id for r in hold_out_triplets(records[::-1], triplets_per_task=1) if r.split == "val"} == chosen
    others = [hold_out_triplets(records, triplets_per_task=1, seed=seed) for seed in range(1, 6)]
    assert any({r.id for r in other if r.split == "val"} != chosen for other in others)


def test_triplets_that_share_no_pictures_are_held_out_one_by_one() -> None:
    records = [triplet("a", 2 * i, 2 * i + 1) for i in range(6)]
    held = hold_out_triplets(records, triplets_per_task=2, split="test")
    assert Counter(record.split for record in held) == {"train": 4, "test": 2}


def test_a_task_keeps_a_triplet_to_train_on() -> None:
    records = hold_out_triplets(triplets(a=2, b=3), triplets_per_task=9)
    assert {record.task for record in records if record.split == "train"} == {"a", "b"}
    assert not [record for record in records if record.task == "a" and record.split == "val"]


def test_a_task_held_out_takes_its_reversed_one_along() -> None:
    backward = [triplet(task, b, a, " (reversed)") for task in "ab" for a, b in combinations(range(3), 2)]
    records = triplets(a=3, b=3) + backward
    held = hold_out_triplets(records, tasks=["a"])
    assert held_out_tasks(held) == {"a", "a (reversed)"}
    assert held_out_tasks(hold_out_triplets(records, tasks=1)) in ({"a", "a (reversed)"}, {"b", "b (reversed)"})
    for seed in range(3):
        some = hold_out_triplets(records, triplets_per_task=1, seed=seed)
        answers = {r.pair_b.removesuffix(" (reversed)") for r in validation_triplets(some, is_held_out_task=False)}
        assert not answers & pairs(some, "train")


def test_names_that_are_unique_within_a_task_only_are_not_mixed_up() -> None:
    records = [replace(r, pair_a=r.pair_a[-1], pair_b=r.pair_b[-1]) for r in triplets(a=3, b=3)]
    assert held_out_tasks(hold_out_triplets(records, tasks=["a"])) == {"a"}


def test_without_names_equal_answers_stay_together(tmp_path: Path) -> None:
    records = []
    for number in range(8):
        target = tmp_path / f"{number}.png"
        paint(number // 2).save(target)
        records.append(TripletRecord(f"{number}", "t", tmp_path / "strip.png", target, 64, 64))
    held = hold_out_triplets(records, triplets_per_task=1)
    assert len(without_known_pairs(records)) == 8
    (first, second) = [int(record.id) for record in held if record.split == "val"]
    assert first // 2 == second // 2


def test_wrong_tasks_and_nothing_left_are_refused() -> None:
    with pytest.raises(DataError, match="Did you mean 'night'"):
        hold_out_triplets(triplets(night=3), tasks=["nigth"])
    with pytest.raises(DataError, match="Hold out fewer tasks"):
        hold_out_triplets(triplets(night=3), tasks=["night"])


def test_a_limit_leaves_out_as_few_tasks_as_possible() -> None:
    records = [replace(record, split="val") for record in triplets(a=4, b=3, c=2)]
    few = validation_triplets(records, is_held_out_task=True, max_items=3)
    assert [record.task for record in few] == ["a", "b", "c"]
    assert validation_triplets(records, is_held_out_task=True) == records
    assert validation_triplets(records, is_held_out_task=False) == []


def test_names_of_pairs_are_written_and_indexes_without_them_are_read(tmp_path: Path) -> None:
    (record,) = [replace(r, control=tmp_path / "c.png", target=tmp_path / "t.png") for r in triplets(a=2)]
    TripletIndex([record]).write_index(tmp_path / "new.jsonl")
    assert TripletIndex.read_index(tmp_path / "new.jsonl").records == (record,)
    old = '{"id": "x", "task": "t", "control": "c.png", "target": "t.png", "width": 4, "height": 4}\n'
    (tmp_path / "old.jsonl").write_text(old, encoding="utf-8")
    (read,) = TripletIndex.read_index(tmp_path / "old.jsonl").records
    assert (read.pair_a, read.pair_b) == ("", "")
