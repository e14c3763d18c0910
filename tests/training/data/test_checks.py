"""The check: every kind of broken file is listed once, with its reason, and the rest goes on."""

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.training.data.pair_images import paint, record_of, truncate, write_pair, write_tasks
from training.data.checks import check_pairs, usable_pairs, without_errors
from training.data.index import DataError, Problem, as_text, stop_on_errors


def write_bomb(path):
    """A PNG of 60 bytes that says it has 2.5 thousand million pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))


def write_other(path, size):
    """Replace an image by one of another size."""
    paint(99, size=size).save(path)


BREAKAGES = [
    ("missing", lambda path: path.unlink()),
    ("unreadable", lambda path: path.write_bytes(b"<html>not found</html>")),
    ("damaged", truncate),
    ("too-large", write_bomb),
    ("wrong-mode", lambda path: Image.fromarray(np.zeros((64, 64), np.float32)).save(path, "TIFF")),
    ("changed", lambda path: write_other(path, (64, 64))),
    ("changed", lambda path: write_other(path, (96, 64))),
]


def kinds(problems):
    return [(problem.pair_id, problem.kind, problem.severity) for problem in problems]


@pytest.fixture
def records(tmp_path):
    return write_tasks(tmp_path, {"t": [(64, 64)] * 4})


@pytest.mark.parametrize(("kind", "break_file"), BREAKAGES)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_broken_file_is_listed_with_its_reason(records, kind, break_file, side):
    path = getattr(records[2], side)
    break_file(path)
    problems = check_pairs(records, resolution_px=64)
    assert kinds(problems) == [(records[2].id, kind, "error")]
    assert kind == "changed" or problems[0].file == str(path)
    assert without_errors(records, problems) == [*records[:2], *records[3:]]


def test_good_data_have_no_problems_and_headers_alone_miss_only_what_needs_decoding(records):
    assert check_pairs(records, resolution_px=64) == []
    truncate(records[0].after)
    records[1].after.unlink()
    assert kinds(check_pairs(records, resolution_px=64, decode=False)) == [(records[1].id, "missing", "error")]


def test_shapes_are_checked(tmp_path):
    records = write_tasks(tmp_path, {"t": [(64, 64)] * 2, "wide": [(200, 60)] * 2})
    before, after = write_pair(tmp_path / "t", "skewed", 50)
    write_other(before, (64, 40))
    records.append(record_of("t", "skewed", before, after))
    assert kinds(check_pairs(records, resolution_px=64)) == [
        ("wide/0000", "odd-aspect", "error"),
        ("wide/0001", "odd-aspect", "error"),
        ("t/skewed", "mismatch", "error"),
    ]


def test_small_images_are_a_warning_that_does_not_stop(records):
    usable, problems = usable_pairs(records, resolution_px=256)
    assert {(p.kind, p.severity) for p in problems} == {("small", "warning")}
    assert usable == records
    stop_on_errors(problems)


def test_an_unchanged_pair_is_a_warning(records):
    records[0].after.write_bytes(records[0].before.read_bytes())
    records[0] = record_of("t", 0, records[0].before, records[0].after)
    assert kinds(check_pairs(records, resolution_px=64)) == [("t/0000", "identical", "warning")]


def test_duplicates_are_left_out_within_a_task_and_errors_across_splits(records):
    again = replace(records[0], id="t/again")
    leak = replace(records[1], id="t/leak", split="val")
    shared = replace(records[2], id="other/shared", task="other")
    more = [*records, again, leak, shared, replace(records[3], id="other/x", task="other", sha256="")]
    assert kinds(check_pairs(more, resolution_px=64, decode=False)) == [
        ("t/again", "duplicate", "left out"),
        ("t/leak", "duplicate", "error"),
        ("other/shared", "shared", "warning"),
    ]


def test_tasks_that_give_no_analogy_are_listed(tmp_path):
    sizes = {"t": [(64, 64)] * 2, "single": [(64, 64)], "apart": [(64, 64), (64, 40), (64, 40)]}
    records = write_tasks(tmp_path, sizes)
    assert kinds(check_pairs(records, resolution_px=64)) == [
        ("single/0000", "few-pairs", "left out"),
        ("apart/0000", "no-partner", "left out"),
    ]
    truncate(records[0].before)
    assert [problem.kind for problem in check_pairs(records[:2], resolution_px=64)] == ["damaged", "few-pairs"]


def test_the_rest_is_used_or_the_first_errors_are_raised_and_nothing_usable_is_refused(records):
    records[0].after.unlink()
    usable, problems = usable_pairs(records, resolution_px=64)
    assert usable == records[1:]
    assert [problem.kind for problem in problems] == ["missing"]
    with pytest.raises(DataError, match=r"0000_after\.png.*prepare check"):
        stop_on_errors(problems)
    for record in records:
        record.before.unlink()
    with pytest.raises(DataError, match="4 problem"):
        usable_pairs(records, resolution_px=64)


def test_the_listing_names_every_file_and_counts_the_kinds():
    problems = [
        Problem("a.png", "missing", "there is no such file", pair_id="t/a"),
        Problem("b.png", "small", "tiny", "warning", "t/b"),
        Problem("c.png", "missing", "there is no such file", pair_id="t/c"),
    ]
    assert as_text(problems).splitlines() == [
        "error: a.png: missing: there is no such file",
        "warning: b.png: small: tiny",
        "error: c.png: missing: there is no such file",
        "3 problem(s): 2 × missing (error), 1 × small (warning)",
    ]
    assert as_text([]) == ""
