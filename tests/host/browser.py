"""The host's own frontend in headless Chromium: open a workflow, run it, read it back, take a screenshot."""

import contextlib
import os
import shutil

import pytest
from PIL import Image

#: The fixture `frontend_server` with each renderer of the newest frontend.
RENDERERS = ["newest-canvas", "newest-vue"]
CANVAS_AND_SLOWLY_VUE = ["newest-canvas", pytest.param("newest-vue", marks=pytest.mark.slow)]
OLDEST = pytest.param("oldest-canvas", marks=pytest.mark.slow)
#: What a tab's settings become again when it is closed.
SETTINGS = {"Locale": "en", "ColorPalette": "dark"}
#: The frontend has built its graph and knows the server's nodes.
READY = (
    "() => window.app && (window.app.rootGraph || window.app.graph)"
    " && window.LiteGraph && Object.keys(window.LiteGraph.registered_node_types).length > 50"
)
READ_GRAPH = """async () => {
  const app = window.app, graph = app.rootGraph || app.graph;
  const known = window.LiteGraph.registered_node_types;
  const nodes = graph.nodes.map(n => ({id: n.id, type: n.type, title: n.title, pos: [...n.pos], size: [...n.size]}));
  return {
    nodes,
    missing: nodes.filter(n => !(n.type in known)).map(n => n.type),
    prompt: (await app.graphToPrompt()).output,
  };
}"""
FIT_VIEW = """() => {
  const canvas = window.app.canvas, graph = window.app.rootGraph || window.app.graph;
  const boxes = [
    ...graph.nodes.map(n => [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]),
    ...graph.groups.map(g => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.size[1]]),
  ];
  const low = axis => Math.min(...boxes.map(b => b[axis])), high = axis => Math.max(...boxes.map(b => b[axis + 2]));
  const area = canvas.canvas.getBoundingClientRect(), margin = [90, 110];
  const scale = Math.min((area.width - 2 * margin[0]) / (high(0) - low(0)),
                         (area.height - 2 * margin[1]) / (high(1) - low(1)));
  canvas.ds.scale = scale;
  canvas.ds.offset[0] = margin[0] / scale - low(0);
  canvas.ds.offset[1] = margin[1] / scale - low(1);
  canvas.setDirty(true, true);
}"""
#: Load a graph in API format, which the frontend lays out itself, and put its nodes into their places.
LOAD_GRAPH = """async ({graph, places}) => {
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
#: Texts, colors and place of a node's heat map. Its sharpness is canvas pixels per pixel on the screen; `pixel` is the
#: color inside a cell, as the browser rendered it.
READ_MAP = """id => {
  const node = (window.app.rootGraph || window.app.graph).nodes.find(n => n.id == id);
  const element = node.widgets.find(w => w.name === 'heat_map').element;
  const [pager, , line] = element.children, canvas = element.querySelector('.lorweb-heat-map-cells');
  const box = canvas.getBoundingClientRect();
  const inside = [canvas.width * 0.2, canvas.height * 0.4].map(Math.round);
  return {
    pager: pager.querySelector('span').textContent, line: line.textContent, title: line.title,
    colors: [line, pager].map(part => getComputedStyle(part).color),
    box: box.toJSON(), lineBox: line.getBoundingClientRect().toJSON(), width: element.getBoundingClientRect().width,
    sharpness: Math.min(canvas.width / box.width, canvas.height / box.height) / devicePixelRatio,
    pixel: [...canvas.getContext('2d').getImageData(...inside, 1, 1).data],
  };
}"""


def chromium_path():
    """Return the system's Chromium (CHROMIUM_PATH, else on PATH), or None."""
    candidates = (
        os.environ.get("CHROMIUM_PATH"),
        *map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    )
    return next((path for path in candidates if path), None)


@contextlib.contextmanager
def open_browser(executable):
    """Yield a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_frontend(browser, server, *, size=(2200, 1400), **settings):
    """Yield a tab with the frontend of a server, under these settings of `SETTINGS`."""
    for name, value in settings.items():
        server.post(f"/api/settings/Comfy.{name}", value)
    frontend = Frontend(browser, server.url, size)
    try:
        yield frontend
    finally:
        frontend.page.close()
        for name in settings:
            server.post(f"/api/settings/Comfy.{name}", SETTINGS[name])


class Frontend:
    """One tab with the host's frontend."""

    def __init__(self, browser, url, size):
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.errors = []
        self.page.goto(url)
        self.page.wait_for_function(READY, timeout=120_000)
        self.page.wait_for_timeout(1500)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def evaluate(self, script, argument=None, *, wait_ms=0):
        """Return the value of a script, after some time for what it sets off."""
        value = self.page.evaluate(script, argument)
        self.page.wait_for_timeout(wait_ms)
        return value

    def open_workflow(self, workflow):
        """Load a workflow in UI format; return what the frontend made of it."""
        self.errors.clear()
        self.evaluate("workflow => window.app.loadGraphData(workflow)", workflow, wait_ms=1000)
        return self.evaluate(READ_GRAPH)

    def load_graph(self, graph, places):
        """Load a graph in API format."""
        self.evaluate(LOAD_GRAPH, {"graph": graph, "places": places}, wait_ms=1000)

    def run(self):
        """Run the open workflow."""
        assert self.evaluate(RUN, wait_ms=1500) == "success"

    def read_map(self, node_id):
        """Return what `READ_MAP` finds on a node."""
        return self.evaluate(READ_MAP, node_id)

    def take_screenshot(self, path):
        """Write a screenshot of the whole graph; return it."""
        self.page.keyboard.press("Escape")
        self.evaluate(FIT_VIEW, wait_ms=1500)
        self.page.screenshot(path=str(path))
        return Image.open(path).convert("RGB")
