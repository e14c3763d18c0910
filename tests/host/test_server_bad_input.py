"""Bad input over HTTP: each mistake gets its message, nothing is left behind, the server goes on."""

import re

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.host import graphs, models

EDIT, BATCH, SAVE = graphs.EDIT, graphs.BATCH, graphs.SAVE_LORA
WHAT_AND_HOW = re.compile(r"[A-Z].+\. [A-Z].+\.$", re.DOTALL)


@pytest.fixture
def edit():
    """The first workflow, ready to run."""
    return graphs.make_runnable(graphs.load_twin(EDIT))


@pytest.fixture
def save():
    """The workflow that writes a LoRA, ready to run."""
    return graphs.make_runnable(graphs.load_twin(SAVE))


def assert_refused(server, graph, node_type, *words):
    """Run a graph that must fail at a node with a message that says what is wrong and what to do, in these words."""
    outcome = server.run(graph)
    assert outcome.status == "error", outcome
    assert outcome.node_type == node_type, outcome
    assert WHAT_AND_HOW.match(outcome.error), outcome.error
    missing = [word for word in words if word not in outcome.error]
    assert not missing, (missing, outcome.error)
    assert server.is_alive()


def put_picture(server, name, mode, size):
    """Write a picture into the input folder."""
    Image.effect_noise((max(size[0], 2), max(size[1], 2)), 60).resize(size).convert(mode).save(
        server.base / "input" / name
    )
    return name


def with_picture(graph, name):
    """Return a copy whose b is another picture."""
    cat = next(i for i, node in graph.items() if node["inputs"].get("image") == "lorweb_b_cat.jpg")
    return {**graph, cat: {"class_type": "LoadImage", "inputs": {"image": name}}}


def test_a_truncated_basis(server, save):
    whole = (server.base / "models/lorweb/lorweb.safetensors").read_bytes()
    (server.base / "models/lorweb/cut.safetensors").write_bytes(whole[: len(whole) // 2])
    graph = graphs.change(save, "LoRWeBLoadBasis", basis_name="cut.safetensors")
    assert_refused(server, graph, "LoRWeBLoadBasis", "cut.safetensors")


def test_a_pickle_under_a_basis_name(server, save):
    torch.save({"weight": torch.zeros(2)}, server.base / "models/lorweb/pickle.safetensors")
    graph = graphs.change(save, "LoRWeBLoadBasis", basis_name="pickle.safetensors")
    assert_refused(server, graph, "LoRWeBLoadBasis", "pickle.safetensors")


def test_an_image_encoder_of_another_width(server, save):
    models.write_clip_folder(server.base / "models/clip_vision/narrow_clip", projection_dim=512)
    graph = graphs.change(save, "LoRWeBLoadImageEncoder", encoder_name="narrow_clip")
    assert_refused(server, graph, "LoRWeBEncodeAnalogy", "768", "512", "clip_vision_l")


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1)], ids=str)
def test_pictures_with_a_side_of_one_pixel(server, save, edit, size):
    name = put_picture(server, f"thin_{size[0]}_{size[1]}.png", "RGB", size)
    assert_refused(server, with_picture(save, name), "LoRWeBEncodeAnalogy", "image_b")
    grid_only = {i: node for i, node in edit.items() if "Encode" not in node["class_type"]}
    grid_only = {i: grid_only[i] for i in grid_only if grid_only[i]["class_type"] in ("LoadImage", "LoRWeBBuildGrid")}
    grid_only["show"] = {
        "class_type": "PreviewImage",
        "inputs": {"images": [graphs.find_node(grid_only, "LoRWeBBuildGrid"), 0]},
    }
    assert_refused(server, with_picture(grid_only, name), "LoRWeBBuildGrid", "image_b")


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "1"])
def test_pictures_with_other_channels_are_welcome(server, save, mode):
    name = put_picture(server, f"channels_{mode}.png", mode, (70, 50))
    outcome = server.run(with_picture(save, name))
    assert outcome.status == "success", outcome


def test_batches_that_do_not_pair(server):
    batch = graphs.make_runnable(graphs.load_twin(BATCH))
    pair = [graphs.find_node(batch, "ImageBatch"), 0]
    three = {"class_type": "ImageBatch", "inputs": {"image1": pair, "image2": pair}}
    graph = graphs.change({**batch, "four": three}, "LoRWeBEncodeAnalogy", image_a=pair, image_b=["four", 0])
    assert_refused(server, graph, "LoRWeBEncodeAnalogy", "2, 1 and 4 pictures")


def test_several_mixes_in_mode_weights(server):
    batch = graphs.make_runnable(graphs.load_twin(BATCH))
    graph = graphs.change(batch, "LoRWeBApplyMixedLoRA", mode="weights")
    assert_refused(server, graph, "LoRWeBApplyMixedLoRA", "2 mixes", "forward")


def test_a_latent_batch_that_does_not_fit_the_mixes(server):
    batch = graphs.make_runnable(graphs.load_twin(BATCH))
    grid = graphs.find_node(batch, "LoRWeBBuildGrid")
    empty = {
        "class_type": "EmptySD3LatentImage",
        "inputs": {"width": [grid, 2], "height": [grid, 3], "batch_size": 3},
    }
    graph = graphs.change({**batch, "empty": empty}, "KSampler", latent_image=["empty", 0])
    assert_refused(server, graph, "KSampler", "2 mixes", "batch has 3")


def test_coefficients_of_another_basis(server, edit):
    models.write_basis(server.base / "models/lorweb/other.safetensors", models.width_for(server.host), seed=7)
    other = {"class_type": "LoRWeBLoadBasis", "inputs": {"basis_name": "other.safetensors"}}
    graph = graphs.change({**edit, "other": other}, "LoRWeBApplyMixedLoRA", basis=["other", 0])
    assert_refused(server, graph, "LoRWeBApplyMixedLoRA", "other.safetensors", "lorweb.safetensors")


def test_a_model_that_is_no_flux(server, edit):
    save_file(_sd3_tensors(), server.base / "models/diffusion_models/sd3.safetensors")
    graph = graphs.change(edit, "UNETLoader", unet_name="sd3.safetensors")
    assert_refused(server, graph, "LoRWeBApplyMixedLoRA", "FLUX.1-Kontext", "SD3")


@pytest.mark.parametrize("prefix", ["blocked/lorweb", "../outside", "/tmp/outside", "", "loras/..", "lo\0ras/x"])
def test_an_output_folder_that_cannot_be_used(server, save, prefix):
    output = server.base / "output"
    (output / "blocked").write_text("a file where a folder should be")
    before = sorted(server.base.rglob("*.safetensors*"))
    graph = graphs.change(save, "LoRWeBSaveMixedLoRA", filename_prefix=prefix)
    assert_refused(server, graph, "LoRWeBSaveMixedLoRA", "filename_prefix")
    assert sorted(server.base.rglob("*.safetensors*")) == before


def test_sampling_can_be_interrupted(server, edit):
    prompt_id = server.submit(graphs.change(edit, "KSampler", steps=10_000, seed=5))
    server.wait_until_sampling(prompt_id)
    server.interrupt()
    assert server.wait(prompt_id, timeout_seconds=60).status == "interrupted"
    assert server.run(graphs.change(edit, "KSampler", seed=6)).status == "success"


def _sd3_tensors():
    """What the host recognises a one-block SD3 by; it fills the rest with zeros and a warning."""
    return {
        "joint_blocks.0.context_block.attn.qkv.weight": torch.zeros(192, 64),
        "x_embedder.proj.weight": torch.zeros(64, 16, 2, 2),
        "x_embedder.proj.bias": torch.zeros(64),
        "y_embedder.mlp.0.weight": torch.zeros(64, 2048),
        "context_embedder.weight": torch.zeros(64, 4096),
        "pos_embed": torch.zeros(1, 36864, 64),
        "final_layer.linear.weight": torch.zeros(64, 64),
    }
