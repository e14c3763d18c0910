"""What a run draws from: which analogies it is validated on, and what it says of pairs that it cannot use."""

from dataclasses import replace

import pytest

from training.data.index import PairIndex
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
