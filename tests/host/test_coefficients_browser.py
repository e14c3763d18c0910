"""Maps and reports on the nodes, in the host's own frontend with both of its renderers."""

import pytest

from tests.host import graphs
from tests.host.browser import OLDEST, RENDERERS, open_frontend
from tests.host.graphs import make_node

GRAPH = {
    "1": make_node("LoRWeBLoadBasis", basis_name="lorweb.safetensors"),
    "2": make_node("LoRWeBLoadImageEncoder", encoder_name=graphs.TINY_ENCODER),
    "3": make_node("LoadImage", image="lorweb_a_cup.jpg"),
    "4": make_node("LoadImage", image="lorweb_a_prime_cup.jpg"),
    "5": make_node("LoadImage", image="lorweb_b_cat.jpg"),
    "6": make_node(
        "LoRWeBEncodeAnalogy",
        basis=["1", 0],
        clip_vision=["2", 0],
        image_a=["3", 0],
        image_a_prime=["4", 0],
        image_b=["5", 0],
        reference_crops=False,
    ),
    "7": graphs.preview(["6", 0]),
    "8": graphs.save_coefficients(["6", 0], "browser", note="from a test"),
    "9": make_node("UNETLoader", unet_name="flux1-dev-kontext_fp8_scaled.safetensors", weight_dtype="default"),
    "10": make_node(
        "LoRWeBApplyMixedLoRA", model=["9", 0], basis=["1", 0], coefficients=["6", 0], strength=1.0, mode="forward"
    ),
    "11": make_node("PreviewAny", source=["10", 1]),
}
PLACES = {
    "1": (0, 0), "2": (0, 150), "9": (0, 300), "3": (0, 450), "4": (300, 450), "5": (600, 450),
    "6": (350, 0), "7": (950, 0), "8": (1450, 0), "10": (350, 220), "11": (1450, 420),
}  # fmt: skip
#: The workflow as the frontend would save it, with an id, so that runs can be told apart.
MAKE_WORKFLOW = "async () => ({...(await window.app.graphToPrompt()).workflow, id: crypto.randomUUID()})"
SHOWN = """() => {
  const texts = name => [...document.querySelectorAll(name)].filter(e => e.isConnected).map(e => e.textContent).sort();
  return {maps: texts('.lorweb-heat-map > div:last-child'), reports: texts('.lorweb-report')};
}"""
RUN_COMMAND = "name => window.app.extensionManager.command.execute(name)"
NO_MARK = "20 layers × 3 adapters"

both_renderers = pytest.mark.parametrize("frontend_server", RENDERERS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def frontend(frontend_server, chromium):
    """A tab with the graph that was run, nothing of it before, so that every node shows its result."""
    frontend_server.post("/history", {"clear": True})
    frontend_server.forget()
    with open_frontend(chromium, frontend_server, size=(2200, 1250)) as frontend:
        frontend.load_graph(GRAPH, PLACES)
        frontend.open_workflow(frontend.evaluate(MAKE_WORKFLOW))
        frontend.run()
        frontend.page.wait_for_selector(".lorweb-report")
        yield frontend


def cell(frontend, layer, adapter):
    """Return the place of a cell's middle on the screen."""
    box = frontend.read_map(7)["box"]
    return box["x"] + (adapter + 0.5) / 3 * box["width"], box["y"] + (layer + 0.5) / 20 * box["height"]


@both_renderers
def test_the_map_has_many_colors(frontend, tmp_path):
    screenshot = frontend.take_screenshot(tmp_path / "screen.png")
    shown = frontend.read_map(7)
    area = screenshot.crop([shown["box"][side] for side in ("left", "top", "right", "bottom")])
    assert len(area.getcolors(maxcolors=1_000_000)) > 20
    assert shown["line"] == NO_MARK
    assert frontend.errors == []


@both_renderers
def test_layer_adapter_and_number_are_named_under_the_mouse(frontend):
    def line_at(x, y):
        frontend.page.mouse.move(x, y)
        return frontend.read_map(7)["line"]

    text = line_at(*cell(frontend, 2, 1))
    assert text.startswith("transformer_blocks.0.attn.to_q · adapter 1: 0.") and "entropy" in text
    assert line_at(*cell(frontend, 19, 2)).startswith("single_transformer_blocks.0.proj_out · adapter 2")
    x, y = cell(frontend, 19, 0)
    below = y + 20 * frontend.evaluate("() => window.app.canvas.ds.scale") + 10
    assert line_at(x, below).startswith("adapter 0: mean use")
    assert line_at(10, 10) == NO_MARK


@both_renderers
@pytest.mark.parametrize("zoom", [0.5, 1.0, 2.5])
def test_the_map_is_sharp_at_any_zoom(frontend, zoom):
    frontend.evaluate(
        "zoom => { const c = window.app.canvas; c.ds.scale = zoom; c.ds.offset = [-900, 60]; c.setDirty(true, true); }",
        zoom,
        wait_ms=1000,
    )
    assert frontend.read_map(7)["sharpness"] >= 1


@both_renderers
def test_reports_are_shown_as_text_on_the_nodes(frontend):
    texts = "\n".join(frontend.evaluate(SHOWN)["reports"])
    for words in ("Strongest adapters", "Layers: 20 matched", "1 mix of lorweb.safetensors"):
        assert words in texts


@both_renderers
def test_what_is_shown_is_neither_saved_nor_sent(frontend):
    saved, sent = frontend.evaluate(
        "async () => { const {workflow, output} = await window.app.graphToPrompt(); return [workflow, output]; }"
    )
    assert {key: node["inputs"] for key, node in sent.items()} == {key: node["inputs"] for key, node in GRAPH.items()}
    values = {node["type"]: node.get("widgets_values", []) for node in saved["nodes"]}
    assert values["LoRWeBPreviewCoefficients"] in ([], None)
    assert values["LoRWeBApplyMixedLoRA"] == [1.0, "forward"]
    assert values["LoRWeBSaveCoefficients"] == ["lorweb_coefficients/browser", "from a test"]


@both_renderers
def test_the_hosts_own_image_is_not_shown_a_second_time(frontend):
    # only inside nodes: the frontend's own list of finished jobs may show the image for a moment
    assert frontend.page.locator("[data-node-id] img[src*='lorweb_coefficients_']").count() == 0
    assert frontend.evaluate(
        "() => (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == 7).widgets"
        ".every(w => !w.name.includes('image'))"
    )
    assert frontend.errors == []


@pytest.mark.parametrize("frontend_server", [*RENDERERS, OLDEST], indirect=True, scope="module")
def test_maps_and_reports_are_back_after_another_workflow(frontend):
    before = frontend.evaluate(SHOWN)
    assert before["maps"] == [NO_MARK] and len(before["reports"]) == 3
    frontend.evaluate(RUN_COMMAND, "Comfy.NewBlankWorkflow", wait_ms=1500)
    assert frontend.evaluate(SHOWN) == {"maps": [], "reports": []}
    frontend.evaluate(RUN_COMMAND, "Workspace.PreviousOpenedWorkflow", wait_ms=2000)
    assert frontend.evaluate(SHOWN) == before
    assert frontend.errors == []
