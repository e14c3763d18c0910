"""Bad input over HTTP: each error gets a message of ours, nothing is left behind, the server goes on."""

import copy
import glob
import random
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.host import graphs, models
from tests.host.graphs import make_node
from tests.host.server import CONTROLS
from tests.nodes.test_workflow_files import PACK_IDS

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
    "100%", "%year%-%nothing%", "CON", "nul/aux", "a\\b", "loras/süß 😀", "a/" * 90 + "x", "-rf", "'\"$(x)`",
)  # fmt: skip


@pytest.fixture
def save():
    """The workflow that writes a LoRA, ready to run."""
    return graphs.load_runnable(graphs.SAVE_LORA)


def with_b(server, graph, name, mode, size):
    """Write an image into the input folder; return a copy of a graph whose b it is."""
    image = Image.effect_noise((max(size[0], 2), max(size[1], 2)), 60).resize(size).convert(mode)
    image.save(server.base / "input" / name)
    cat = next(i for i, node in graph.items() if node["inputs"].get("image") == "lorweb_b_cat.jpg")
    return {**graph, cat: make_node("LoadImage", image=name)}


@pytest.mark.parametrize("name", ["cut.safetensors", "cut\x1b[2J\nERROR forged.safetensors", "pickle.safetensors"])
def test_a_basis_file_that_cannot_be_read(server, save, name):
    path = server.base / "models/lorweb" / name
    if name.startswith("pickle"):
        torch.save({"weight": torch.zeros(2)}, path)
    else:
        whole = path.with_name("lorweb.safetensors").read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    graph = graphs.change(save, "LoRWeBLoadBasis", basis_name=name)
    server.refuse(graph, "LoRWeBLoadBasis", name[:3], ".safetensors")
    assert "\nERROR forged" not in server.log and "\x1b[2J" not in server.log


def test_an_image_encoder_of_another_width(server, save):
    models.write_clip_folder(server.base / "models/clip_vision/narrow_clip", projection_dim=512)
    graph = graphs.change(save, "LoRWeBLoadImageEncoder", encoder_name="narrow_clip")
    server.refuse(graph, "LoRWeBEncodeAnalogy", "768", "512", "clip-vit-large-patch14.safetensors")


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1)], ids=str)
def test_images_with_a_side_of_one_pixel(server, save, edit, size):
    name = f"thin_{size[0]}_{size[1]}.png"
    server.refuse(with_b(server, save, name, "RGB", size), "LoRWeBEncodeAnalogy", "image_b")
    grid = {i: node for i, node in edit.items() if node["class_type"] in ("LoadImage", "LoRWeBBuildGrid")}
    grid["show"] = make_node("PreviewImage", images=[graphs.find_node(grid, "LoRWeBBuildGrid"), 0])
    server.refuse(with_b(server, grid, name, "RGB", size), "LoRWeBBuildGrid", "image_b")


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "1"])
def test_images_with_other_channels_are_welcome(server, save, mode):
    server.succeed(with_b(server, save, f"channels_{mode}.png", mode, (70, 50)))


def test_batches_that_do_not_pair(server):
    batch = graphs.load_runnable(graphs.BATCH)
    pair = [graphs.find_node(batch, "ImageBatch"), 0]
    four = make_node("ImageBatch", image1=pair, image2=pair)
    graph = graphs.change({**batch, "four": four}, "LoRWeBEncodeAnalogy", image_a=pair, image_b=["four", 0])
    server.refuse(graph, "LoRWeBEncodeAnalogy", "2, 1 and 4 images")


def test_a_model_that_is_no_flux(server, edit):
    shapes = {  # by which the host recognizes a one-block SD3; it fills the rest with zeros and a warning
        "joint_blocks.0.context_block.attn.qkv.weight": (192, 64),
        "x_embedder.proj.weight": (64, 16, 2, 2),
        "x_embedder.proj.bias": (64,),
        "y_embedder.mlp.0.weight": (64, 2048),
        "context_embedder.weight": (64, 4096),
        "pos_embed": (1, 36864, 64),
        "final_layer.linear.weight": (64, 64),
    }
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, server.base / "models/diffusion_models/sd3.safetensors")
    graph = graphs.change(edit, "UNETLoader", unet_name="sd3.safetensors")
    server.refuse(graph, "LoRWeBApplyMixedLoRA", "FLUX.1-Kontext", "SD3")


def test_coefficients_of_another_basis_are_refused_on_apply_and_on_load(server, edit):
    encode, basis = (graphs.find_node(edit, f"LoRWeB{name}") for name in ("EncodeAnalogy", "LoadBasis"))
    models.write_basis(server.base / "models/lorweb/other.safetensors", models.width_for(server.host), seed=7)
    server.succeed({**edit, "s": graphs.save_coefficients([encode, 0], "mine")})
    name = server.newest("lorweb_coefficients/mine").name
    names = ("other.safetensors (id", "lorweb.safetensors (id")
    for given, node_type in (
        (graphs.load_coefficients(name), "LoRWeBApplyMixedLoRA"),
        (graphs.load_coefficients(name, basis=[basis, 0]), "LoRWeBLoadCoefficients"),
    ):
        graph = graphs.with_coefficients(edit, ["l", 0], l=given)
        graph = graphs.change(graph, "LoRWeBLoadBasis", basis_name="other.safetensors")
        server.refuse(graph, node_type, *names)


def test_errors_in_the_graph_get_a_message_with_a_remedy(newest_server, edit):
    encoded = [graphs.find_node(edit, "LoRWeBEncodeAnalogy"), 0]
    folder = newest_server.base / "models/lorweb_coefficients"
    folder.mkdir(exist_ok=True)
    shutil.copy(folder.with_name("lorweb") / "lorweb.safetensors", folder / "mistaken.safetensors")
    for node, *words in (
        (
            graphs.blend(encoded, encoded, coefficients_4=encoded),
            "coefficients_4 is connected without coefficients_3",
            "without a gap",
        ),
        (graphs.blend(encoded, encoded, method="mean", weight_2=-1.0), "sum to zero"),
        (graphs.encode_many(edit), "There is no example pair"),
        (graphs.encode_many(edit, images_a=["7", 0]), "images_a has 1 images and images_a_prime 0"),
        (graphs.encode_many(edit, folder="../.."), "leads out of the input folder"),
        (graphs.encode_many(edit, folder="nowhere"), "no folder 'nowhere'"),
        (graphs.encode_many(edit, folder="x" * 300), "looked up", "(300 characters)", "Use a short name"),
        (graphs.encode_many(edit, folder="a\0b"), "looked up", "'a\\x00b'", "Use a short name"),
        (graphs.load_coefficients("mistaken.safetensors"), "a LoRWeB basis", "Load LoRWeB Basis"),
    ):
        newest_server.refuse(graphs.with_coefficients(edit, ["x", 0], x=node), node["class_type"], *words)
    outside = graphs.save_coefficients(encoded, "../../escaped")
    newest_server.refuse({**edit, "x": outside}, outside["class_type"], "leads out of the output folder")


@pytest.mark.parametrize("prefix", PREFIXES_REFUSED, ids=lambda prefix: repr(prefix[:20]))
def test_a_prefix_that_cannot_be_used(server, save, prefix):
    (server.base / "output/blocked").write_text("a file where a folder should be")
    before, seen = sorted(server.base.rglob("*")), len(server.log)
    graph = graphs.change(save, "LoRWeBSaveMixedLoRA", filename_prefix=prefix)
    server.refuse(graph, "LoRWeBSaveMixedLoRA", "filename_prefix", "loras/lorweb")
    assert sorted(server.base.rglob("*")) == before
    log = server.log[seen:]
    assert "\nERROR forged" not in log and not any(steering in log for steering in ("\x1b[2J", "\x9b", "\u202e")), log


@pytest.mark.parametrize("prefix", PREFIXES_TAKEN, ids=lambda prefix: repr(prefix[:20]))
def test_an_unusual_prefix_stays_in_the_output_folder(server, save, prefix):
    outcome = server.succeed(graphs.change(save, "LoRWeBSaveMixedLoRA", filename_prefix=prefix))
    text = outcome.text(graphs.find_node(save, "LoRWeBSaveMixedLoRA"))
    assert list((server.base / "output").rglob(glob.escape(text.split(": ")[0]))), text


@pytest.fixture
def every_node(server):
    """Graphs in which every node of the pack occurs."""
    graph = {name: graphs.load_runnable(name, steps=1) for name in EVERY_NODE}
    saved = graph[graphs.SAVE_ANALOGY]
    server.succeed(saved)
    name = server.newest("lorweb_coefficients/analogy").name
    graph[graphs.REUSE_ANALOGY] = graphs.change(graph[graphs.REUSE_ANALOGY], "LoRWeBLoadCoefficients", file_name=name)
    encode_id = graphs.find_node(saved, "LoRWeBEncodeAnalogy")
    pair = {f"images_{side}": saved[encode_id]["inputs"][f"image_{side}"] for side in ("a", "a_prime")}
    graph["many"] = {**saved, encode_id: graphs.encode_many(saved, **pair)}
    server.succeed(graph["many"])
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
        graph["any"] = make_node("LoRWeBTestNameOnALink", text=choose.choice(TEXTS))
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
