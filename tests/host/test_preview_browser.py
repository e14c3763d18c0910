"""Preview Coefficients in the host's frontend: many mixes, differences, light palette, narrow nodes, languages."""

import base64
import math
import struct

import pytest

from lorweb_core.heat_map import DIVERGING
from tests.host import graphs
from tests.host.browser import CANVAS_AND_SLOWLY_VUE, open_frontend
from tests.host.graphs import make_node
from tests.host.test_coefficients_browser import GRAPH as ENCODING
from tests.host.test_coefficients_browser import PLACES

MIXES = 10
WEIGHTS = {f"weight_{place}": 1.0 for place in (1, 2, 3, 4)}
GRAPH = {key: node for key, node in ENCODING.items() if key in "123456"} | {
    "7": graphs.preview(["13", 0]),
    "12": make_node("LoRWeBEncodeAnalogy", **{**ENCODING["6"]["inputs"], "image_b": ["3", 0]}),
    "13": graphs.blend(["6", 0], ["12", 0], **WEIGHTS, position=0.0, position_end=1.0, steps=MIXES),
    "14": graphs.preview(["6", 0], compare_with=["6", 0]),
    "15": make_node("PreviewImage", images=["7", 1]),
    "16": make_node("PreviewAny", source=["7", 0]),
}
OUR_PLACES = {**PLACES, "12": (350, 900), "13": (650, 900), "14": (1450, 0), "15": (1950, 0), "16": (1950, 400)}
#: Language → title of the node, name of its input, the map before and after a run.
TRANSLATED = {
    "zh": ("预览系数", "系数", "运行工作流即可查看系数。", "20 层 × 3 个适配器"),
    "ja": ("係数をプレビュー", "係数", "ワークフローを実行すると係数が表示されます。", "20 レイヤー × 3 アダプター"),
    "ko": ("계수 미리보기", "계수", "워크플로를 실행하면 계수가 표시됩니다.", "레이어 20개 × 어댑터 3개"),
}
READ_TITLES = """id => {
  const [input] = (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == id).inputs;
  const title = window.LiteGraph.registered_node_types.LoRWeBPreviewCoefficients.title;
  return [title, input.localized_name || input.label];
}"""
CLICK_NEXT = """id => (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == id)
  .widgets.find(w => w.name === 'heat_map').element.querySelectorAll('button')[1].click()"""
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


pytestmark = pytest.mark.parametrize("frontend_server", CANVAS_AND_SLOWLY_VUE, indirect=True, scope="module")


@pytest.fixture(scope="module")
def frontend(frontend_server, chromium):
    """A tab with the graph that was run."""
    with open_frontend(chromium, frontend_server) as frontend:
        frontend.load_graph(GRAPH, OUR_PLACES)
        frontend.run()
        yield frontend


def encode(numbers):
    """Return numbers as the node sends them."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def show_full_size(frontend):
    frontend.evaluate(
        """() => { const canvas = window.app.canvas;
          canvas.ds.scale = 1; canvas.ds.offset = [-600, 100]; canvas.setDirty(true, true); }""",
        wait_ms=1000,
    )


def show_rows(frontend, rows, values, strip):
    """Have the map show other numbers."""
    show_full_size(frontend)
    numbers = {"id": "7", "rows": rows, "values": encode(values), "strip": encode(strip)}
    frontend.evaluate(SHOW_ROWS, numbers, wait_ms=1000)


def point_at_a_cell(frontend):
    """Move the mouse into the map; return what it then shows."""
    box = frontend.read_map(7)["box"]
    frontend.page.mouse.move(box["x"] + 80, box["y"] + 40)
    frontend.page.wait_for_timeout(300)
    return frontend.read_map(7)


def test_all_mixes_are_put_out_and_the_first_few_are_shown(frontend_server):
    outcome = frontend_server.succeed({**GRAPH, "17": make_node("PreviewImage", images=["7", 1])})
    shown = outcome.outputs["7"]
    assert len(outcome.outputs["17"]["images"]) == MIXES
    assert len(shown["images"]) == len(shown["lorweb_heat_map"]) == 8
    assert {data["mixes"] for data in shown["lorweb_heat_map"]} == {MIXES}
    assert shown["text"][0].startswith(f"The first 8 of {MIXES} mixes")
    assert f"Mix {MIXES} of {MIXES}" not in shown["text"][0]
    assert f"Mix {MIXES} of {MIXES}" in outcome.text("16")


def test_the_pager_counts_the_mixes_and_keeps_its_position(frontend):
    assert frontend.read_map(7)["pager"] == f"mix 1 of the first 8 of {MIXES}"
    for _ in range(4):
        frontend.evaluate(CLICK_NEXT, "7")
    for name, value, pager in (
        ("position_end", 0.9, f"mix 5 of the first 8 of {MIXES}"),
        ("steps", 3, "mix 3 of 3"),
        ("steps", MIXES, f"mix 3 of the first 8 of {MIXES}"),
    ):
        frontend.evaluate(
            "([name, value]) => (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == 13)"
            ".widgets.find(w => w.name === name).value = value",
            [name, value],
        )
        frontend.run()
        assert frontend.read_map(7)["pager"] == pager
    assert frontend.errors == []


def test_the_difference_of_an_analogy_and_itself_is_white(frontend):
    assert frontend.read_map(14)["pixel"] == [*DIVERGING[2], 255]


def test_a_node_cannot_be_made_too_narrow_for_its_line(frontend):
    show_full_size(frontend)
    x, y, width = frontend.evaluate(CORNER, "7")
    assert width > 420
    frontend.page.mouse.move(x - 3, y - 3)
    frontend.page.mouse.down()
    frontend.page.mouse.move(x - 330, y - 30, steps=8)
    frontend.page.mouse.up()
    frontend.page.wait_for_timeout(1000)
    assert frontend.evaluate(CORNER, "7")[2] == pytest.approx(400, abs=1)
    shown = point_at_a_cell(frontend)
    assert shown["width"] > 350
    assert " · " in shown["line"] and shown["title"] == shown["line"]


def test_arrow_keys_reach_every_layer_where_rows_are_lower_than_a_pixel(frontend):
    def layer():
        return int(frontend.read_map(7)["line"].split(".")[1])

    def positions():
        return frontend.evaluate("() => (window.app.rootGraph || window.app.graph).nodes.map(n => [...n.pos])")

    rows = 494
    show_rows(frontend, rows, [0.25, 0.75] * rows, [0.5] * rows)
    shown = frontend.read_map(7)
    assert "arrow keys" in shown["line"]
    frontend.page.mouse.click(shown["box"]["x"] + 80, shown["box"]["y"] + 40)
    before, first = positions(), layer()
    for step in range(1, 6):
        frontend.page.keyboard.press("ArrowDown")
        assert layer() == first + step
    frontend.page.keyboard.press("ArrowRight")
    assert "adapter 1: 0.7500" in frontend.read_map(7)["line"]
    assert positions() == before
    assert frontend.errors == []


def test_a_layer_that_is_off_in_both_has_no_cosine(frontend):
    show_rows(frontend, 4, [0.0] * 8, [math.nan] * 4)
    assert point_at_a_cell(frontend)["line"].endswith("off in both")
    assert frontend.errors == []


def test_line_and_pager_are_dark_on_light_nodes(frontend_server, chromium, tmp_path):
    with open_frontend(chromium, frontend_server, ColorPalette="light") as frontend:
        frontend.load_graph(GRAPH, OUR_PLACES)
        frontend.run()
        screenshot = frontend.take_screenshot(tmp_path / "screen.png")
        shown = frontend.read_map(7)
        for color in shown["colors"]:
            assert max(int(part) for part in color[4:-1].split(",")) < 120, color
        area = screenshot.convert("L").crop([shown["lineBox"][side] for side in ("left", "top", "right", "bottom")])
        low, high = area.getextrema()
        assert high > 220 and low < 100
        assert frontend.errors == []


@pytest.mark.parametrize("language", TRANSLATED)
def test_node_and_map_are_in_the_users_language(frontend_server, chromium, language):
    with open_frontend(chromium, frontend_server, Locale=language) as frontend:
        frontend.load_graph(GRAPH, OUR_PLACES)
        found = [*frontend.evaluate(READ_TITLES, "7"), frontend.read_map(7)["line"]]
        frontend.run()
        shown = frontend.read_map(7)
        assert (*found, shown["line"]) == TRANSLATED[language]
        assert str(MIXES) in shown["pager"] and "mix" not in shown["pager"]
        assert frontend.errors == []
