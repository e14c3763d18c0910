"""Importers on real files of every documented shape, tidy and untidy; all of them end in one pair index."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorweb_core.errors import OutputError
from tests.training.data.pair_images import encoded, paint, truncate, write_pair, write_shard
from training.data.images import load_pair
from training.data.importers import folders, relation252k, strips, webdataset
from training.data.importers.building import Candidate, Found, build_pairs, split_name
from training.data.importers.extraction import safe_name
from training.data.index import DataError, read_pairs, write_pairs
from training.data.pairing import task_caption


def records_of(found):
    records, problems = build_pairs(found.candidates)
    assert not problems
    return records


def kinds(found):
    return {(Path(problem.file).name, problem.kind) for problem in found.problems}


def test_before_and_after_suffixes_make_pairs(tmp_path):
    for number in range(3):
        write_pair(tmp_path / "watercolor", f"{number:04d}", number, size=(64, 48))
    (tmp_path / "watercolor" / "0001.txt").write_text("\ufeffmake it a\n watercolor \n", encoding="utf-8")
    records = records_of(folders.find_pairs(tmp_path))
    assert [record.id for record in records] == [f"watercolor/{number:04d}" for number in range(3)]
    assert [record.caption for record in records] == ["", "make it a watercolor", ""]
    assert {(r.task, r.width, r.height, r.split, r.weight) for r in records} == {("watercolor", 64, 48, "train", 1.0)}
    assert len({record.sha256 for record in records}) == 3
    before, after = load_pair(records[0])
    assert np.array_equal(np.asarray(before), 255 - np.asarray(after))


def test_images_without_counterpart_or_of_unknown_formats_are_listed_and_other_files_ignored(tmp_path):
    folder = tmp_path / "t"
    write_pair(folder, "good", 1)
    for name in ("alone_before.png", "lonely_after.png", "good_before.jpg", "thumbnail.png"):
        paint(2).save(folder / name)
    for name in ("b_before.HEIC", "b_after.HEIC", "drawing.psd", "Thumbs.db", "._good_before.png", "._good.txt"):
        (folder / name).write_bytes(b"Mac OS X")
    for name in ("__MACOSX", "@eaDir", "t/__MACOSX"):
        (tmp_path / name).mkdir()
        paint(2).save(tmp_path / name / "x_before.png")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "empty").mkdir()
    found = folders.find_pairs(tmp_path)
    assert [candidate.id for candidate in found.candidates] == ["t/good"]
    assert kinds(found) == {
        ("alone_before.png", "unpaired"), ("lonely_after.png", "unpaired"), ("empty", "few-pairs"),
        ("good_before.png", "ambiguous"), ("b_before.HEIC", "unreadable"), ("b_after.HEIC", "unreadable"),
    }  # fmt: skip


def test_pairs_beside_the_folders_of_others_are_a_task_of_their_own(tmp_path):
    root = tmp_path / "mine"
    for task in ("night", "snow"):
        for number in range(2):
            write_pair(root / task, f"{number}", number)
    write_pair(root, "0001", 7)
    paint(1).save(root / "alone_before.png")
    found = folders.find_pairs(root)
    assert [c.id for c in found.candidates] == ["mine/0001", "night/0", "night/1", "snow/0", "snow/1"]
    assert kinds(found) == {("alone_before.png", "unpaired")}


def test_folders_of_folders_are_tasks_named_by_their_path(tmp_path):
    write_pair(tmp_path / "style" / "ink", "a", 1)
    write_pair(tmp_path / "style" / "ink" / "more", "b", 2)
    write_pair(tmp_path / "night", "c", 3)
    (tmp_path / "night" / "before").mkdir()
    (tmp_path / "night" / "thumbnails").mkdir()
    (tmp_path / "style" / "empty").mkdir()
    (tmp_path / "style" / "round").symlink_to(tmp_path, target_is_directory=True)
    found = folders.find_pairs(tmp_path)
    assert [(c.task, c.id) for c in found.candidates] == [
        ("night", "night/c"), ("style/ink", "style/ink/a"), ("style/ink/more", "style/ink/more/b"),
    ]  # fmt: skip
    assert [(Path(p.file).name, p.severity) for p in found.problems] == [("thumbnails", "warning"), ("empty", "error")]


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    write_pair(tmp_path / "mine", "a", 1)
    write_strip(tmp_path / "mine" / "b.png", 2)
    monkeypatch.chdir(tmp_path / "mine")
    assert [c.task for c in folders.find_pairs(Path()).candidates] == ["mine"]
    assert {c.task for c in strips.find_pairs(Path()).candidates} == {"mine"}


def test_side_folders_in_any_case_may_repeat_the_side_in_their_file_names(tmp_path):
    sides = {"Before": ("1_before.png", "2.png", "3_BEFORE.jpeg"), "AFTER": ("1_After.png", "2.webp", "3.jfif")}
    for side, names in sides.items():
        (tmp_path / "t" / side).mkdir(parents=True)
        for number, name in enumerate(names):
            paint(number).save(tmp_path / "t" / side / name, "PNG")
    write_pair(tmp_path / "t", "4", 9)
    (tmp_path / "t" / "Captions").mkdir()
    (tmp_path / "t" / "Captions" / "1.TXT").write_text("one")
    assert [(r.id, r.caption) for r in records_of(folders.find_pairs(tmp_path))] == [
        ("t/1", "one"), ("t/2", ""), ("t/3", ""), ("t/4", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "caption", "kinds"),
    [
        (b"\xef\xbb\xbfmake it\r\nnight\r\n", "make it night", []),
        ("machs grün".encode("utf-16"), "machs grün", []),
        ("machs grün".encode("cp1252"), "machs grün", ["caption"]),
        (b"", "of the task", []),
        (b"\xef\xbb\xbf \r\n", "of the task", []),
    ],
)
def test_captions_of_any_editor_are_read(tmp_path, data, caption, kinds):
    write_pair(tmp_path / "t", "a", 1)
    (tmp_path / "t" / "a.txt").write_bytes(data)
    (tmp_path / "t" / "task.toml").write_bytes(b'\xef\xbb\xbfcaption = "of the task"\r\n')
    found = folders.find_pairs(tmp_path)
    assert [candidate.caption for candidate in found.candidates] == [caption]
    assert [problem.kind for problem in found.problems] == kinds


def test_texts_of_no_pair_are_reported_once(tmp_path):
    write_pair(tmp_path / "t", "a", 1)
    for name in ("a.txt", "a_after.txt", "a_before.txt"):
        (tmp_path / "t" / name).write_text(name)
    found = folders.find_pairs(tmp_path)
    assert [candidate.caption for candidate in found.candidates] == ["a.txt"]
    assert [(problem.kind, problem.severity) for problem in found.problems] == [("unused", "warning")]
    assert "2 text file(s) named like no pair, as a_after.txt" in found.problems[0].reason


def test_task_toml_sets_caption_split_weight_and_a_reversed_task(tmp_path):
    for number, stem in enumerate("ab"):
        write_pair(tmp_path / "t", stem, number)
    (tmp_path / "t" / "a.txt").write_text("own words")
    toml = tmp_path / "t" / "task.toml"
    toml.write_text('caption = "all of them"\nsplit = "val"\nweight = 2\n')
    records = records_of(folders.find_pairs(tmp_path))
    assert [record.caption for record in records] == ["own words", "all of them"]
    assert {(r.split, r.weight, task_caption(r)) for r in records} == {("val", 2.0, "all of them")}
    toml.write_text('bidirectional = true\nreverse_caption = "undo it"\n')
    forward, backward = (record for record in records_of(folders.find_pairs(tmp_path)) if record.id.startswith("t/a"))
    assert (backward.before, backward.after) == (forward.after, forward.before)
    assert (forward.task, backward.task) == ("t", "t (reversed)")
    assert (forward.caption, backward.caption) == ("own words", "undo it")
    assert forward.sha256 != backward.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('captoin = "x"', "did you mean 'caption'"),
        ("weight = -1", "weight is -1"),
        ("weight = true", "weight is True"),
        ('split = "dev"', "split is 'dev'"),
        ('bidirectional = "yes"', "bidirectional is 'yes'"),
        ("caption = ", "Invalid value"),
    ],
)
def test_a_wrong_task_toml_is_refused_by_name(tmp_path, content, message):
    write_pair(tmp_path / "t", "a", 1)
    (tmp_path / "t" / "task.toml").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        folders.find_pairs(tmp_path)
    assert "task.toml" in str(caught.value)


def test_unreadable_images_are_listed_with_their_pair(tmp_path):
    for stem in ("a", "b", "c"):
        write_pair(tmp_path / "t", stem, ord(stem))
    (tmp_path / "t" / "a_after.png").write_bytes(b"")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "t" / "b_before.png", "TIFF")
    records, problems = build_pairs(folders.find_pairs(tmp_path).candidates)
    assert [record.id for record in records] == ["t/c"]
    assert {(p.kind, p.pair_id) for p in problems} == {("unreadable", "t/a"), ("wrong-mode", "t/b")}


def test_equal_ids_are_renamed(tmp_path):
    before, after = write_pair(tmp_path, "a", 1)
    records, _ = build_pairs([Candidate("x", "t", before, after)] * 3)
    assert [record.id for record in records] == ["x", "x~2", "x~3"]


def write_strip(path, seed, *, size=(128, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    paint(seed, size=size).save(path)


def test_strips_become_pairs_of_halves(tmp_path):
    write_strip(tmp_path / "night" / "0001.png", 1)
    write_strip(tmp_path / "loose.jpg", 2, size=(129, 60))
    (tmp_path / "night" / "0001.txt").write_text("make it night")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    found = strips.find_pairs(tmp_path, task="mine")
    assert kinds(found) == {("deep", "few-pairs")}
    loose, night = records_of(found)
    assert (loose.id, loose.task, loose.width, loose.height) == ("mine/loose", "mine", 64, 60)
    assert (night.id, night.caption, night.strip) == ("night/0001", "make it night", True)
    halves = [np.asarray(half) for half in load_pair(night)]
    assert np.array_equal(np.concatenate(halves, axis=1), np.asarray(Image.open(night.before)))
    write_pairs(tmp_path / "pairs.jsonl", [loose, night])
    assert read_pairs(tmp_path / "pairs.jsonl") == (loose, night)


def write_labels(folder, labels):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")


def label(name, instruction):
    descriptions = {"left_image_description": "a house", "right_image_description": "a drawing of a house"}
    return {"img_name": name, **descriptions, "edit_instruction": instruction}


def test_relation252k_as_documented(tmp_path):
    group = tmp_path / "115-Colored Pencil Filter" / "Group1"
    for number in range(2):
        write_strip(group / f"{number}.jpg", number)
    write_labels(group, [label(f"{number}.jpg", f"draw it {number}") for number in range(2)])
    first, second = records_of(relation252k.find_pairs(tmp_path))
    assert (first.task, first.id) == ("115-Colored Pencil Filter", "115-Colored Pencil Filter/0")
    assert (first.caption, second.caption) == ("draw it 0", "draw it 1")
    assert (first.width, first.height, first.strip) == (64, 64, True)
    assert task_caption(first) == "Colored Pencil Filter"


def test_relation252k_in_other_shapes_is_read_and_the_rest_listed(tmp_path):
    write_strip(tmp_path / "1-A" / "Group1" / "images" / "x.png", 1)
    write_strip(tmp_path / "1-A" / "Group2" / "y.png", 2)
    labels = [label("x", "a"), label("gone.jpg", "b"), {}, 7]
    write_labels(tmp_path / "1-A" / "Group1", {"version": 1, "labels": labels})
    write_labels(tmp_path / "1-A" / "Group2", [label("y.png", "c")])
    write_strip(tmp_path / "2-B" / "Other" / "z.png", 3)
    write_labels(tmp_path / "2-B" / "Other", [{"image_name": "sub/z.png", "prompt": "d"}])
    (tmp_path / "3-C").mkdir()
    (tmp_path / "4-D").mkdir()
    (tmp_path / "4-D" / "labels.json").write_text("[1, 2", encoding="utf-8")
    found = relation252k.find_pairs(tmp_path)
    assert [(c.id, c.caption) for c in found.candidates] == [("1-A/x", "a"), ("2-B/Other/z", "d")]
    assert [problem.kind for problem in found.problems] == ["missing", "missing", "unreadable", "few-pairs"]
    assert "2 entries name no image, the first is entry 2" in str(found.problems[1])
    everything = relation252k.find_pairs(tmp_path, group=None)
    assert "1-A/Group2/y" in [candidate.id for candidate in everything.candidates]


@pytest.mark.parametrize("above", ["Relation252K/train", "Relation252K", ""])
def test_relation252k_has_its_tasks_however_deep_it_was_unpacked(tmp_path, above):
    for task in ("1-A", "2-B"):
        for group in ("Group1", "Group2"):
            write_strip(tmp_path / above / task / group / "0.png", ord(task[-1]))
            write_labels(tmp_path / above / task / group, [label("0.png", f"{task} {group}")])
    (tmp_path / "__MACOSX" / "1-A" / "Group1").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "1-A" / "Group1" / "labels.json").write_bytes(b"Mac OS X")
    (tmp_path / above / "3-C").mkdir()
    found = relation252k.find_pairs(tmp_path)
    assert [(c.task, c.caption) for c in found.candidates] == [("1-A", "1-A Group1"), ("2-B", "2-B Group1")]
    assert kinds(found) == {("3-C", "few-pairs")}
    (one,) = relation252k.find_pairs(tmp_path / above / "1-A").candidates
    assert (one.task, one.caption) == ("1-A", "1-A Group1")


def test_webdataset_shards_are_unpacked_unchanged(tmp_path):
    described = {"task": "night", "caption": "make it\n night", "split": "validation", "weight": 3}
    members = {
        "a/0001.before.jpg": encoded(1), "a/0001.after.png": encoded(2, "PNG"),
        "a/0001.json": json.dumps(described).encode(),
        "a/0002.before.jpg": encoded(3), "a/0002.after.jpg": encoded(4), "a/0002.txt": b"words",
    }  # fmt: skip
    write_shard(tmp_path / "shards" / "train-000.tar", members)
    write_shard(tmp_path / "shards" / "train-001.tar.gz", {"x.source.jpg": encoded(5), "x.target.jpg": encoded(6)})
    found = webdataset.find_pairs([tmp_path / "shards"], tmp_path / "images")
    assert not found.problems
    first, second, third = records_of(found)
    assert (first.id, first.task, first.caption) == ("train-000/a/0001", "night", "make it night")
    assert (first.split, first.weight) == ("val", 3.0)
    assert (second.task, second.caption, second.split) == ("shards", "words", "train")
    assert third.id == "train-001/x"
    assert first.before.read_bytes() == members["a/0001.before.jpg"]
    assert first.after.suffix == ".png"


def test_webdataset_texts_beside_images_are_no_images(tmp_path):
    members = {
        "._1.before.jpg": b"Mac OS X",
        "1.before.JPEG": encoded(1), "1.before.txt": b"a house", "1.After.webp": encoded(2, "WEBP"),
        "1.after.json": b"{}", "1.txt": b"\xef\xbb\xbfdraw it\r\n", "1.json": b"\xef\xbb\xbf{}",
    }  # fmt: skip
    write_shard(tmp_path / "ink" / "a.TAR", members)
    (tmp_path / "ink" / "._a.tar").write_bytes(b"Mac OS X")
    found = webdataset.find_pairs([tmp_path / "ink"], tmp_path / "images")
    assert not found.problems
    (record,) = records_of(found)
    assert (record.caption, record.task, record.before.read_bytes()) == ("draw it", "ink", encoded(1))


def test_webdataset_members_cannot_leave_the_folder(tmp_path):
    names = ("../../evil.before.jpg", "../../evil.after.jpg", "/etc/x.before.jpg", "/etc/x.after.jpg")
    write_shard(tmp_path / "s.tar", {name: encoded(i) for i, name in enumerate(names)})
    (tmp_path / "in").mkdir()
    found = webdataset.find_pairs([tmp_path / "s.tar"], tmp_path / "in" / "images")
    written = {path for path in tmp_path.rglob("*") if path.is_file() and path.name != "s.tar"}
    assert len(found.candidates) == 2
    assert all((tmp_path / "in" / "images") in path.parents for path in written)


def test_keys_are_kept_apart_importing_again_changes_nothing_and_another_set_needs_its_own_folder(tmp_path):
    names = ("a/b.before.jpg", "a/b.after.jpg", "a_b.before.jpg", "a_b.after.jpg")
    write_shard(tmp_path / "s.tar", {name: encoded(i) for i, name in enumerate(names)})
    first = records_of(webdataset.find_pairs([tmp_path / "s.tar"], tmp_path / "images"))
    assert [(r.id, r.before.read_bytes()) for r in first] == [("s/a/b", encoded(0)), ("s/a_b", encoded(2))]
    assert records_of(webdataset.find_pairs([tmp_path / "s.tar"], tmp_path / "images")) == first
    write_shard(tmp_path / "s.tar", {name: encoded(7 + i) for i, name in enumerate(names)})
    with pytest.raises(OutputError, match="every import needs its own"):
        webdataset.find_pairs([tmp_path / "s.tar"], tmp_path / "images")
    assert records_of(Found([Candidate(r.id, r.task, r.before, r.after) for r in first])) == first


def test_incomplete_samples_and_damaged_shards_are_listed(tmp_path):
    write_shard(tmp_path / "a.tar", {
        "1.before.jpg": encoded(1), "1.json": b"{}",
        "2.before.jpg": encoded(2), "2.after.jpg": encoded(3), "2.json": b"{broken", "2.txt": b"draw it",
        "3.before.jpg": b"no image", "3.after.jpg": encoded(4),
    })  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    names = [f"{i}.{side}.png" for i in range(9) for side in ("after", "before")]
    write_shard(tmp_path / "b.tar", dict.fromkeys(names, buffer.getvalue()))
    truncate(tmp_path / "b.tar", keep=0.5)
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(b"no tar at all")[:20])
    found = webdataset.find_pairs([tmp_path], tmp_path / "images")
    damaged = {("b.tar", "damaged"), ("c.tar.gz", "damaged")}
    assert kinds(found) == {("a.tar", "unpaired"), ("a.tar", "unreadable")} | damaged
    records, problems = build_pairs(found.candidates)
    assert [problem.kind for problem in problems] == ["unreadable"]
    assert [record.caption for record in records if record.id == "a/2"] == ["draw it"]
    assert sum(record.id.startswith("b/") for record in records) in (3, 4)


def test_file_names_are_made_safe_and_split_names_of_other_sets_understood():
    names = {"a/b": "a_b", "..": "unnamed", "": "unnamed", "x.": "x", "a\0b": "a_b", "é ü": "é ü", "C:\\x": "C_x"}
    assert {name: safe_name(name) for name in names} == names
    splits = {"train": "train", "Validation": "val", "dev": "val", "test": "test", "whatever": "train"}
    assert {name: split_name(name) for name in splits} == splits


def test_a_member_of_excessive_size_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "_MAX_MEMBER_BYTES", 100)
    write_shard(tmp_path / "s.tar", {"1.before.jpg": b"x" * 101, "1.after.jpg": encoded(4)})
    found = webdataset.find_pairs([tmp_path / "s.tar"], tmp_path / "images")
    assert "1.before.jpg has 101 bytes" in str(found.problems[0]) and not found.candidates
