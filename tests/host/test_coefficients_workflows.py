"""The workflows of coefficients, end to end in a running ComfyUI: blend, sweep, save and reuse."""

import pytest
import torch
from PIL import Image, ImageChops

from tests.host import graphs

BLEND, SWEEP, SAVE, REUSE = graphs.BLEND, graphs.SWEEP, graphs.SAVE_ANALOGY, graphs.REUSE_ANALOGY
SWAPPED = {("DualCLIPLoader", "class_type"), ("CLIPVisionLoader", "class_type")}
FEWER = {("KSampler", "steps"), ("LoRWeBBuildGrid", "megapixels")}


@pytest.fixture
def server(newest_server):
    """The newest host's server; the oldest takes minutes for one of these graphs."""
    return newest_server


def run(server, graph, twin, *, changed=frozenset()):
    """Run a graph after checking that nothing was changed that should not be; return its outcome."""
    assert graphs.list_differences(graph, twin) <= SWAPPED | FEWER | changed
    outcome = server.run(graph)
    assert outcome.status == "success", (outcome, server.log[-4000:])
    return outcome


def picture_of(server, graph, outcome):
    """Return the only picture that was saved."""
    (saved,) = outcome.outputs[graphs.find_node(graph, "SaveImage")]["images"]
    return Image.open(server.saved(saved)).convert("RGB")


def text_of(outcome, node_id):
    """Return what a node showed."""
    return "\n".join(outcome.outputs[node_id]["text"])


def are_equal(first, second):
    """Return whether two pictures have the same pixels."""
    return first.size == second.size and ImageChops.difference(first, second).getbbox() is None


def test_a_blend_changes_with_its_slider(server):
    twin = graphs.load_twin(BLEND)
    graph = graphs.make_runnable(twin)
    outcome = run(server, graph, twin)
    assert "Strongest adapters" in text_of(outcome, graphs.find_node(graph, "LoRWeBPreviewCoefficients"))
    half = picture_of(server, graph, outcome)
    moved = graphs.change(graph, "LoRWeBBlendCoefficients", position=0.9)
    other = picture_of(server, moved, run(server, moved, twin, changed={("LoRWeBBlendCoefficients", "position")}))
    assert half.size == other.size == Image.open(graphs.PICTURES / "lorweb_b_cat.jpg").size
    assert not are_equal(half, other)


def test_a_sweep_gives_six_different_pictures_on_one_sheet_and_zero_is_the_bare_model(server):
    twin = graphs.load_twin(SWEEP)
    graph = graphs.make_runnable(twin)
    outcome = run(server, graph, twin)
    assert "Mixes: 6" in text_of(outcome, graphs.find_node(graph, "LoRWeBApplyMixedLoRA"))
    sheet = picture_of(server, graph, outcome)
    tile, gap = Image.open(graphs.PICTURES / "lorweb_b_cat.jpg").size, 8
    assert sheet.size == (3 * tile[0] + 2 * gap, 2 * tile[1] + gap)
    boxes = [(x * (tile[0] + gap), y * (tile[1] + gap)) for y in range(2) for x in range(3)]
    tiles = [sheet.crop((x, y, x + tile[0], y + tile[1])) for x, y in boxes]
    assert len({part.tobytes() for part in tiles}) == 6
    bare = graphs.without_apply(graph)
    bare_outcome = server.run(bare)
    assert bare_outcome.status == "success", bare_outcome
    expected = picture_of(server, bare, bare_outcome).crop((0, 0, *tile))
    difference = ImageChops.difference(tiles[2], expected)
    assert max(high for _, high in difference.getextrema()) <= 1
    assert not are_equal(tiles[4], expected)


@pytest.mark.parametrize("picture", ["lorweb_b_rocket.jpg", "lorweb_b_cat.jpg"])
def test_an_analogy_is_saved_and_reused_without_its_pictures_and_clip(server, picture):
    twin = graphs.load_twin(SAVE)
    saved = run(server, graphs.make_runnable(twin), twin)
    save_id = graphs.find_node(twin, "LoRWeBSaveCoefficients")
    folder = server.base / "output" / "lorweb_coefficients"
    name = sorted(folder.glob("analogy_*.safetensors"))[-1].name
    if save_id in saved.outputs:
        assert name in text_of(saved, save_id)
    twin = graphs.load_twin(REUSE)
    assert not {"CLIPVisionLoader", "LoRWeBEncodeAnalogy"} & {node["class_type"] for node in twin.values()}
    graph = graphs.change(graphs.make_runnable(twin), "LoRWeBLoadCoefficients", file_name=name)
    graph = graphs.change(graph, "LoadImage", image=picture)
    changed = {("LoRWeBLoadCoefficients", "file_name"), ("LoadImage", "image")}
    result = picture_of(server, graph, run(server, graph, twin, changed=changed))
    assert result.size == Image.open(graphs.PICTURES / picture).size
    bare = graphs.without_apply(graph)
    assert not are_equal(result, picture_of(server, bare, server.run(bare)))


def test_the_strengths_of_the_sweep_are_those_of_its_titles():
    blend = next(node for node in graphs.load_twin(SWEEP).values() if node["class_type"] == "LoRWeBBlendCoefficients")
    start, end, steps = (blend["inputs"][name] for name in ("position", "position_end", "steps"))
    assert torch.linspace(start, end, steps).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5]
