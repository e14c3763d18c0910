"""Pictures and text on the nodes, in the host's own frontend with both of its renderers."""

import contextlib
import time

import pytest
from PIL import Image

from tests.host import graphs
from tests.host.browser import Frontend
from tests.host.server import PACK_FOLDER
from tests.host.test_browser import chromium  # noqa: F401 - a fixture

#: A graph in API format, which the frontend lays out itself.
GRAPH = {
    "1": {"class_type": "LoRWeBLoadBasis", "inputs": {"basis_name": "lorweb.safetensors"}},
    "2": {"class_type": "LoRWeBLoadImageEncoder", "inputs": {"encoder_name": graphs.TINY_ENCODER}},
    "3": {"class_type": "LoadImage", "inputs": {"image": "lorweb_a_cup.jpg"}},
    "4": {"class_type": "LoadImage", "inputs": {"image": "lorweb_a_prime_cup.jpg"}},
    "5": {"class_type": "LoadImage", "inputs": {"image": "lorweb_b_cat.jpg"}},
    "6": {
        "class_type": "LoRWeBEncodeAnalogy",
        "inputs": {
            "basis": ["1", 0],
            "clip_vision": ["2", 0],
            "image_a": ["3", 0],
            "image_a_prime": ["4", 0],
            "image_b": ["5", 0],
            "reference_crops": False,
        },
    },
    "7": {"class_type": "LoRWeBPreviewCoefficients", "inputs": {"coefficients": ["6", 0]}},
    "8": {
        "class_type": "LoRWeBSaveCoefficients",
        "inputs": {"coefficients": ["6", 0], "filename_prefix": "lorweb_coefficients/browser", "note": "from a test"},
    },
    "9": {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "flux1-dev-kontext_fp8_scaled.safetensors", "weight_dtype": "default"},
    },
    "10": {
        "class_type": "LoRWeBApplyMixedLoRA",
        "inputs": {"model": ["9", 0], "basis": ["1", 0], "coefficients": ["6", 0], "strength": 1.0, "mode": "forward"},
    },
    "11": {"class_type": "PreviewAny", "inputs": {"source": ["10", 1]}},
}
PLACES = {
    "1": (0, 0), "2": (0, 150), "9": (0, 300), "3": (0, 450), "4": (300, 450), "5": (600, 450),
    "6": (350, 0), "7": (950, 0), "8": (1450, 0), "10": (350, 220), "11": (1450, 420),
}  # fmt: skip
LOAD = """async ({graph, places}) => {
  await window.app.loadApiJson(graph, 'coefficients');
  for (const node of (window.app.rootGraph || window.app.graph).nodes) {
    node.pos = places[node.id];
    if (node.type === 'LoRWeBPreviewCoefficients') node.setSize([460, 700]);
  }
}"""
RUN = """() => new Promise((resolve, reject) => {
  const api = window.app.api;
  api.addEventListener('execution_success', () => resolve('success'), {once: true});
  api.addEventListener('execution_error', event => resolve(JSON.stringify(event.detail)), {once: true});
  window.app.queuePrompt(0);
})"""
#: Drawn pixels per pixel on the screen of the heat map; 1 and more is sharp.
SHARPNESS = """() => {
  const canvas = document.querySelector('.lorweb-heat-map-cells'), box = canvas.getBoundingClientRect();
  return [canvas.width / box.width / devicePixelRatio, canvas.height / box.height / devicePixelRatio];
}"""


@pytest.fixture(scope="module", params=[False, True], ids=["canvas", "vue"])
def frontend(request, servers, newest_host, chromium):  # noqa: F811
    """The frontend with a graph that was run, in each of its two renderers."""
    server = servers(newest_host)
    server.post("/api/settings/Comfy.VueNodes.Enabled", request.param)
    server.post("/free", {"free_memory": True, "unload_models": True})  # so that every node runs and shows its result
    time.sleep(1)
    with contextlib.closing(Frontend(chromium, server.url, size=(2200, 1250))) as frontend:
        frontend.page.evaluate(LOAD, {"graph": GRAPH, "places": PLACES})
        frontend.page.wait_for_timeout(1000)
        assert frontend.page.evaluate(RUN) == "success"
        frontend.page.wait_for_selector(".lorweb-report")
        frontend.page.wait_for_timeout(1000)
        yield frontend


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Where the screenshots go."""
    return tmp_path_factory.mktemp("coefficient_screenshots")


def cell(frontend, layer, adapter):
    """Return the place of a cell's middle on the screen."""
    box = frontend.page.locator(".lorweb-heat-map-cells").bounding_box()
    return box["x"] + (adapter + 0.5) / 3 * box["width"], box["y"] + (layer + 0.5) / 20 * box["height"]


def hover_text(frontend):
    """Return the line below the heat map."""
    return frontend.page.locator(".lorweb-heat-map > div").last.text_content()


def test_the_map_is_drawn_with_many_colors(frontend, pictures, request):
    path = pictures / f"nodes-{request.node.callspec.id}.png"
    frontend.take_picture(path)
    box = frontend.page.locator(".lorweb-heat-map-cells").bounding_box()
    area = Image.open(path).convert("RGB").crop((box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]))
    assert len(area.getcolors(maxcolors=1_000_000)) > 20
    assert hover_text(frontend) == "20 layers × 3 adapters"
    assert frontend.errors == []


def test_layer_adapter_and_number_are_named_under_the_mouse(frontend):
    frontend.page.mouse.move(*cell(frontend, 2, 1))
    text = hover_text(frontend)
    assert text.startswith("transformer_blocks.0.attn.to_q · adapter 1: 0.") and "entropy" in text
    frontend.page.mouse.move(*cell(frontend, 19, 2))
    assert hover_text(frontend).startswith("single_transformer_blocks.0.proj_out · adapter 2")
    x, y = cell(frontend, 19, 0)
    frontend.page.mouse.move(x, y + 20 * frontend.page.evaluate("() => window.app.canvas.ds.scale") + 10)
    assert hover_text(frontend).startswith("adapter 0: mean use")
    frontend.page.mouse.move(10, 10)
    assert hover_text(frontend) == "20 layers × 3 adapters"


@pytest.mark.parametrize("zoom", [0.5, 1.0, 2.5])
def test_the_map_is_sharp_at_any_zoom(frontend, zoom):
    frontend.page.evaluate(
        "zoom => { const c = window.app.canvas; c.ds.scale = zoom; c.ds.offset = [-900, 60]; c.setDirty(true, true); }",
        zoom,
    )
    frontend.page.wait_for_timeout(1000)
    assert min(frontend.page.evaluate(SHARPNESS)) >= 1


def test_reports_are_shown_as_text_on_the_nodes(frontend):
    texts = "\n".join(frontend.page.locator(".lorweb-report").all_text_contents())
    for words in ("Strongest adapters", "Layers: 20 matched", "1 mix of lorweb.safetensors"):
        assert words in texts


def test_what_is_shown_is_neither_saved_nor_sent(frontend):
    saved, sent = frontend.page.evaluate(
        "async () => { const {workflow, output} = await window.app.graphToPrompt(); return [workflow, output]; }"
    )
    assert {key: node["inputs"] for key, node in sent.items()} == {key: node["inputs"] for key, node in GRAPH.items()}
    values = {node["type"]: node.get("widgets_values", []) for node in saved["nodes"]}
    assert values["LoRWeBPreviewCoefficients"] in ([], None)
    assert values["LoRWeBApplyMixedLoRA"] == [1.0, "forward"]
    assert values["LoRWeBSaveCoefficients"] == ["lorweb_coefficients/browser", "from a test"]


def test_the_hosts_own_picture_is_not_shown_a_second_time(frontend):
    # only inside nodes: the frontend's own list of finished jobs may show the picture for a moment
    assert frontend.page.locator("[data-node-id] img[src*='lorweb_coefficients_']").count() == 0
    assert frontend.page.evaluate(
        "() => (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == 7).widgets"
        ".every(w => !w.name.includes('image'))"
    )
    assert frontend.errors == []


def test_help_pages_and_their_pictures_are_served_where_the_frontend_looks(servers, newest_host):
    server = servers(newest_host)
    folder = f"/extensions/{PACK_FOLDER}/docs"
    for node_id in {node["class_type"] for node in GRAPH.values() if node["class_type"].startswith("LoRWeB")}:
        assert f"]({node_id}.png)" in server.get_bytes(f"{folder}/{node_id}.md").decode()
        assert server.get_bytes(f"{folder}/{node_id}.png").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("language", "title", "socket"),
    [("zh", "预览系数", "系数"), ("ja", "係数をプレビュー", "係数"), ("ko", "계수 미리보기", "계수")],
)
def test_nodes_speak_the_users_language(servers, newest_host, chromium, language, title, socket):  # noqa: F811
    server = servers(newest_host)
    server.post("/api/settings/Comfy.VueNodes.Enabled", False)
    server.post("/api/settings/Comfy.Locale", language)
    try:
        with contextlib.closing(Frontend(chromium, server.url)) as tab:
            tab.page.evaluate(LOAD, {"graph": GRAPH, "places": PLACES})
            tab.page.wait_for_timeout(500)
            found = tab.page.evaluate(
                """() => { const node = (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == 7);
                  const grid = window.LiteGraph.registered_node_types.LoRWeBBuildGrid;
                  return {title: window.LiteGraph.registered_node_types.LoRWeBPreviewCoefficients.title,
                          socket: node.inputs[0].localized_name || node.inputs[0].label, grid: grid.title}; }"""
            )
            assert found["title"] == title and found["socket"] == socket
            assert tab.errors == []
    finally:
        server.post("/api/settings/Comfy.Locale", "en")
