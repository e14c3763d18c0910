"""The whole protocol, judge included, on the shipped demo model: a method that works, beside copying."""

import json

import pytest
from PIL import Image

from tests.training.data.pair_images import index_folder
from tests.training.evaluation.judge_server import MODEL, serving, well_formed
from tests.training.evaluation.test_metrics import write_network
from training.demo.analogies import GUIDANCE, draw_analogies
from training.demo.scenes import IMAGE_PX, MODEL_FOLDER, TEST_PHOTOS, edits_of, to_image
from training.demo.tiny_kontext import write_diffusers_folder
from training.evaluate import main

KINDS = ("frame", "tint")


@pytest.fixture
def held_out(tmp_path):
    """An index with one held-out edit of every kind, two pairs each: new scenes and photographs unseen in training."""
    edits = [edits_of(kinds=[kind], is_held_out=True)[0] for kind in KINDS]
    for drawn in draw_analogies(edits, per_edit=1, seed=31, photos=TEST_PHOTOS):
        folder = tmp_path / "pairs" / drawn.edit.name
        folder.mkdir(parents=True)
        names = ("0_before", "0_after", "1_before", "1_after")
        for name, pixels in zip(names, drawn.images, strict=True):
            to_image(pixels).save(folder / f"{name}.png")
    return index_folder(tmp_path / "pairs", tmp_path / "pairs" / "pairs.jsonl")


def test_the_demo_model_beats_copying_by_every_measure_that_sees_the_edit(held_out, tmp_path):
    base, out = write_diffusers_folder(MODEL_FOLDER / "base.safetensors", tmp_path / "kontext"), tmp_path / "out"
    words = [
        "generate", "--set", str(held_out), "--split", "all", "--b-per-pair", "1", "--per-task", "1", "--caption",
        "none", "--out", str(out), "--generator", f"LoRWeB={MODEL_FOLDER / 'basis.safetensors'}", "--base", str(base),
        "--encoder", str(MODEL_FOLDER / "encoder"), "--steps", "4", "--guidance", str(GUIDANCE),
        "--megapixels", str((2 * IMAGE_PX) ** 2 / 1e6), "--dtype", "float32",
    ]  # fmt: skip
    assert main(words) == 0
    backbone, heads = write_network(tmp_path, "alex")
    with serving(well_formed) as server:
        judge = [
            "judge", str(out), "--lpips-backbone", str(backbone), "--lpips-heads", str(heads), "--clip-encoder",
            str(MODEL_FOLDER / "encoder"), "--endpoint", server.url, "--model", MODEL, "--both-orders",
        ]  # fmt: skip
        assert main(judge) == 0
    assert main(["aggregate", str(out), "--no-plot", "--sheets", "1"]) == 0
    values = json.loads((out / "results" / "results.json").read_text(encoding="utf-8"))
    means = {m: {name: summary["mean"] for name, summary in v.items()} for m, v in values["methods"].items()}
    ours, copy = means["LoRWeB"], means["copy-b"]
    assert values["samples"] == len(KINDS)
    assert ours["psnr"] > copy["psnr"] + 6
    assert ours["ssim"] > copy["ssim"]
    assert ours["clip_direction"] > 0.5
    assert copy["clip_direction"] is None
    assert copy["lpips"] == 0.0 < ours["lpips"]
    assert copy["gmsd"] == 0.0 < ours["gmsd"]
    assert None not in ours.values()
    assert Image.open(out / "results" / "sheet-01.png").width > 6 * 192
