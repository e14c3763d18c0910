"""The data of a run: the analogies it is validated on, and the warnings about pairs that cannot be used."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from training.data.index import read_pairs, write_pairs
from training.run.data import divided_pairs, open_training_data, training_batches, validation_outlook
from training.run.preflight import preflight_report
from training.train import train


@pytest.mark.parametrize("limit", [3, 99])
def test_validation_analogies_are_one_per_task_and_of_a_limited_number(tiny_config, monkeypatch, limit):
    monkeypatch.setattr("training.run.data.MAX_VALIDATION_ITEMS", limit)
    options = ("validation.every=1", "data.hold_out_tasks=0", "data.hold_out_pairs=2")
    fixed = open_training_data(tiny_config(*options), None).validation["seen"].dataset
    assert len(fixed) == len({fixed.records[item.b].task for item in fixed.quadruplets}) == min(limit, 4)


def test_reason_for_pairs_left_out_is_an_error_not_a_warning(tiny_config, tiny_parts, tmp_path, caplog):
    *records, last = read_pairs(tiny_parts / "pairs.jsonl")
    missing = replace(last, before=tmp_path / "absent.png")
    write_pairs(tmp_path / "pairs.jsonl", [*records, missing])
    # At this size all images are small, which gives only a warning.
    config = tiny_config(f"data.index={tmp_path / 'pairs.jsonl'}", "data.resolution_px=256")
    assert len(open_training_data(config, None).records) == len(records)
    assert "1 of 16 pairs are left out; first reason: error: " in caplog.text
    assert "absent.png" in caplog.text


def test_a_broken_pair_is_never_the_one_held_out(tiny_config, tiny_parts, tmp_path):
    options = ("data.hold_out_tasks=0", "data.hold_out_pairs=1", "validation.every=1")
    intact = open_training_data(tiny_config(*options), None)
    held = next(record for record in intact.records if record.split == "val")
    records = read_pairs(tiny_parts / "pairs.jsonl")
    broken = [replace(record, before=tmp_path / "absent.png") if record.id == held.id else record for record in records]
    write_pairs(tmp_path / "pairs.jsonl", broken)
    config = tiny_config(*options, f"data.index={tmp_path / 'pairs.jsonl'}")
    data = open_training_data(config, None)
    tasks = sorted({record.task for record in records})
    assert sorted(record.task for record in data.records if record.split == "val") == tasks
    assert "15 of 16 pairs usable by their headers, 11 to train on" in preflight_report(config).text()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_logged_once_and_counted_at_the_end(tiny_config, tiny_parts, tmp_path, caplog, workers):
    *records, last = read_pairs(tiny_parts / "pairs.jsonl")
    cut_off = tmp_path / "cut-off.png"
    cut_off.write_bytes(last.before.read_bytes()[:-60])
    write_pairs(tmp_path / "pairs.jsonl", [*records, replace(last, before=cut_off)])
    options = ("data.hold_out_tasks=0", "data.hold_out_pairs=0", "run.steps=8", f"data.workers={workers}")
    train(tiny_config(*options, f"data.index={tmp_path / 'pairs.jsonl'}"))
    output = [message for message in caplog.messages if "replaced" in message]
    assert len(output) == 2
    assert "cut-off.png: damaged" in output[0]
    count = re.fullmatch(r"(\d+) samples replaced because of 1 unreadable image\(s\); `.*` lists them", output[1])
    assert count is not None
    assert int(count[1]) > 1


@pytest.mark.parametrize(("source", "is_logged"), [("a", True), ("b", True), ("task", False), ("none", False)])
def test_missing_captions_are_counted_by_check_and_at_the_start(
    tiny_config, tiny_parts, tmp_path, caplog, source, is_logged
):
    records = read_pairs(tiny_parts / "pairs.jsonl")
    config = tiny_config(f"data.index={tmp_path / 'pairs.jsonl'}", f"text.caption_source={source}")
    training = [r.id for r in divided_pairs(config, records)[0] if r.split == "train"]
    records = [replace(record, caption="" if record.id in training[:2] else "edit it") for record in records]
    write_pairs(tmp_path / "pairs.jsonl", records)
    line = f"captions: 2 of {len(training)} have none (first: {training[0]})"
    assert (line in preflight_report(config).text()) == is_logged
    open_training_data(config, None)
    assert (line in caplog.text) == is_logged


def test_check_says_that_it_reads_headers_only(tiny_config, tiny_parts, tmp_path):
    *records, last = read_pairs(tiny_parts / "pairs.jsonl")
    cut_off = tmp_path / "cut-off.png"
    cut_off.write_bytes(last.before.read_bytes()[:-60])
    write_pairs(tmp_path / "pairs.jsonl", [*records, replace(last, before=cut_off)])
    output = preflight_report(tiny_config(f"data.index={tmp_path / 'pairs.jsonl'}")).text()
    assert "16 of 16 pairs usable by their headers" in output
    assert "`training.prepare check` lists them, decodes every file and may find more" in output


def test_what_is_held_out_is_never_trained_on(tiny_config):
    config = tiny_config("data.hold_out_tasks=1", "data.hold_out_pairs=1", "run.batch_size=64")
    data = open_training_data(config, None)
    held_out = {record.id for record in data.records if record.split != "train"}
    assert held_out
    batches = training_batches(data, config, first_step=0, rank=0, world_size=1)
    batch = next(batches)
    seen = {*batch["pair_a"], *batch["pair_b"]}
    assert seen
    assert not seen & held_out


def validation_lines(caplog):
    output = [record for record in caplog.records if record.getMessage().startswith("validation")]
    return [(record.levelname, record.getMessage()) for record in output]


def test_the_number_of_validation_analogies_is_logged(tiny_config, caplog):
    caplog.set_level("INFO")
    config = tiny_config("validation.every=1", "data.hold_out_tasks=1", "data.hold_out_pairs=1")
    data = open_training_data(config, None)
    assert {name: len(fixed.dataset) for name, fixed in data.validation.items()} == {"seen": 3, "held_out": 1}
    assert validation_lines(caplog) == [
        ("INFO", "validation on seen tasks: 3 item(s); held-out tasks: 1 item(s)"),
    ]
    assert validation_outlook(config, data.records).counts == {"seen": 3, "held_out": 1}


def test_tasks_of_two_pairs_leave_nothing_to_validate_on_and_one_warning_says_why(
    tiny_config, tiny_parts, tmp_path, caplog
):
    kept, counts = [], Counter()
    for record in read_pairs(tiny_parts / "pairs.jsonl"):
        counts[record.task] += 1
        kept += [record] if counts[record.task] <= 2 else []
    write_pairs(tmp_path / "pairs.jsonl", kept)
    options = ("validation.every=1", "data.hold_out_pairs=1", f"data.index={tmp_path / 'pairs.jsonl'}")
    assert not open_training_data(tiny_config(*options, "data.hold_out_tasks=0"), None).validation
    (warning,) = [message for level, message in validation_lines(caplog) if level == "WARNING"]
    assert "validation on seen tasks: none, since each of 4 task(s) needs two pairs" in warning
    assert "validation on held-out tasks: none, since data.hold_out_tasks is 0; set it" in warning
    caplog.clear()
    data = open_training_data(tiny_config(*options, "data.hold_out_tasks=1"), None)
    assert data.validation.keys() == {"held_out"}
    (warning,) = [message for level, message in validation_lines(caplog) if level == "WARNING"]
    assert "on seen tasks: none" in warning
    assert "held-out" not in warning
    caplog.clear()
    open_training_data(tiny_config(*options, "validation.every=0"), None)
    assert not [message for level, message in validation_lines(caplog) if level == "WARNING"]


def test_a_set_that_was_not_asked_for_is_no_reason_to_warn(tiny_config, tiny_parts):
    config = tiny_config("validation.every=1", "data.hold_out_tasks=0", "data.hold_out_pairs=1")
    records, _ = divided_pairs(config, read_pairs(tiny_parts / "pairs.jsonl"))
    outlook = validation_outlook(config, records)
    assert outlook.counts == {"seen": 4, "held_out": 0}
    assert "held-out tasks: none, since data.hold_out_tasks is 0" in outlook.line
    assert not outlook.warning
