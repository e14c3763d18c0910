"""Each shipped workflow, end to end in a running ComfyUI: only the encoders of 10 GB are replaced by small ones."""

import shutil

import pytest
import torch
from PIL import Image, ImageChops

from tests.host import graphs
from tests.host.server import PACK_FOLDER, run_quick_test

SWAPPED = {("DualCLIPLoader", "class_type"), ("CLIPVisionLoader", "class_type")}
FEWER = {("KSampler", "steps"), ("LoRWeBBuildGrid", "megapixels")}
SIZE = Image.open(graphs.IMAGES / "lorweb_b_cat.jpg").size


def run(server, name, changes=(), **sizes):
    """Run a twin with other inputs of its nodes, after checking that nothing else was changed; return its outcome.

    Args:
        server: where to run it.
        name: the workflow.
        changes: pairs of a class and its other inputs.
        sizes: as in `make_runnable`.
    """
    twin = graphs.load_twin(name)
    graph, changed = graphs.make_runnable(twin, **sizes), set()
    for class_type, inputs in changes:
        graph = graphs.change(graph, class_type, **inputs)
        changed |= {(class_type, key) for key in inputs}
    assert graphs.list_differences(graph, twin) <= SWAPPED | FEWER | changed
    return server.succeed(graph, timeout_seconds=550)


def saved_image(server, graph, outcome):
    """Return the only image that Save Image wrote."""
    (saved,) = outcome.outputs[graphs.find_node(graph, "SaveImage")]["images"]
    return Image.open(server.saved(saved)).convert("RGB")


def are_equal(first, second):
    """Return whether two images have the same pixels."""
    return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


def test_the_pack_is_imported_without_a_complaint(server):
    assert "IMPORT FAILED" not in server.log
    assert "LoRWeBApplyMixedLoRA" in server.get("/object_info")


@pytest.mark.slow
def test_the_host_s_own_quick_test_finds_nothing_to_complain_about(host, tmp_path):
    status, log = run_quick_test(host, tmp_path)
    assert status == 0
    assert PACK_FOLDER in log and "IMPORT FAILED" not in log, log


def test_the_workflows_are_offered_as_templates_with_images(server):
    assert sorted(server.get("/api/workflow_templates")[PACK_FOLDER]) == graphs.NAMES
    for name in graphs.NAMES:
        folder = f"/api/workflow_templates/{PACK_FOLDER}"
        assert server.get(f"{folder}/{name}.json") == graphs.load_workflow(name)
        assert server.get_bytes(f"{folder}/{name}.jpg") == (graphs.WORKFLOWS / f"{name}.jpg").read_bytes()


def test_an_analogy_edit_gives_an_image_of_b_s_size_and_a_report(server):
    outcome = run(server, graphs.EDIT)
    (image,) = server.images(outcome)
    assert image.size == SIZE
    assert len(set(image.convert("L").tobytes())) > 20
    report = outcome.text(graphs.find_node(graphs.load_twin(graphs.EDIT), "LoRWeBApplyMixedLoRA"))
    assert "Mode: forward" in report and "20 matched" in report


@pytest.mark.slow
def test_an_analogy_edit_runs_at_its_full_size(newest_server):
    twin = graphs.load_twin(graphs.EDIT)
    assert graphs.change(twin, "LoRWeBBuildGrid", megapixels=1.0) == twin
    outcome = run(newest_server, graphs.EDIT, steps=1, megapixels=1.0)
    assert newest_server.images(outcome)[0].size == SIZE


def test_one_analogy_on_two_images_gives_two_different_images(server):
    outcome = run(server, graphs.BATCH)
    first, second = server.images(outcome)
    assert first.size == second.size == SIZE
    assert not are_equal(first, second)
    assert "Mixes: 2" in outcome.text()


def test_an_analogy_is_saved_and_used_again_as_an_ordinary_lora(server):
    outcome = run(server, graphs.SAVE_LORA)
    written = server.newest("loras/lorweb")
    assert "energy kept 100.00%" in outcome.text() and str(written) in outcome.text()
    shutil.copy(written, server.base / "models" / "loras" / "lorweb_00001_.safetensors")
    (image,) = server.images(run(server, graphs.USE_LORA))
    assert image.size == SIZE
    assert "lora key not loaded" not in server.log


# The oldest host takes minutes for one of the graphs below.


def test_a_blend_changes_with_its_slider(newest_server):
    twin = graphs.load_twin(graphs.BLEND)
    outcome = run(newest_server, graphs.BLEND)
    assert "Strongest adapters" in outcome.text(graphs.find_node(twin, "LoRWeBPreviewCoefficients"))
    moved = run(newest_server, graphs.BLEND, [("LoRWeBBlendCoefficients", {"position": 0.9})])
    first, second = (saved_image(newest_server, twin, each) for each in (outcome, moved))
    assert first.size == second.size == SIZE
    assert not are_equal(first, second)


def test_a_sweep_gives_six_different_images_on_one_sheet_and_zero_is_the_bare_model(newest_server):
    graph, gap = graphs.load_runnable(graphs.SWEEP), 8
    outcome = run(newest_server, graphs.SWEEP)
    assert "Mixes: 6" in outcome.text(graphs.find_node(graph, "LoRWeBApplyMixedLoRA"))
    sheet = saved_image(newest_server, graph, outcome)
    assert sheet.size == (3 * SIZE[0] + 2 * gap, 2 * SIZE[1] + gap)
    corners = [(x * (SIZE[0] + gap), y * (SIZE[1] + gap)) for y in range(2) for x in range(3)]
    tiles = [sheet.crop((x, y, x + SIZE[0], y + SIZE[1])) for x, y in corners]
    assert len({tile.tobytes() for tile in tiles}) == 6
    bare = graphs.without_apply(graph)
    expected = saved_image(newest_server, bare, newest_server.succeed(bare)).crop((0, 0, *SIZE))
    assert max(high for _, high in ImageChops.difference(tiles[2], expected).getextrema()) <= 1
    assert not are_equal(tiles[4], expected)


def test_the_strengths_of_the_sweep_are_those_of_its_titles():
    twin = graphs.load_twin(graphs.SWEEP)
    blend = twin[graphs.find_node(twin, "LoRWeBBlendCoefficients")]["inputs"]
    strengths = torch.linspace(blend["position"], blend["position_end"], blend["steps"])
    assert strengths.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize("image", ["lorweb_b_rocket.jpg", "lorweb_b_cat.jpg"])
def test_an_analogy_is_saved_and_reused_without_its_images_and_clip(newest_server, image):
    saved = run(newest_server, graphs.SAVE_ANALOGY)
    path = newest_server.newest("lorweb_coefficients/analogy")
    save_id = graphs.find_node(graphs.load_twin(graphs.SAVE_ANALOGY), "LoRWeBSaveCoefficients")
    assert save_id in saved.cached or path.name in saved.text(save_id)
    graph = graphs.load_runnable(graphs.REUSE_ANALOGY)
    assert not {"LoRWeBLoadImageEncoder", "LoRWeBEncodeAnalogy"} & {node["class_type"] for node in graph.values()}
    changes = {"LoRWeBLoadCoefficients": {"file_name": path.name}, "LoadImage": {"image": image}}
    result = saved_image(newest_server, graph, run(newest_server, graphs.REUSE_ANALOGY, changes.items()))
    assert result.size == Image.open(graphs.IMAGES / image).size
    for class_type, inputs in changes.items():
        graph = graphs.change(graph, class_type, **inputs)
    bare = graphs.without_apply(graph)
    assert not are_equal(result, saved_image(newest_server, bare, newest_server.succeed(bare)))
