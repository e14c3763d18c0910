"""Each shipped workflow, end to end in a running ComfyUI: only the encoders of 10 GB are replaced by small ones."""

import shutil

import pytest
from PIL import Image

from tests.host import graphs
from tests.host.server import PACK_FOLDER, run_quick_test

EDIT, BATCH, SAVE, USE = graphs.EDIT, graphs.BATCH, graphs.SAVE_LORA, graphs.USE_LORA
SWAPPED = {("DualCLIPLoader", "class_type"), ("CLIPVisionLoader", "class_type")}
FEWER = {("KSampler", "steps"), ("LoRWeBBuildGrid", "megapixels")}
CAT = graphs.PICTURES / "lorweb_b_cat.jpg"


def run(server, name, **sizes):
    """Run a twin after checking that nothing was changed that should not be; return its outcome."""
    twin = graphs.load_twin(name)
    graph = graphs.make_runnable(twin, **sizes)
    assert graphs.list_differences(graph, twin) <= SWAPPED | FEWER
    outcome = server.run(graph)
    assert outcome.status == "success", (outcome, server.log[-4000:])
    return outcome


def pictures_of(server, outcome):
    """Return the saved pictures."""
    (saved,) = [output["images"] for output in outcome.outputs.values() if "images" in output]
    return [Image.open(server.saved(picture)) for picture in saved]


def texts_of(outcome):
    """Return all shown text."""
    return "\n".join(line for output in outcome.outputs.values() for line in output.get("text", ()))


def test_the_pack_is_imported_without_a_complaint(server):
    assert "IMPORT FAILED" not in server.log
    assert "LoRWeBApplyMixedLoRA" in server.get("/object_info")


@pytest.mark.slow
def test_the_host_s_own_quick_test_finds_nothing_to_complain_about(host, tmp_path):
    status, log = run_quick_test(host, tmp_path)
    assert status == 0
    assert PACK_FOLDER in log and "IMPORT FAILED" not in log, log


def test_the_workflows_are_offered_as_templates_with_pictures(server):
    assert sorted(server.get("/api/workflow_templates")[PACK_FOLDER]) == graphs.NAMES
    for name in graphs.NAMES:
        folder = f"/api/workflow_templates/{PACK_FOLDER}"
        assert server.get(f"{folder}/{name}.json") == graphs.load_workflow(name)
        assert server.get_bytes(f"{folder}/{name}.jpg") == (graphs.WORKFLOWS / f"{name}.jpg").read_bytes()


def test_an_analogy_edit_gives_a_picture_of_b_s_size_and_a_report(server):
    outcome = run(server, EDIT)
    (picture,) = pictures_of(server, outcome)
    assert picture.size == Image.open(CAT).size
    assert len(set(picture.convert("L").tobytes())) > 20
    assert "Mode: forward" in texts_of(outcome) and "20 matched" in texts_of(outcome)


def test_one_analogy_on_two_pictures_gives_two_different_pictures(server):
    outcome = run(server, BATCH)
    first, second = pictures_of(server, outcome)
    assert first.size == second.size == Image.open(CAT).size
    assert first.tobytes() != second.tobytes()
    assert "Mixes: 2" in texts_of(outcome)


def test_an_analogy_is_saved_and_used_again_as_an_ordinary_lora(server):
    outcome = run(server, SAVE)
    assert "energy kept 100.00%" in texts_of(outcome)
    written = sorted((server.base / "output" / "loras").glob("lorweb_*.safetensors"))[-1]
    assert str(written) in texts_of(outcome)
    shutil.copy(written, server.base / "models" / "loras" / "lorweb_00001_.safetensors")
    (picture,) = pictures_of(server, run(server, USE))
    assert picture.size == Image.open(CAT).size
    assert "lora key not loaded" not in server.log


@pytest.mark.slow
def test_an_analogy_edit_runs_at_its_full_size(servers, newest_host):
    server = servers(newest_host)
    twin = graphs.load_twin(EDIT)
    graph = graphs.make_runnable(twin, steps=1, megapixels=1.0)
    assert graphs.list_differences(graph, twin) == SWAPPED | {("KSampler", "steps")}
    outcome = server.run(graph, timeout_seconds=550)
    assert outcome.status == "success", (outcome, server.log[-4000:])
    assert pictures_of(server, outcome)[0].size == Image.open(CAT).size
