"""The shipped workflow files by themselves: consistent, documented, with licenses and images. Needs no host."""

import re

import pytest
from PIL import Image

from tests.host import graphs
from tests.host.hosts import ROOT

PACK_IDS = (
    "LoRWeBLoadBasis",
    "LoRWeBLoadImageEncoder",
    "LoRWeBEncodeAnalogy",
    "LoRWeBApplyMixedLoRA",
    "LoRWeBBuildGrid",
    "LoRWeBCropResult",
    "LoRWeBSaveMixedLoRA",
    "LoRWeBBlendCoefficients",
    "LoRWeBAdjustCoefficients",
    "LoRWeBPreviewCoefficients",
    "LoRWeBSaveCoefficients",
    "LoRWeBLoadCoefficients",
    "LoRWeBEncodeAnalogies",
    "LoRWeBEmptyPrompt",
)


@pytest.fixture(params=graphs.NAMES)
def name(request):
    """Each shipped workflow."""
    return request.param


@pytest.fixture
def workflow(name):
    """Each shipped workflow, parsed."""
    return graphs.load_workflow(name)


def notes_of(workflow):
    """Return the text of all notes."""
    return "\n".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in graphs.NOTES)


def test_every_workflow_is_there_with_twin_and_thumbnail():
    assert [name[:2].strip("_") for name in graphs.NAMES] == ["0", "1", "2", "3a", "3b", "4", "5", "6a", "6b"]
    assert sorted(path.stem for path in graphs.TWINS.glob("*.json")) == graphs.NAMES
    for name in graphs.NAMES:
        path = graphs.WORKFLOWS / f"{name}.jpg"
        assert max(Image.open(path).size) <= 512 and path.stat().st_size < 100_000


def test_every_workflow_has_an_id_of_its_own():
    assert len({graphs.load_workflow(name)["id"] for name in graphs.NAMES}) == len(graphs.NAMES)


def test_the_twin_says_what_the_workflow_says(name, workflow):
    assert graphs.convert_to_api(workflow) == graphs.load_twin(name)


def test_links_join_sockets_of_the_same_type_and_are_noted_on_both_ends(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) == workflow["last_node_id"]
    for link, origin, slot, target, entry, kind in workflow["links"]:
        output, socket = nodes[origin]["outputs"][slot], nodes[target]["inputs"][entry]
        assert link in output["links"] and socket["link"] == link
        assert output["type"] == kind
        assert socket["type"] in (kind, "*")


def test_every_node_of_ours_exists_and_names_its_package(workflow):
    """The frontend offers to install the package by its id in the registry, which is the project's name."""
    (package,) = re.findall(r'^name = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    ours = [node for node in workflow["nodes"] if node["type"].startswith("LoRWeB")]
    assert ours and {node["type"] for node in ours} <= set(PACK_IDS)
    assert {node["properties"]["cnr_id"] for node in ours} == {package}


def test_the_demo_explains_its_files_and_license():
    notes = notes_of(graphs.load_workflow(graphs.DEMO))
    assert "python -m training.demo.comfyui" in notes and "**Apache-2.0**" in notes
    for folder in ("diffusion_models", "vae", "lorweb", "clip_vision"):
        assert f"models/{folder}" in notes
    assert graphs.links_in(notes) == []


def test_every_file_is_explained_with_folder_and_license(name, workflow):
    if name == graphs.DEMO:
        return
    notes = notes_of(workflow)
    for node in workflow["nodes"]:
        for model in node["properties"].get("models", ()):
            assert f"[{model['name']}]({model['url']})" in notes
            assert f"models/{model['directory']}" in notes
            assert model["name"] in node["widgets_values"]
    kinds = {node["type"] for node in workflow["nodes"]}
    if "UNETLoader" in kinds:
        assert "FLUX.1 [dev] Non-Commercial License" in notes
    if "LoRWeBLoadBasis" in kinds:
        assert "huggingface.co/hilamanor/lorweb" in notes and "**non-commercial**" in notes
    assert "workflows/example_images" in notes


def test_links_lead_to_model_pages_only(workflow):
    assert all(url.startswith("https://huggingface.co/") for url in graphs.links_in(notes_of(workflow)))


def test_every_named_image_ships_and_its_license_is_stated(workflow):
    licenses = (graphs.IMAGES / "LICENSE.md").read_text()
    for node in workflow["nodes"]:
        if node["type"] == "LoadImage":
            assert (graphs.IMAGES / node["widgets_values"][0]).is_file()
            assert node["widgets_values"][0] in licenses


def test_the_images_are_small():
    assert sum(path.stat().st_size for path in graphs.IMAGES.glob("*.jpg")) < 300_000


def test_the_notes_speak_of_an_example_pair_only_where_there_is_one(workflow):
    images = sum(node["type"] == "LoadImage" for node in workflow["nodes"])
    notes = notes_of(workflow)
    if images == 1:
        assert "three images" not in notes and "edit from a to a′" not in notes
        assert "an instruction is the only other hint" in notes
