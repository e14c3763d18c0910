"""The reference's layout is imported as pairs: panels cut exactly, each pair once, captions and tasks kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorweb_core.images import read_image
from tests.training.data.pair_images import paint
from training.data.importers.building import build_pairs
from training.data.importers.reference import METADATA_NAME, find_pairs
from training.data.index import DataError

#: Seeds of before and after images: pair name → (before, after).
PAIRS = {"x": (1, 2), "y": (3, 4), "z": (5, 6)}


def write_analogy(root, name, a, b, *, suffix=".png", caption=""):
    """Write strip, target and caption of the analogy a : a' :: b : b'; return its metadata entry."""
    for folder in ("control", "target"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    panels = [np.asarray(paint(seed)) for seed in (*PAIRS[a], PAIRS[b][0])]
    Image.fromarray(np.concatenate(panels, axis=1)).save(root / "control" / f"{name}{suffix}", quality=95)
    paint(PAIRS[b][1]).save(root / "target" / f"{name}{suffix}", quality=95)
    (root / "target" / f"{name}.txt").write_text(caption or f"make it {a},and shiny \n", encoding="utf-8")
    return {"analogy_id": name, "edit_prompt": f"from {a} , really", "category": "t", "pair_A": a, "pair_C": f"t/{b}"}


def import_all(root):
    found = find_pairs(root, root / "images")
    records, more = build_pairs(found.candidates)
    return records, [(Path(problem.file).name, problem.kind) for problem in found.problems + more]


def test_each_named_pair_is_imported_once_with_its_pixels(tmp_path):
    entries = [write_analogy(tmp_path, f"{a}{b}", a, b) for a, b in ("xy", "xz", "yz")]
    (tmp_path / METADATA_NAME).write_text(json.dumps([*entries, "nonsense"]), encoding="utf-8")
    records, problems = import_all(tmp_path)
    assert not problems
    assert [(record.id, record.caption) for record in records] == [
        ("t/x", "from x, really"), ("t/y", "from y, really"), ("t/z", "from x, really"),
    ]  # fmt: skip
    for record in records:
        assert record.task == "t"
        for path, seed in zip((record.before, record.after), PAIRS[record.id[2:]], strict=True):
            assert np.array_equal(np.asarray(read_image(path)), np.asarray(paint(seed)))
    assert import_all(tmp_path)[0] == records  # importing again changes nothing


def test_without_metadata_text_files_give_captions_and_equal_pairs_are_still_one(tmp_path):
    for a, b in ("xy", "xz"):
        write_analogy(tmp_path, f"{a}{b}", a, b)
    records, problems = import_all(tmp_path)
    assert len(records) == 3
    assert {record.caption for record in records} == {"make it x, and shiny"}
    assert {record.task for record in records} == {tmp_path.name}
    assert problems == [(METADATA_NAME, "unnamed")]


def test_panels_of_another_size_take_that_of_the_target(tmp_path):
    write_analogy(tmp_path, "xy", "x", "y")
    strip = tmp_path / "control" / "xy.png"
    Image.open(strip).resize((96, 40)).save(strip)
    records, _ = import_all(tmp_path)
    assert {read_image(path).size for record in records for path in (record.before, record.after)} == {(64, 64)}


@pytest.mark.parametrize("content", ["{broken", '{"a": 1}'])
def test_broken_metadata_is_reported_and_text_files_are_used(tmp_path, content):
    write_analogy(tmp_path, "xy", "x", "y")
    (tmp_path / METADATA_NAME).write_text(content, encoding="utf-8")
    records, problems = import_all(tmp_path)
    assert records[0].caption == "make it x, and shiny"
    assert problems[0] == (METADATA_NAME, "unreadable")


def test_files_without_counterpart_and_broken_ones_are_listed(tmp_path):
    write_analogy(tmp_path, "xy", "x", "y")
    paint(1).save(tmp_path / "control" / "alone.png")
    paint(2).save(tmp_path / "target" / "lonely.png")
    paint(3).save(tmp_path / "target" / "bad.png")
    (tmp_path / "control" / "bad.png").write_bytes(b"no image")
    records, problems = import_all(tmp_path)
    assert len(records) == 2
    assert {("alone.png", "unpaired"), ("lonely.png", "unpaired"), ("bad.png", "unreadable")} <= set(problems)


def test_a_folder_without_control_is_refused(tmp_path):
    with pytest.raises(DataError, match="control"):
        find_pairs(tmp_path, tmp_path / "images")
