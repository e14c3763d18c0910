"""Maps and reports are shown again after switching to another workflow and back."""

import contextlib
import time

import pytest

from tests.host.browser import Frontend
from tests.host.test_browser import chromium  # noqa: F401 - a fixture
from tests.host.test_coefficients_browser import GRAPH, LOAD, PLACES, RUN

SLOW = pytest.mark.slow
#: The workflow as the frontend would save it, with an id, so that runs can be told apart.
MAKE_WORKFLOW = """async () => {
  const saved = (await window.app.graphToPrompt()).workflow;
  return {...saved, id: crypto.randomUUID()};
}"""
SHOWN = """() => {
  const texts = name => [...document.querySelectorAll(name)].filter(e => e.isConnected).map(e => e.textContent).sort();
  return {maps: texts('.lorweb-heat-map > div:last-child'), reports: texts('.lorweb-report')};
}"""
RUN_COMMAND = "name => window.app.extensionManager.command.execute(name)"


@pytest.fixture(
    scope="module",
    params=["newest-canvas", pytest.param("newest-vue", marks=SLOW), pytest.param("oldest-canvas", marks=SLOW)],
)
def server(request, servers):
    """The servers of both hosts, the newest one with each of its two renderers."""
    host_name, renderer = request.param.split("-")
    server = servers(request.getfixturevalue(f"{host_name}_host"))
    server.post("/api/settings/Comfy.VueNodes.Enabled", renderer == "vue")
    return server


@pytest.fixture
def frontend(server, chromium):  # noqa: F811
    """A new tab with a workflow that was run, nothing of it before."""
    server.post("/history", {"clear": True})
    server.post("/free", {"free_memory": True, "unload_models": True})
    time.sleep(1)
    with contextlib.closing(Frontend(chromium, server.url, size=(2200, 1250))) as frontend:
        frontend.page.evaluate(LOAD, {"graph": GRAPH, "places": PLACES})
        frontend.page.wait_for_timeout(500)
        frontend.open_workflow(frontend.page.evaluate(MAKE_WORKFLOW))
        run(frontend)
        shown = frontend.page.evaluate(SHOWN)
        assert shown["maps"] == ["20 layers × 3 adapters"] and len(shown["reports"]) == 3
        yield frontend


def run(frontend):
    """Run the open workflow."""
    assert frontend.page.evaluate(RUN) == "success"
    frontend.page.wait_for_timeout(1500)


def test_maps_and_reports_are_back_after_another_workflow(frontend):
    before = frontend.page.evaluate(SHOWN)
    frontend.page.evaluate(RUN_COMMAND, "Comfy.NewBlankWorkflow")
    frontend.page.wait_for_timeout(1500)
    assert frontend.page.evaluate(SHOWN) == {"maps": [], "reports": []}
    frontend.page.evaluate(RUN_COMMAND, "Workspace.PreviousOpenedWorkflow")
    frontend.page.wait_for_timeout(2000)
    assert frontend.page.evaluate(SHOWN) == before
    assert frontend.errors == []
