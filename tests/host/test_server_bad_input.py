"""Bad input over HTTP: each error gets a message of ours, nothing is left behind, the server goes on."""

import copy
import glob
import random
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.host import graphs, models
from tests.nodes.test_workflow_files import PACK_IDS

EDIT, BATCH, SAVE = graphs.EDIT, graphs.BATCH, graphs.SAVE_LORA
#: What no line of ours may hold; the host itself writes colors and bars.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u202e]")
#: Together they have every node that takes something over a link.
EVERY_NODE = (graphs.DEMO, graphs.SAVE_LORA, graphs.BLEND, graphs.SWEEP, graphs.SAVE_ANALOGY, graphs.REUSE_ANALOGY)
TEXTS = ("", "x", "../..", "auto", "1", "\x1b[2J\nforged", "a\0b", "x" * 5000, "\u202e", "100%")
VALUES = (
    *TEXTS, 0, -1, 5, 0.5, 1e308, -1e39, float("nan"), float("inf"), 2**70, True, None,
    [], [1, 2, 3], ["x"], {}, {"layers": {}}, {"layers": {"x": 1}, "settings": {}, "basis_id": 1, "format_version": 1},
)  # fmt: skip
PREFIXES_REFUSED = (
    "blocked/lorweb", "../outside", "/tmp/outside", "", " ", "loras/..", "a/../../x", "lo\0ras/x", "a/" * 2000 + "x",
    "x" * 300, "\U0001f600" * 60, "x\nERROR forged", "\x1b[2Jx", "x\r\x9b2K", "x\u202egnp",
)  # fmt: skip
PREFIXES_TAKEN = (
    "100%",
    "%year%-%nothing%",
    "CON",
    "nul/aux",
    "a\\b",
    "loras/süß 😀",
    "a/" * 90 + "x",
    "-rf",
    "'\"$(x)`",
)


@pytest.fixture
def edit():
    """The first workflow, ready to run."""
    return graphs.make_runnable(graphs.load_twin(EDIT))


@pytest.fixture
def save():
    """The workflow that writes a LoRA, ready to run."""
    return graphs.make_runnable(graphs.load_twin(SAVE))


def assert_refused(server, graph, node_type, *words):
    """Run a graph that must fail at a node with a message of ours, in one line, that has these words."""
    outcome = server.run(graph)
    assert outcome.status == "error", outcome
    assert outcome.node_type == node_type, outcome
    assert ".lorweb_core." in outcome.error_type, outcome
    assert not CONTROLS.search(outcome.error), outcome.error
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


@pytest.mark.parametrize("name", ["cut.safetensors", "cut\x1b[2J\nERROR forged.safetensors"])
def test_a_truncated_basis(server, save, name):
    whole = (server.base / "models/lorweb/lorweb.safetensors").read_bytes()
    (server.base / "models/lorweb" / name).write_bytes(whole[: len(whole) // 2])
    graph = graphs.change(save, "LoRWeBLoadBasis", basis_name=name)
    assert_refused(server, graph, "LoRWeBLoadBasis", name[:3], ".safetensors")
    assert "\nERROR forged" not in server.log and "\x1b[2J" not in server.log


def test_a_pickle_under_a_basis_name(server, save):
    torch.save({"weight": torch.zeros(2)}, server.base / "models/lorweb/pickle.safetensors")
    graph = graphs.change(save, "LoRWeBLoadBasis", basis_name="pickle.safetensors")
    assert_refused(server, graph, "LoRWeBLoadBasis", "pickle.safetensors")


def test_an_image_encoder_of_another_width(server, save):
    models.write_clip_folder(server.base / "models/clip_vision/narrow_clip", projection_dim=512)
    graph = graphs.change(save, "LoRWeBLoadImageEncoder", encoder_name="narrow_clip")
    assert_refused(server, graph, "LoRWeBEncodeAnalogy", "768", "512", "clip-vit-large-patch14.safetensors")


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
    assert_refused(server, graph, "LoRWeBEncodeAnalogy", "2, 1 and 4 images")


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


@pytest.mark.parametrize("prefix", PREFIXES_REFUSED, ids=lambda prefix: repr(prefix[:20]))
def test_a_prefix_that_cannot_be_used(server, save, prefix):
    (server.base / "output/blocked").write_text("a file where a folder should be")
    before, seen = sorted(server.base.rglob("*")), len(server.log)
    graph = graphs.change(save, "LoRWeBSaveMixedLoRA", filename_prefix=prefix)
    assert_refused(server, graph, "LoRWeBSaveMixedLoRA", "filename_prefix", "loras/lorweb")
    assert sorted(server.base.rglob("*")) == before
    log = server.log[seen:]
    assert "\nERROR forged" not in log and not any(steering in log for steering in ("\x1b[2J", "\x9b", "\u202e")), log


@pytest.mark.parametrize("prefix", PREFIXES_TAKEN, ids=lambda prefix: repr(prefix[:20]))
def test_an_unusual_prefix_stays_in_the_output_folder(server, save, prefix):
    outcome = server.run(graphs.change(save, "LoRWeBSaveMixedLoRA", filename_prefix=prefix))
    assert outcome.status == "success", outcome
    (text,) = outcome.outputs[graphs.find_node(save, "LoRWeBSaveMixedLoRA")]["text"]
    assert list((server.base / "output").rglob(glob.escape(text.split(": ")[0]))), text


@pytest.fixture
def every_node(server):
    """Graphs in which every node of the pack occurs."""
    graph = {name: graphs.make_runnable(graphs.load_twin(name), steps=1) for name in EVERY_NODE}
    assert server.run(graph[graphs.SAVE_ANALOGY]).status == "success"
    files = server.get("/object_info/LoRWeBLoadCoefficients")["LoRWeBLoadCoefficients"]["input"]["required"][
        "file_name"
    ]
    name = files[0][0] if isinstance(files[0], list) else files[1]["options"][0]
    graph[graphs.REUSE_ANALOGY] = graphs.change(graph[graphs.REUSE_ANALOGY], "LoRWeBLoadCoefficients", file_name=name)
    graph["many"] = many = copy.deepcopy(graph[graphs.SAVE_ANALOGY])
    node = many[graphs.find_node(many, "LoRWeBEncodeAnalogy")]
    a, a_prime = node["inputs"].pop("image_a"), node["inputs"].pop("image_a_prime")
    node["class_type"] = "LoRWeBEncodeAnalogies"
    node["inputs"].update(images_a=a, images_a_prime=a_prime, folder="", average="query")
    assert server.run(many).status == "success"
    return list(graph.values())


def own_inputs(graph):
    """Return (node id, input) of everything that a graph gives to nodes of the pack."""
    own = [node_id for node_id, node in graph.items() if node["class_type"] in PACK_IDS]
    return [(node_id, name) for node_id in own for name in graph[node_id]["inputs"]]


def assert_no_raw_error(outcome, graph):
    """Check that no exception but those for users came from the pack, whichever node was running."""
    mutated = {node_id: node["inputs"] for node_id, node in graph.items() if node["class_type"] in PACK_IDS}
    if outcome.status == "error" and ".lorweb_core." not in outcome.error_type:
        assert outcome.node_type not in PACK_IDS, (outcome, mutated)
        assert not any("comfyui-lorweb" in line for line in outcome.traceback[-1:]), (outcome, mutated)
    assert not CONTROLS.search(outcome.error) or outcome.node_type not in PACK_IDS, outcome.error


def test_literals_in_sockets_for_links_get_a_message(server, every_node):
    tried = set()
    for graph in every_node:
        for node_id, name in own_inputs(graph):
            kind = graph[node_id]["class_type"]
            if (kind, name) in tried or not isinstance(graph[node_id]["inputs"][name], list):
                continue
            tried.add((kind, name))
            for literal in (5, "\x1b[2J\nforged", [1, 2, 3], {"layers": {}}, None):
                changed = copy.deepcopy(graph)
                changed[node_id]["inputs"][name] = literal
                outcome = server.run(changed)
                assert_no_raw_error(outcome, changed)
                is_optional = name in server.get(f"/object_info/{kind}")[kind]["input"].get("optional", {})
                is_hosts_to_refuse = isinstance(literal, list)
                if not is_hosts_to_refuse and not (literal is None and is_optional):
                    assert outcome.status == "error", (name, literal, outcome)
    assert {kind for kind, _ in tried} == set(PACK_IDS) - {"LoRWeBLoadBasis", "LoRWeBLoadImageEncoder"}
    assert server.is_alive() and "\x1b[2J" not in server.log


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_mutated_prompts_give_no_raw_error(server, every_node, count):
    choose = random.Random(count)
    for _ in range(count):
        graph = copy.deepcopy(choose.choice(every_node))
        graph["any"] = {"class_type": "LoRWeBTestNameOnALink", "inputs": {"text": choose.choice(TEXTS)}}
        for node_id, name in choose.sample(own_inputs(graph), choose.choice((1, 1, 2))):
            inputs, others = graph[node_id]["inputs"], [i for i in graph if i != node_id]
            kind = choose.choice(("value", "value", "any", "link", "gone"))
            if kind == "gone":
                del inputs[name]
            else:
                links = {"any": ["any", 0], "link": [choose.choice(others), choose.choice((0, 0, 1, 9))]}
                inputs[name] = links.get(kind, choose.choice(VALUES))
        assert_no_raw_error(server.run(graph), graph)
    assert server.is_alive()  # its log is not looked at: the host itself writes out numbers it cannot read


def test_sampling_can_be_interrupted(server, edit):
    prompt_id = server.submit(graphs.change(edit, "KSampler", steps=10_000, seed=5))
    server.wait_until_sampling(prompt_id)
    server.interrupt()
    assert server.wait(prompt_id, timeout_seconds=60).status == "interrupted"
    assert server.run(graphs.change(edit, "KSampler", seed=6)).status == "success"


def _sd3_tensors():
    """What the host recognizes a one-block SD3 by; it fills the rest with zeros and a warning."""
    return {
        "joint_blocks.0.context_block.attn.qkv.weight": torch.zeros(192, 64),
        "x_embedder.proj.weight": torch.zeros(64, 16, 2, 2),
        "x_embedder.proj.bias": torch.zeros(64),
        "y_embedder.mlp.0.weight": torch.zeros(64, 2048),
        "context_embedder.weight": torch.zeros(64, 4096),
        "pos_embed": torch.zeros(1, 36864, 64),
        "final_layer.linear.weight": torch.zeros(64, 64),
    }
