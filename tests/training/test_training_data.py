"""What a run draws from: which analogies it is validated on, and what it says of pairs that it cannot use."""

import re
from dataclasses import replace

import pytest

from training.data.index import PairIndex
from training.preflight import preflight_report
from training.train import train
from training.training_data import open_training_data


@pytest.mark.parametrize(("limit", "tasks"), [(3, 3), (5, 4), (99, 4)])
def test_few_validation_analogies_are_of_as_many_tasks_as_possible(tiny_config, limit, tasks):
    options = ("validation.every=1", "validation.per_task=2", "data.hold_out_tasks=0", "data.hold_out_pairs=2")
    data = open_training_data(tiny_config(*options, f"validation.max_items={limit}"), None)
    fixed = data.validation["seen"].dataset
    assert len(fixed) == min(limit, 8)
    assert len({fixed.records[item.b].task for item in fixed.quadruplets}) == tasks


def test_reason_for_pairs_left_out_is_an_error_not_a_warning(tiny_config, tiny_parts, tmp_path, caplog):
    *records, last = PairIndex.read_index(tiny_parts / "pairs.jsonl").records
    missing = replace(last, before=tmp_path / "absent.png")
    PairIndex([*records, missing]).write_index(tmp_path / "pairs.jsonl")
    # At this size all pictures are small, which is only remarked on.
    config = tiny_config(f"data.index={tmp_path / 'pairs.jsonl'}", "data.resolution_px=256")
    assert len(open_training_data(config, None).records) == len(records)
    assert "1 of 16 pairs are left out; first reason: error: " in caplog.text
    assert "absent.png" in caplog.text


def test_a_broken_pair_is_never_the_one_held_out(tiny_config, tiny_parts, tmp_path):
    options = ("data.hold_out_tasks=0", "data.hold_out_pairs=1", "validation.every=1")
    intact = open_training_data(tiny_config(*options), None)
    held = next(record for record in intact.records if record.split == "val")
    records = PairIndex.read_index(tiny_parts / "pairs.jsonl").records
    broken = [replace(record, before=tmp_path / "absent.png") if record.id == held.id else record for record in records]
    PairIndex(broken).write_index(tmp_path / "pairs.jsonl")
    config = tiny_config(*options, f"data.index={tmp_path / 'pairs.jsonl'}")
    data = open_training_data(config, None)
    tasks = sorted({record.task for record in records})
    assert sorted(record.task for record in data.records if record.split == "val") == tasks
    assert "15 of 16 pairs usable by their headers, 11 to train on" in preflight_report(config).text()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_told_once_and_counted_at_the_end(tiny_config, tiny_parts, tmp_path, caplog, workers):
    *records, last = PairIndex.read_index(tiny_parts / "pairs.jsonl").records
    cut_off = tmp_path / "cut-off.png"
    cut_off.write_bytes(last.before.read_bytes()[:-60])
    PairIndex([*records, replace(last, before=cut_off)]).write_index(tmp_path / "pairs.jsonl")
    options = ("data.hold_out_tasks=0", "data.hold_out_pairs=0", "run.steps=8", f"data.workers={workers}")
    train(tiny_config(*options, f"data.index={tmp_path / 'pairs.jsonl'}"))
    told = [message for message in caplog.messages if "replaced" in message]
    assert len(told) == 2
    assert "cut-off.png: damaged" in told[0]
    count = re.fullmatch(r"(\d+) draw\(s\) replaced because of 1 picture\(s\); `.*prepare check` names them", told[1])
    assert count is not None
    assert int(count[1]) > 1


def test_check_says_that_it_reads_headers_only(tiny_config, tiny_parts, tmp_path):
    *records, last = PairIndex.read_index(tiny_parts / "pairs.jsonl").records
    cut_off = tmp_path / "cut-off.png"
    cut_off.write_bytes(last.before.read_bytes()[:-60])
    PairIndex([*records, replace(last, before=cut_off)]).write_index(tmp_path / "pairs.jsonl")
    told = preflight_report(tiny_config(f"data.index={tmp_path / 'pairs.jsonl'}")).text()
    assert "16 of 16 pairs usable by their headers" in told
    assert "`training.prepare check` lists them, decodes every file and may find more" in told
