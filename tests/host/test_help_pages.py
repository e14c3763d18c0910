"""A user clicks a node and its ⓘ button: our help page opens beside the graph, with its picture. Both renderers."""

import contextlib

import pytest

from tests.host.browser import Frontend
from tests.host.test_browser import chromium  # noqa: F401 - a fixture

#: Puts one node alone on the canvas and returns where its title is on the screen.
SHOW_ALONE = """type => {
  const canvas = window.app.canvas, graph = window.app.rootGraph || window.app.graph;
  graph.clear();
  const node = window.LiteGraph.createNode(type);
  node.pos = [0, 0];
  graph.add(node);
  canvas.ds.scale = 1;
  canvas.ds.offset = [500, 400];
  canvas.setDirty(true, true);
  const area = canvas.canvas.getBoundingClientRect();
  return {x: area.x + 500 + 60, y: area.y + 400 - 12, title: node.title};
}"""
INFO_BUTTON = "[data-testid='info-button']"
PICTURE_WIDTHS = "() => [...document.querySelectorAll(\"img[src*='/docs/']\")].map(image => image.naturalWidth)"


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["canvas", "vue"])
def frontend(request, newest_server, chromium):  # noqa: F811
    """The newest frontend, in each of its two renderers."""
    newest_server.post("/api/settings/Comfy.VueNodes.Enabled", request.param)
    with contextlib.closing(Frontend(chromium, newest_server.url, size=(1600, 1000))) as frontend:
        yield frontend


def test_every_node_opens_its_page_with_a_picture(frontend, newest_server):
    page = frontend.page
    ours = [name for name in newest_server.get("/object_info") if name.startswith("LoRWeB") and "Test" not in name]
    assert len(ours) >= 14
    for node_type in ours:
        place = page.evaluate(SHOW_ALONE, node_type)
        page.wait_for_timeout(500)
        page.mouse.click(place["x"], place["y"])
        page.locator(INFO_BUTTON).first.dispatch_event("click")  # a tab's popover may lie over it
        page.get_by_role("heading", name=place["title"], level=1).wait_for(timeout=10_000)
        page.wait_for_function(f"() => ({PICTURE_WIDTHS})().some(width => width >= 200)", timeout=10_000)
        page.get_by_role("heading", name="Inputs").wait_for(timeout=10_000)
    assert frontend.errors == []
