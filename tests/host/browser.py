"""The host's own frontend in headless Chromium: open a workflow, read it back, take a picture."""

import contextlib
import os
import shutil

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
#: What the host itself logs as errors on a fresh base directory.
HOST_NOISE = ("Failed to load resource", "user.css", "userdata")


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


class Frontend:
    """One tab with the host's frontend."""

    def __init__(self, browser, url, *, size=(2400, 1350)):
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.errors = []
        self.page.goto(url)
        self.page.wait_for_function(READY, timeout=120_000)
        self.page.wait_for_timeout(1500)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open_workflow(self, workflow):
        """Load a workflow in UI format; return what the frontend made of it."""
        self.errors.clear()
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(1000)
        return self.page.evaluate(READ_GRAPH)

    def take_picture(self, path):
        """Write a screenshot of the whole graph."""
        self.page.keyboard.press("Escape")
        self.page.evaluate(FIT_VIEW)
        self.page.wait_for_timeout(1500)
        self.page.screenshot(path=str(path))

    def close(self):
        """Close the tab."""
        self.page.close()
