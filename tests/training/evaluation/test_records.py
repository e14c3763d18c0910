"""Record files: whatever was interrupted, the next run continues from whole records."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorweb_core.errors import OutputError
from training.evaluation.folder import Records


def written(path, count):
    records = Records(path, "name")
    for number in range(count):
        records.append({"name": f"n{number}", "value": number, "text": "Müller\n„x“ \ud83d"})
    return records


def test_records_are_read_back_and_the_last_of_a_key_counts(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    written(path, 3).append({"name": "n1", "value": 10})
    again = Records(path, "name")
    assert [record["value"] for record in again] == [0, 10, 2]
    assert again.get("n1") == {"name": "n1", "value": 10}
    assert again.get("n2")["text"].endswith("\ud83d")
    assert again.get("other") is None


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 300))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_can_be_continued(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "records.jsonl"
    written(path, 4)
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    whole = sum(1 for line in data.split(b"\n") if line.endswith(b"}"))
    records = Records(path, "name")
    assert len(records) == whole
    assert path.read_bytes() == data, "reading changes nothing"
    records.append({"name": "new", "value": 9})
    assert [record["name"] for record in Records(path, "name")] == [f"n{i}" for i in range(whole)] + ["new"]


BAD_LINES = [b"\xff\x00{", b"[1]", b'{"other": 1}', b'{"name": [1]}', b"{x}", b"[" * 10_000, b"1" * 5000]


@pytest.mark.parametrize("line", BAD_LINES)
def test_lines_that_are_no_record_are_ignored_and_counted(tmp_path, caplog, line):
    path = tmp_path / "records.jsonl"
    written(path, 1)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b" \r\n" + line + b"\r\n")  # as a Windows editor saves it
    assert len(Records(path, "name")) == 1
    assert "ignored 1 incomplete line(s)" in caplog.text


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="run the same command again"):
        Records(tmp_path / "file" / "records.jsonl", "name").append({"name": "a"})
