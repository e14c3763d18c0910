"""Preview Coefficients in the host's frontend: many mixes, differences, light palette, narrow nodes, languages."""

import base64
import contextlib
import copy
import math
import struct

import pytest
from PIL import Image

from lorweb_core.heat_map import DIVERGING
from tests.host.browser import Frontend
from tests.host.test_browser import chromium  # noqa: F401 - a fixture
from tests.host.test_coefficients_browser import GRAPH as ENCODING
from tests.host.test_coefficients_browser import LOAD, PLACES, RUN

MIXES = 10
GRAPH = {key: copy.deepcopy(node) for key, node in ENCODING.items() if key in "123456"} | {
    "7": {"class_type": "LoRWeBPreviewCoefficients", "inputs": {"coefficients": ["13", 0]}},
    "12": {
        "class_type": "LoRWeBEncodeAnalogy",
        "inputs": {**ENCODING["6"]["inputs"], "image_b": ["3", 0]},
    },
    "13": {
        "class_type": "LoRWeBBlendCoefficients",
        "inputs": {
            **{"coefficients_1": ["6", 0], "coefficients_2": ["12", 0], "method": "interpolate", "position": 0.0},
            **{f"weight_{place}": 1.0 for place in (1, 2, 3, 4)},
            **{"position_end": 1.0, "steps": MIXES},
        },
    },
    "14": {"class_type": "LoRWeBPreviewCoefficients", "inputs": {"coefficients": ["6", 0], "compare_with": ["6", 0]}},
    "15": {"class_type": "PreviewImage", "inputs": {"images": ["7", 1]}},
    "16": {"class_type": "PreviewAny", "inputs": {"source": ["7", 0]}},
}
OUR_PLACES = {**PLACES, "12": (350, 900), "13": (650, 900), "14": (1450, 0), "15": (1950, 0), "16": (1950, 400)}
#: Colors of the map's cells, in the middle of each, as the browser drew them.
READ_MAP = """id => {
  const node = (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == id);
  const canvas = node.widgets.find(w => w.name === 'heat_map').element.querySelector('canvas');
  const place = [canvas.width * 0.2, canvas.height * 0.4].map(Math.round);
  return [...canvas.getContext('2d').getImageData(...place, 1, 1).data];
}"""
READ_TEXTS = """id => {
  const node = (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == id);
  const [pager, , line] = node.widgets.find(w => w.name === 'heat_map').element.children;
  return {pager: pager.querySelector('span').textContent, line: line.textContent, title: line.title,
          color: getComputedStyle(line).color, pagerColour: getComputedStyle(pager).color};
}"""
CLICK_NEXT = """id => (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == id)
  .widgets.find(w => w.name === 'heat_map').element.querySelectorAll('button')[1].click()"""
SHOW_FULL_SIZE = """() => { const canvas = window.app.canvas;
  canvas.ds.scale = 1; canvas.ds.offset = [-600, 100]; canvas.setDirty(true, true); }"""
CORNER = """id => {
  const node = (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == id);
  const html = document.querySelector(`[data-node-id="${id}"]`)?.getBoundingClientRect();
  if (html) return [html.right, html.bottom, html.width];
  const {ds, canvas} = window.app.canvas, area = canvas.getBoundingClientRect();
  return [area.left + (node.pos[0] + node.size[0] + ds.offset[0]) * ds.scale,
          area.top + (node.pos[1] + node.size[1] + ds.offset[1]) * ds.scale, node.size[0]];
}"""
SHOW_ROWS = """({id, rows, values, strip}) => {
  const node = (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == id);
  const layers = Array.from({length: rows}, (_, row) => `transformer_blocks.${row}.attn.to_q`);
  const [use, colors] = [btoa('\\0'.repeat(8)), btoa('\\0'.repeat(6 * rows))];
  node.onExecuted({lorweb_heat_map: [{layers, basis_size: 2, values, strip, use, cell_colors: colors,
                                      edge_colors: colors, is_difference: false, mixes: 1}]});
}"""


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["canvas", "vue"])
def server(request, servers, newest_host):
    """The newest host's server, with each of its two renderers."""
    server = servers(newest_host)
    server.post("/api/settings/Comfy.VueNodes.Enabled", request.param)
    return server


@pytest.fixture(scope="module")
def frontend(server, chromium):  # noqa: F811
    """The graph, run."""
    with contextlib.closing(open_and_run(chromium, server)) as frontend:
        yield frontend


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Where the screenshots go."""
    return tmp_path_factory.mktemp("preview_screenshots")


def open_and_run(browser, server):
    """Return a tab in which the graph was run."""
    frontend = Frontend(browser, server.url, size=(2200, 1400))
    frontend.page.evaluate(LOAD, {"graph": GRAPH, "places": OUR_PLACES})
    frontend.page.wait_for_timeout(1000)
    run(frontend)
    return frontend


def run(frontend):
    """Run the graph."""
    assert frontend.page.evaluate(RUN) == "success"
    frontend.page.wait_for_timeout(1500)


def encode(numbers):
    """Return numbers as the node sends them."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def test_all_mixes_are_put_out_and_the_first_few_are_shown(server):
    outcome = server.run({**GRAPH, "17": {"class_type": "PreviewImage", "inputs": {"images": ["7", 1]}}})
    assert outcome.status == "success", outcome
    shown = outcome.outputs["7"]
    assert len(outcome.outputs["17"]["images"]) == MIXES
    assert len(shown["images"]) == len(shown["lorweb_heat_map"]) == 8
    assert {data["mixes"] for data in shown["lorweb_heat_map"]} == {MIXES}
    assert shown["text"][0].startswith(f"The first 8 of {MIXES} mixes")
    assert f"Mix {MIXES} of {MIXES}" not in shown["text"][0]
    (summary,) = outcome.outputs["16"]["text"]
    assert f"Mix {MIXES} of {MIXES}" in summary


def test_the_pager_says_how_many_there_are_and_keeps_its_place(frontend):
    assert frontend.page.evaluate(READ_TEXTS, "7")["pager"] == f"mix 1 of the first 8 of {MIXES}"
    for _ in range(4):
        frontend.page.evaluate(CLICK_NEXT, "7")
    change_blend(frontend, "position_end", 0.9)
    run(frontend)
    assert frontend.page.evaluate(READ_TEXTS, "7")["pager"] == f"mix 5 of the first 8 of {MIXES}"
    change_blend(frontend, "steps", 3)
    run(frontend)
    assert frontend.page.evaluate(READ_TEXTS, "7")["pager"] == "mix 3 of 3"
    change_blend(frontend, "steps", MIXES)
    run(frontend)
    assert frontend.errors == []


def change_blend(frontend, name, value):
    frontend.page.evaluate(
        "([name, value]) => (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == 13)"
        ".widgets.find(w => w.name === name).value = value",
        [name, value],
    )


def test_the_difference_of_an_analogy_and_itself_is_white(frontend):
    assert frontend.page.evaluate(READ_MAP, "14") == [*DIVERGING[2], 255]


def test_a_node_cannot_be_made_too_narrow_for_its_line(frontend, pictures, request):
    frontend.page.evaluate(SHOW_FULL_SIZE)
    frontend.page.wait_for_timeout(1000)
    x, y, width = frontend.page.evaluate(CORNER, "7")
    assert width > 420
    frontend.page.mouse.move(x - 3, y - 3)
    frontend.page.mouse.down()
    frontend.page.mouse.move(x - 330, y - 30, steps=8)
    frontend.page.mouse.up()
    frontend.page.wait_for_timeout(1000)
    assert frontend.page.evaluate(CORNER, "7")[2] == pytest.approx(400, abs=1)
    assert frontend.page.locator(".lorweb-heat-map").first.bounding_box()["width"] > 350
    box = frontend.page.locator(".lorweb-heat-map-cells").first.bounding_box()
    frontend.page.mouse.move(box["x"] + 80, box["y"] + 40)
    frontend.page.wait_for_timeout(300)
    texts = frontend.page.evaluate(READ_TEXTS, "7")
    assert " · " in texts["line"] and texts["title"] == texts["line"]
    frontend.page.screenshot(path=str(pictures / f"narrow-{request.node.callspec.id}.png"))


def test_arrow_keys_reach_every_layer_where_rows_are_lower_than_a_pixel(frontend):
    rows = 494
    numbers = {"values": encode([0.25, 0.75] * rows), "strip": encode([0.5] * rows)}
    frontend.page.evaluate(SHOW_FULL_SIZE)
    frontend.page.evaluate(SHOW_ROWS, {"id": "7", "rows": rows, **numbers})
    frontend.page.wait_for_timeout(1000)
    assert "arrow keys" in frontend.page.evaluate(READ_TEXTS, "7")["line"]
    box = frontend.page.locator(".lorweb-heat-map-cells").first.bounding_box()
    frontend.page.mouse.click(box["x"] + 80, box["y"] + 40)
    places = frontend.page.evaluate("() => (window.app.rootGraph || window.app.graph).nodes.map(n => [...n.pos])")
    first = read_layer(frontend)
    for step in range(1, 6):
        frontend.page.keyboard.press("ArrowDown")
        assert read_layer(frontend) == first + step
    frontend.page.keyboard.press("ArrowRight")
    assert "adapter 1: 0.7500" in frontend.page.evaluate(READ_TEXTS, "7")["line"]
    assert (
        frontend.page.evaluate("() => (window.app.rootGraph || window.app.graph).nodes.map(n => [...n.pos])") == places
    )
    assert frontend.errors == []


def test_a_layer_that_is_off_in_both_has_no_cosine(frontend):
    numbers = {"values": encode([0.0] * 8), "strip": encode([math.nan] * 4)}
    frontend.page.evaluate(SHOW_FULL_SIZE)
    frontend.page.evaluate(SHOW_ROWS, {"id": "7", "rows": 4, **numbers})
    frontend.page.wait_for_timeout(1000)
    box = frontend.page.locator(".lorweb-heat-map-cells").first.bounding_box()
    frontend.page.mouse.move(box["x"] + 80, box["y"] + 40)
    frontend.page.wait_for_timeout(300)
    line = frontend.page.evaluate(READ_TEXTS, "7")["line"]
    assert line.endswith("off in both"), line
    assert frontend.errors == []


def read_layer(frontend):
    return int(frontend.page.evaluate(READ_TEXTS, "7")["line"].split(".")[1])


def test_line_and_pager_are_dark_on_light_nodes(server, chromium, pictures, request):  # noqa: F811
    server.post("/api/settings/Comfy.ColorPalette", "light")
    try:
        with contextlib.closing(open_and_run(chromium, server)) as frontend:
            path = pictures / f"light-{request.node.callspec.id}.png"
            frontend.take_picture(path)
            texts = frontend.page.evaluate(READ_TEXTS, "7")
            for color in (texts["color"], texts["pagerColour"]):
                assert max(int(part) for part in color[4:-1].split(",")) < 120, color
            box = frontend.page.locator(".lorweb-heat-map > div:last-child").first.bounding_box()
            area = Image.open(path).convert("L")
            area = area.crop((box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]))
            low, high = area.getextrema()
            assert high > 220 and low < 100
            assert frontend.errors == []
    finally:
        server.post("/api/settings/Comfy.ColorPalette", "dark")


@pytest.mark.parametrize(
    ("language", "hint", "size"),
    [
        ("zh", "运行工作流即可查看系数。", "20 层 × 3 个适配器"),
        pytest.param(
            "ja", "ワークフローを実行すると係数が表示されます。", "20 レイヤー × 3 アダプター", marks=pytest.mark.slow
        ),
        pytest.param(
            "ko", "워크플로를 실행하면 계수가 표시됩니다.", "레이어 20개 × 어댑터 3개", marks=pytest.mark.slow
        ),
    ],
    ids=["zh", "ja", "ko"],
)
def test_the_map_speaks_the_users_language(server, chromium, language, hint, size):  # noqa: F811
    server.post("/api/settings/Comfy.Locale", language)
    try:
        with contextlib.closing(Frontend(chromium, server.url, size=(2200, 1400))) as frontend:
            frontend.page.evaluate(LOAD, {"graph": GRAPH, "places": OUR_PLACES})
            frontend.page.wait_for_timeout(1000)
            assert frontend.page.evaluate(READ_TEXTS, "7")["line"] == hint
            run(frontend)
            texts = frontend.page.evaluate(READ_TEXTS, "7")
            assert texts["line"] == size
            assert str(MIXES) in texts["pager"] and "mix" not in texts["pager"]
            assert frontend.errors == []
    finally:
        server.post("/api/settings/Comfy.Locale", "en")
