"""A user clicks a node and its ⓘ button: our help page opens beside the graph, with its image. Both renderers."""

import pytest

from tests.host.browser import CANVAS_AND_SLOWLY_VUE, open_frontend

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
IMAGE_WIDTHS = "() => [...document.querySelectorAll(\"img[src*='/docs/']\")].map(image => image.naturalWidth)"


@pytest.mark.parametrize("frontend_server", CANVAS_AND_SLOWLY_VUE, indirect=True, scope="module")
def test_every_node_opens_its_page_with_an_image(frontend_server, chromium):
    ours = [name for name in frontend_server.get("/object_info") if name.startswith("LoRWeB") and "Test" not in name]
    assert len(ours) >= 14
    with open_frontend(chromium, frontend_server, size=(1600, 1000)) as frontend:
        page = frontend.page
        for node_type in ours:
            corner = frontend.evaluate(SHOW_ALONE, node_type, wait_ms=500)
            page.mouse.click(corner["x"], corner["y"])
            page.locator(INFO_BUTTON).first.dispatch_event("click")  # a tab's popover may lie over it
            page.get_by_role("heading", name=corner["title"], level=1).wait_for(timeout=10_000)
            page.wait_for_function(f"() => ({IMAGE_WIDTHS})().some(width => width >= 200)", timeout=10_000)
            page.get_by_role("heading", name="Inputs").wait_for(timeout=10_000)
        assert frontend.errors == []
