"""Hugging Face data sets, written by the library itself: parquet, imagefolder, saved to disk."""

import json
import sys
import zipfile

import pytest

from tests.training.data.pair_images import encoded, paint, write_shard
from training.data.importers.building import build_pairs
from training.data.importers.hf_datasets import Columns, find_pairs
from training.data.index import DataError

datasets = pytest.importorskip("datasets", reason="the optional package `datasets` (extra `hf`) is not installed")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def table(count=3, *, before="before", after="after"):
    features = {
        before: datasets.Image(),
        after: datasets.Image(),
        "edit_instruction": datasets.Value("string"),
        "task": datasets.ClassLabel(names=["night", "snow"]),
    }
    columns = {
        before: [{"bytes": encoded(i), "path": None} for i in range(count)],
        after: [{"bytes": encoded(100 + i, "PNG"), "path": None} for i in range(count)],
        "edit_instruction": [f"edit\n{i}" for i in range(count)],
        "task": [i % 2 for i in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def imported(found):
    """The records of three pairs, whose files are checked to be the encoded ones."""
    records, problems = build_pairs(found.candidates)
    assert not found.problems + problems
    assert records[1].before.read_bytes() == encoded(1)
    assert records[1].after.read_bytes() == encoded(101, "PNG")
    assert (records[1].before.suffix, records[1].after.suffix) == (".jpg", ".png")
    return records


def test_parquet_is_imported_without_encoding_again(tmp_path):
    table().to_parquet(tmp_path / "edits.parquet")
    records = imported(find_pairs(str(tmp_path / "edits.parquet"), tmp_path / "images"))
    assert [(r.id, r.task, r.caption, r.split) for r in records] == [
        ("train/000000", "night", "edit 0", "train"),
        ("train/000001", "snow", "edit 1", "train"),
        ("train/000002", "night", "edit 2", "train"),
    ]


def test_a_folder_of_parquet_splits_and_a_saved_data_set_keep_them(tmp_path):
    (tmp_path / "set").mkdir()
    table(3).to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    table(2).to_parquet(tmp_path / "set" / "validation-00000-of-00001.parquet")
    found = find_pairs(str(tmp_path / "set"), tmp_path / "images", limit=2)
    assert [(c.id, c.split) for c in found.candidates] == [
        ("train/000000", "train"), ("train/000001", "train"),
        ("validation/000000", "val"), ("validation/000001", "val"),
    ]  # fmt: skip
    table().save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": table(2)}).save_to_disk(tmp_path / "several")
    assert len(find_pairs(str(tmp_path / "one"), tmp_path / "p1").candidates) == 3
    assert {c.split for c in find_pairs(str(tmp_path / "several"), tmp_path / "p2").candidates} == {"test"}


def test_an_imagefolder_stays_where_it_is(tmp_path):
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    lines = []
    for number in range(2):
        paint(number).save(folder / f"{number}_b.png")
        paint(10 + number).save(folder / f"{number}_a.png")
        names = {"before_file_name": f"{number}_b.png", "after_file_name": f"{number}_a.png"}
        lines.append(json.dumps({**names, "caption": "make it so", "task": "so"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = find_pairs(str(tmp_path / "set"), tmp_path / "images")
    assert [candidate.before for candidate in found.candidates] == [folder / "0_b.png", folder / "1_b.png"]
    assert {(candidate.task, candidate.caption) for candidate in found.candidates} == {("so", "make it so")}
    assert not (tmp_path / "images").exists()


def write_zip(path, *, folder=""):
    """An imagefolder of three pairs in a zip file: metadata, images in `folder`, and what macOS adds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            files = {
                f"{number:04d}_before.jpg": encoded(number),
                f"{number:04d}_after.png": encoded(100 + number, "PNG"),
            }
            for name, data in files.items():
                archive.writestr(folder + name, data)
                archive.writestr(f"__MACOSX/{folder}._{name}", b"Mac OS X")
            before, after = files
            lines.append(json.dumps({"before_file_name": before, "after_file_name": after, "caption": "so"}))
        archive.writestr(f"{folder}metadata.jsonl", "\n".join(lines))


@pytest.mark.parametrize("source", ["set", "set/train.zip"])
def test_a_zipped_imagefolder_is_unpacked_unchanged(tmp_path, source):
    write_zip(tmp_path / "set" / "train.zip", folder="Bäume und so/")
    records = imported(find_pairs(str(tmp_path / source), tmp_path / "images"))
    assert [(record.id, record.caption) for record in records] == [(f"train/{i:06d}", "so") for i in range(3)]
    assert all((tmp_path / "images") in record.before.parents for record in records)


def test_images_of_an_archive_that_cannot_be_read_are_listed_and_the_others_used(tmp_path):
    write_zip(tmp_path / "set" / "train.zip")
    data = bytearray((tmp_path / "set" / "train.zip").read_bytes())
    place = data.find(encoded(101, "PNG"))
    data[place + 40 : place + 60] = bytes(20)
    (tmp_path / "set" / "train.zip").write_bytes(data)
    found = find_pairs(str(tmp_path / "set"), tmp_path / "images")
    assert [candidate.id for candidate in found.candidates] == ["train/000000", "train/000002"]
    assert [(problem.file, problem.kind) for problem in found.problems] == [("train/000001", "unreadable")]
    assert "0001_after.png" in found.problems[0].reason


def test_a_tar_of_images_is_sent_to_where_it_can_be_read(tmp_path):
    write_shard(tmp_path / "set" / "train.tar", {"0001_before.png": encoded(1, "PNG")})
    with pytest.raises(DataError, match="`webdataset`"):
        find_pairs(str(tmp_path / "set"), tmp_path / "images")


def test_columns_are_found_by_usual_names_or_named(tmp_path):
    table(before="Input_Image", after="edited_image").to_parquet(tmp_path / "usual.parquet")
    assert len(find_pairs(str(tmp_path / "usual.parquet"), tmp_path / "p1").candidates) == 3
    table(before="x", after="y").to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(DataError, match="--before-column") as caught:
        find_pairs(str(tmp_path / "odd.parquet"), tmp_path / "p2")
    assert "only x, y, edit_instruction, task" in str(caught.value)
    chosen = Columns(before="x", after="y", task="edit_instruction")
    found = find_pairs(str(tmp_path / "odd.parquet"), tmp_path / "p2", columns=chosen)
    assert [candidate.task for candidate in found.candidates] == ["edit 0", "edit 1", "edit 2"]
    with pytest.raises(DataError, match=r"caption \(words\)"):
        find_pairs(str(tmp_path / "odd.parquet"), tmp_path / "p3", columns=Columns("x", "y", "words"))


def test_rows_without_task_get_one_and_rows_without_image_are_listed(tmp_path):
    features = datasets.Features({"before": datasets.Image(), "after": datasets.Image()})
    rows = [{"bytes": encoded(i), "path": None} for i in range(2)]
    broken = {"before": rows, "after": [rows[0], None]}
    datasets.Dataset.from_dict(broken, features=features).to_parquet(tmp_path / "edits.parquet")
    found = find_pairs(str(tmp_path / "edits.parquet"), tmp_path / "images")
    assert [candidate.task for candidate in found.candidates] == ["edits"]
    assert [(problem.file, problem.kind) for problem in found.problems] == [("train/000001", "missing")]
    named = find_pairs(str(tmp_path / "edits.parquet"), tmp_path / "images", task="mine")
    assert [candidate.task for candidate in named.candidates] == ["mine"]


def test_what_cannot_be_opened_is_reported_without_asking_the_network(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="no such file or folder"):
        find_pairs("./nothing/here", tmp_path / "images")
    with pytest.raises(DataError, match="cannot be opened"):
        find_pairs(str(tmp_path / "broken.parquet"), tmp_path / "images")


def test_a_dot_in_a_hub_id_is_no_file_suffix(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: asked.append(name) or {})
    find_pairs("owner/edits-1.5M", tmp_path / "images")
    assert asked == ["owner/edits-1.5M"]
    with pytest.raises(DataError, match="no such file or folder"):
        find_pairs("owner/edits.parquet", tmp_path / "images")


def test_without_the_package_the_install_line_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # what Python itself does for "cannot be imported"
    with pytest.raises(DataError, match="pip install datasets"):
        find_pairs("owner/name", tmp_path / "images")
