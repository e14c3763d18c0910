"""Record files: whatever was interrupted, the next run goes on from whole records."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorweb_core.errors import OutputError
from training.evaluation.records import RecordFile


def written(path, count):
    records = RecordFile(path, ("name",))
    for number in range(count):
        records.append({"name": f"n{number}", "value": number, "text": "Müller\n„x“"})
    return records


def test_records_are_read_back_and_the_last_of_a_key_counts(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    written(path, 3).append({"name": "n1", "value": 10})
    again = RecordFile(path, ("name",))
    assert [record["value"] for record in again] == [0, 10, 2]
    assert again.find("n1") == {"name": "n1", "value": 10}
    assert again.find("other") is None


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 260))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_can_be_added_to(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "records.jsonl"
    written(path, 4)
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    whole = sum(1 for line in data.split(b"\n") if line.endswith(b"}"))

    records = RecordFile(path, ("name",))
    assert len(records) == whole
    assert path.read_bytes() == data, "reading changes nothing"

    records.append({"name": "new", "value": 9})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["name"] for line in lines] == [f"n{i}" for i in range(whole)] + ["new"]


def test_damaged_lines_in_the_middle_are_counted_and_left_out(tmp_path, caplog):
    path = tmp_path / "records.jsonl"
    written(path, 3)
    lines = path.read_bytes().split(b"\n")
    lines[1] = b"\xff\x00" + lines[1][:10]
    path.write_bytes(b"\n".join(lines))
    records = RecordFile(path, ("name",))
    assert [record["name"] for record in records] == ["n0", "n2"]
    assert records.unreadable == 1
    assert "1 half-written or damaged line(s) left out" in caplog.text


def test_lines_of_another_kind_are_left_out(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('[1]\n{"other": 1}\n{"name": "a"}\n', encoding="utf-8")
    records = RecordFile(path, ("name",))
    assert len(records) == 1
    assert records.unreadable == 2


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="run the same command again"):
        RecordFile(tmp_path / "file" / "records.jsonl", ("name",)).append({"name": "a"})
