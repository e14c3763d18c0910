"""Each shipped workflow in the host's own frontend, in headless Chromium."""

import itertools

import pytest

from tests.host import graphs
from tests.host.browser import CANVAS_AND_SLOWLY_VUE, OLDEST, open_frontend

#: The oldest frontend sends the text that Preview Any shows back to it.
ECHOED = {"PreviewAny": {"preview"}}

#: Nodes whose corner is in a group and which stick out of it, in either renderer.
LIST_OUTSIDE_GROUPS = """() => {
  const {ds, canvas} = window.app.canvas, area = canvas.getBoundingClientRect();
  const graph = window.app.rootGraph || window.app.graph;
  const farCorner = node => {
    const html = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
    if (!html) return [node.pos[0] + node.size[0], node.pos[1] + node.size[1]];
    return [(html.right - area.left) / ds.scale - ds.offset[0], (html.bottom - area.top) / ds.scale - ds.offset[1]];
  };
  const holds = (group, [x, y]) => x >= group.pos[0] - 1 && x <= group.pos[0] + group.size[0] + 1
    && y >= group.pos[1] - 1 && y <= group.pos[1] + group.size[1] + 1;
  return graph.nodes.filter(node => {
    const group = graph.groups.find(group => holds(group, node.pos));
    return group && !holds(group, farCorner(node));
  }).map(node => node.title);
}"""


@pytest.fixture(scope="module")
def frontend(frontend_server, chromium):
    """A tab of each server."""
    with open_frontend(chromium, frontend_server, size=(2400, 1350)) as frontend:
        yield frontend


@pytest.mark.parametrize("frontend_server", [*CANVAS_AND_SLOWLY_VUE, OLDEST], indirect=True, scope="module")
@pytest.mark.parametrize("name", graphs.NAMES)
def test_a_workflow_opens_and_sends_its_twin(frontend, tmp_path, name):
    opened = frontend.open_workflow(graphs.load_workflow(name))
    assert opened["missing"] == []
    assert frontend.errors == []
    assert {key: read_sent(node) for key, node in opened["prompt"].items()} == graphs.load_twin(name)
    assert list_overlaps(opened["nodes"]) == []
    screenshot = frontend.take_screenshot(tmp_path / "screen.png")
    assert len(screenshot.getcolors(maxcolors=10_000_000)) > 500, "an empty canvas"
    assert frontend.evaluate(LIST_OUTSIDE_GROUPS) == []
    assert frontend.errors == []


def read_sent(node):
    """Return class and inputs of a node as sent to the server, without titles and echoes."""
    echoed = ECHOED.get(node["class_type"], ())
    inputs = {name: value for name, value in node["inputs"].items() if name not in echoed}
    return {"class_type": node["class_type"], "inputs": inputs}


def list_overlaps(nodes):
    """Return pairs of nodes, title bars included, that cover each other."""
    boxes = [
        (node["title"], node["pos"][0], node["pos"][1] - 30, *(node["pos"][i] + node["size"][i] for i in (0, 1)))
        for node in nodes
    ]
    return [
        (a[0], b[0])
        for a, b in itertools.combinations(boxes, 2)
        if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]
    ]
