"""The reference's layout: golden pixels through import, index and dataset; and exporting to it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from lorweb_core.images import read_image
from lorweb_core.preprocessing import Preprocessing
from tests.training.data.pair_images import paint, truncate, write_tasks
from training.data.buckets import aspects_match
from training.data.export_reference import ExportOptions, choose_couples, export_reference
from training.data.images import load_pair
from training.data.importers.building import build_triplets
from training.data.importers.reference import find_triplets
from training.data.index import DataError, TripletIndex, TripletRecord
from training.data.pairing import DrawSettings
from training.data.quadruplets import BrokenPictureError, BucketBatchSampler, collate_quadruplets
from training.data.reference import ReferenceDataset, grid_geometry, reference_grids

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = json.loads((GOLDEN / "dataset.json").read_text(encoding="utf-8"))
PIXELS = load_file(GOLDEN / "dataset.safetensors")
SMALL = Preprocessing(16, 16, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def import_triplets(root: Path, index: Path) -> list[TripletRecord]:
    found, problems = find_triplets(root)
    records, more = build_triplets(found)
    assert not problems + more
    TripletIndex(records).write_index(index)
    return list(TripletIndex.read_index(index).records)


def write_golden(root: Path, number: int) -> None:
    for folder, field in (("control", "control_strip"), ("target", "target")):
        (root / folder).mkdir(parents=True)
        shutil.copy(GOLDEN / CASES[number][field], root / folder / f"d{number}.png")
    (root / "target" / f"d{number}.txt").write_text("make it blue,and shiny \n", encoding="utf-8")


@pytest.mark.parametrize("number", [0, 1])
def test_golden_pixels_are_exact_through_the_import(tmp_path: Path, number: int) -> None:
    write_golden(tmp_path, number)
    records = import_triplets(tmp_path, tmp_path / "triplets.jsonl")
    item = ReferenceDataset(records, DrawSettings(), resolution_px=CASES[number]["resolution"])[0]
    assert torch.equal(item["target"], PIXELS[f"d{number}.target_u8"])
    assert torch.equal(item["context"], PIXELS[f"d{number}.control_u8"])
    assert item["caption"] == CASES[number]["caption"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_golden_geometry_is_exact(number: int) -> None:
    case = CASES[number]
    geometry = grid_geometry(*case["target_wh"], case["resolution"])
    assert list(geometry.scale_to) == case["scale_to"]
    assert list(geometry.crop) == case["crop"]


def test_the_golden_bidirectional_target_is_the_reversed_analogy() -> None:
    """d2's context has the reference's aliasing bug; its target is the grid with both pairs exchanged."""
    strip, target = (Image.open(GOLDEN / CASES[2][field]) for field in ("control_strip", "target"))
    a, a_prime, b = (strip.crop((64 * i, 0, 64 * i + 64, 64)) for i in range(3))
    exchanged = Image.new("RGB", (192, 64))
    for i, picture in enumerate((a_prime, a, target)):
        exchanged.paste(picture, (64 * i, 0))
    assert torch.equal(reference_grids(exchanged, b, 64)[0], PIXELS["d2.target_u8"])


def test_full_size_buckets_are_those_of_sdxl_halved() -> None:
    assert grid_geometry(1024, 1024, 512).crop == (0, 0, 512, 512)
    assert grid_geometry(1216, 832, 512).crop[2:] == (608, 416)
    assert grid_geometry(832, 1216, 512).crop[2:] == (416, 608)
    small = grid_geometry(100, 100, 512).crop
    assert small[2:] == (96, 96)  # small pictures are not enlarged
    for width in range(300, 2000, 171):
        geometry = grid_geometry(width, 800, 512)
        x, y, w, h = geometry.crop
        assert w % 16 == h % 16 == 0
        assert x + w <= geometry.scale_to[0]
        assert y + h <= geometry.scale_to[1]


def test_metadata_gives_caption_and_task(tmp_path: Path) -> None:
    write_golden(tmp_path, 0)
    metadata = [{"analogy_id": "d0", "edit_prompt": "from metadata , really", "category": "115-Blue"}, "nonsense"]
    (tmp_path / "analogy_metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    (record,) = import_triplets(tmp_path, tmp_path / "triplets.jsonl")
    assert (record.caption, record.task) == ("from metadata, really", "115-Blue")
    assert (record.width, record.height) == (96, 96)


@pytest.mark.parametrize("content", ["{broken", '{"a": 1}'])
def test_broken_metadata_is_told_and_text_files_are_used(tmp_path: Path, content: str) -> None:
    write_golden(tmp_path, 0)
    (tmp_path / "analogy_metadata.json").write_text(content, encoding="utf-8")
    (record,), (problem,) = find_triplets(tmp_path)
    assert record.caption == "make it blue, and shiny"
    assert problem.severity == "warning"


def test_files_without_counterpart_and_broken_ones_are_listed(tmp_path: Path) -> None:
    write_golden(tmp_path, 0)
    paint(1).save(tmp_path / "control" / "alone.png")
    paint(2).save(tmp_path / "target" / "lonely.png")
    paint(3).save(tmp_path / "target" / "bad.png")
    (tmp_path / "control" / "bad.png").write_bytes(b"no picture")
    found, problems = find_triplets(tmp_path)
    records, more = build_triplets(found)
    assert [record.id for record in records] == ["d0"]
    assert {(Path(p.file).name, p.kind) for p in problems + more} == {
        ("alone.png", "unpaired"), ("lonely.png", "unpaired"), ("bad.png", "unreadable"),
    }  # fmt: skip


def test_a_folder_without_control_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="control"):
        find_triplets(tmp_path)


@pytest.fixture
def triplets(tmp_path: Path) -> list[TripletRecord]:
    for number, size in enumerate([(64, 64), (64, 64), (96, 64), (64, 64), (96, 64), (64, 64)]):
        for folder, width in (("control", 3 * size[0]), ("target", size[0])):
            (tmp_path / folder).mkdir(exist_ok=True)
            paint(number * 2 + len(folder), size=(width, size[1])).save(tmp_path / folder / f"{number}.png")
        (tmp_path / "target" / f"{number}.txt").write_text(f"edit {number}", encoding="utf-8")
    return import_triplets(tmp_path, tmp_path / "triplets.jsonl")


def test_triplets_are_drawn_equally_often_in_batches_of_one_size(triplets: list[TripletRecord]) -> None:
    dataset = ReferenceDataset(triplets, DrawSettings(seed=2), resolution_px=64, preprocessing=SMALL)
    sampler = BucketBatchSampler(dataset, batch_size=3)
    assert len(sampler) == 2
    loader = iter(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_quadruplets, num_workers=1))
    seen: Counter[str] = Counter()
    for _ in range(100):
        batch = next(loader)
        assert batch["images"].shape == (3, 3, 16, 16, 3)
        seen.update(batch["pair_b"])
        assert set(batch["caption"]) <= set(dataset.captions())
    assert max(abs(count / 300 - 1 / 6) for count in seen.values()) < 0.09
    assert len(seen) == 6


def test_the_encoder_sees_the_quadrants_of_the_context(triplets: list[TripletRecord]) -> None:
    item = ReferenceDataset(triplets, DrawSettings(), resolution_px=32, preprocessing=SMALL)[0]
    pixels = item["context"].permute(1, 2, 0)
    assert torch.equal(item["images"][0], pixels[:16, :16])
    assert torch.equal(item["images"][1], pixels[:16, 16:])
    assert torch.equal(item["images"][2], pixels[16:, :16])
    assert len(set(item["image_keys"])) == 3


def test_caption_source_none_and_dropout_empty_the_caption(triplets: list[TripletRecord]) -> None:
    silent = ReferenceDataset(triplets, DrawSettings(caption_source="none"), resolution_px=64)
    assert silent[0]["caption"] == ""
    assert silent.captions() == ("",)
    dropped = ReferenceDataset(triplets, DrawSettings(caption_dropout=1.0), resolution_px=64)
    assert dropped[0]["caption"] == "edit 0"  # a fixed item keeps it
    assert dropped[BucketBatchSampler(dropped, batch_size=1).batch(0)[0]]["caption"] == ""


def test_a_broken_or_changed_triplet_is_replaced(triplets: list[TripletRecord]) -> None:
    truncate(triplets[0].target)
    paint(1, size=(80, 64)).save(triplets[1].target)
    dataset = ReferenceDataset(triplets, DrawSettings(), resolution_px=64)
    sampler = BucketBatchSampler(dataset, batch_size=4)
    items = [dataset[key] for number in range(15) for key in sampler.batch(number)]
    assert {item["pair_b"] for item in items} == {"2", "3", "4", "5"}
    skipped = "\n".join(line for item in items for line in item["skipped"])
    assert "0.png: damaged" in skipped
    assert "1.png: changed: 80 × 64, but 64 × 64" in skipped
    assert dataset[0] is None
    with pytest.raises(BrokenPictureError, match=r"0\.png"):
        ReferenceDataset(triplets, DrawSettings(), resolution_px=64, on_bad_data="stop")[0]


def test_no_triplets_are_refused() -> None:
    with pytest.raises(DataError, match="at least one triplet"):
        ReferenceDataset([], DrawSettings())


def test_an_export_is_imported_again_with_the_same_pictures(tmp_path: Path) -> None:
    records = write_tasks(tmp_path / "pairs", {"negative": [(64, 48)] * 3, "other": [(32, 32), (64, 64)]})
    (tmp_path / "out").mkdir()
    count, problems = export_reference(records, tmp_path / "out", ExportOptions(suffix=".png"))
    assert (count, problems) == (4, [])
    triplets = import_triplets(tmp_path / "out", tmp_path / "triplets.jsonl")
    metadata = json.loads((tmp_path / "out" / "analogy_metadata.json").read_text(encoding="utf-8"))
    by_id = {record.id: record for record in records}
    assert len(triplets) == len(metadata) == 4
    for triplet, entry in zip(triplets, sorted(metadata, key=lambda e: e["analogy_id"]), strict=True):
        a, b = by_id[entry["pair_A"]], by_id[entry["pair_C"]]
        assert (triplet.task, triplet.caption) == (b.task, a.caption)
        strip, target = np.asarray(read_image(triplet.control)), np.asarray(read_image(triplet.target))
        pictures = [np.asarray(picture) for picture in (*load_pair(a), *load_pair(b))]
        assert np.array_equal(target, pictures[3])
        if a.task == "negative":
            assert np.array_equal(strip, np.concatenate(pictures[:3], axis=1))
        else:
            assert strip.shape == (32, 96, 3)  # the smallest of the three


def test_an_export_never_stretches(tmp_path: Path) -> None:
    records = write_tasks(tmp_path / "pairs", {"x": [(70, 64), (64, 64), (128, 64)]})
    assert choose_couples(records, ExportOptions()) == [(0, 1)]
    assert aspects_match(70 / 64, 1)
    (tmp_path / "out").mkdir()
    export_reference(records, tmp_path / "out", ExportOptions())
    (control,) = (tmp_path / "out" / "control").iterdir()
    assert control.suffix == ".jpg"
    assert Image.open(control).size == (192, 64)


def test_an_export_can_be_limited_per_task(tmp_path: Path) -> None:
    records = write_tasks(tmp_path, {"x": [(16, 16)] * 8, "y": [(16, 16)] * 2})
    assert len(choose_couples(records, ExportOptions())) == 28 + 1
    limited = choose_couples(records, ExportOptions(per_task=5))
    assert len(limited) == 5 + 1
    assert limited == choose_couples(records, ExportOptions(per_task=5))
    assert limited != choose_couples(records, ExportOptions(per_task=5, seed=1))
    assert all(a < b and records[a].task == records[b].task for a, b in limited)


def test_a_broken_picture_leaves_its_analogies_out_of_the_export(tmp_path: Path) -> None:
    records = write_tasks(tmp_path / "pairs", {"x": [(32, 32)] * 3})
    truncate(records[0].before)
    (tmp_path / "out").mkdir()
    count, problems = export_reference(records, tmp_path / "out", ExportOptions())
    assert count == 1
    assert [Path(problem.file).name for problem in problems] == ["0000_before.png"]
