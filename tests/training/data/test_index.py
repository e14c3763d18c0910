"""The index file: what is written is read again, and every error in it is reported."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorweb_core.errors import OutputError
from tests.training.data.pair_images import pair_at, write_tasks
from training.data.index import DataError, read_pairs, write_pairs


def test_what_is_written_is_read_again_also_after_a_windows_editor(tmp_path):
    records = write_tasks(tmp_path / "images", {"négatif": [(64, 48), (64, 64)], "b": [(32, 32)]})
    for place in (tmp_path, tmp_path / "beside"):
        place.mkdir(exist_ok=True)
        index = place / "pairs.jsonl"
        write_pairs(index, records)
        assert read_pairs(index) == tuple(records)
        index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes().replace(b"\n", b"\r\n"))
        assert read_pairs(index) == tuple(records)


def test_paths_are_relative_so_the_folder_can_move(tmp_path):
    records = write_tasks(tmp_path / "first" / "images", {"negative": [(64, 48)]})
    write_pairs(tmp_path / "first" / "pairs.jsonl", records)
    line = json.loads((tmp_path / "first" / "pairs.jsonl").read_text(encoding="utf-8"))
    assert line["before"] == "images/negative/0000_before.png"
    shutil.move(tmp_path / "first", tmp_path / "second")
    moved = read_pairs(tmp_path / "second" / "pairs.jsonl")[0]
    assert moved.before == tmp_path / "second" / "images" / "negative" / "0000_before.png"
    assert moved.before.is_file()


@settings(max_examples=30, deadline=None)
@given(caption=st.text(max_size=40), task=st.text(min_size=1, max_size=20), weight=st.floats(0, 100))
def test_any_text_and_file_names_that_are_no_utf8_survive(tmp_path_factory, caption, task, weight):
    path = tmp_path_factory.mktemp("index") / "pairs.jsonl"
    before = path.with_name(os.fsdecode(b"\xff\xfe.png"))
    record = replace(pair_at("x", 0), task=task, caption=caption, weight=weight, before=before)
    write_pairs(path, [record])
    assert read_pairs(path) == (record,)


GOOD = {"id": "x", "task": "t", "before": "a.png", "after": "b.png", "width": 8, "height": 8}


def test_every_error_is_reported_at_once(tmp_path):
    path = tmp_path / "pairs.jsonl"
    wrong = [{**GOOD, "captoin": "x"}, {**GOOD, "width": "8", "split": "trian", "weight": -1}]
    path.write_text("\n".join(["", "{not json", "", *map(json.dumps, wrong)]), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_pairs(path)
    for part in (
        "line 2: it is not usable JSON",
        "); line 4: unknown field 'captoin' (did you mean 'caption'?)",
        "width is '8', not of type int",
        "split is 'trian', not one of train, val, test",
        "weight is -1",
    ):
        assert part in str(caught.value)
    path.write_text('{"id": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="field 'task' is missing"):
        read_pairs(path)
    write_pairs(path, [pair_at("t", 0), pair_at("t", 0)])
    with pytest.raises(DataError, match="id 't/0000' occurs 2 times"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"strip": 1}, "strip is 1, not of type bool"),
        ({"height": True}, "height is True"),
        ({"before": None}, "before is None"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path, changes, message):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(GOOD | changes), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "pairs.jsonl")


def test_an_empty_or_missing_index_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(DataError, match="no record at all"):
        read_pairs(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"training\.prepare"):
        read_pairs(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="is a folder, not a file"):
        read_pairs(tmp_path)


def test_a_folder_that_does_not_exist_is_reported_and_nothing_is_written(tmp_path):
    with pytest.raises(OutputError):
        write_pairs(tmp_path / "no such folder" / "pairs.jsonl", [pair_at("t", 0)])
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("has_hash", [True, False])
def test_a_file_that_is_replaced_in_place_has_another_key(tmp_path, has_hash):
    (record,) = write_tasks(tmp_path, {"t": [(64, 48)]})
    record = record if has_hash else replace(record, sha256="")
    keys = {record.before_key}
    assert record.before_key in keys
    status = record.after.stat()
    os.utime(record.after, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # of the same size, a moment later
    keys.add(record.before_key)
    record.after.write_bytes(record.after.read_bytes() + b"x")
    os.utime(record.after, ns=(status.st_atime_ns, status.st_mtime_ns))
    keys.add(record.before_key)
    assert len(keys) == 3


def test_a_hashed_pair_keeps_its_keys_in_another_folder_and_another_one_does_not(tmp_path):
    (here,) = write_tasks(tmp_path / "here", {"t": [(64, 48)]})
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = replace(
        here, before=tmp_path / "there" / "t" / here.before.name, after=tmp_path / "there" / "t" / here.after.name
    )
    assert (there.before_key, there.after_key) == (here.before_key, here.after_key)
    sets = [write_tasks(tmp_path / name, {"t": [(64, 48)]})[0] for name in ("one", "two")]
    first, second = (replace(record, sha256="") for record in sets)
    assert first.id == second.id
    assert first.before_key != second.before_key
    key = first.after_key
    assert key == replace(first, id="another name").after_key
    os.utime(first.before, ns=(0, 0))
    assert first.after_key != key
    key = first.after_key
    first.after.unlink()
    assert first.after_key != key
