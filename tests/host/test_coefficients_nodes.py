"""The coefficient nodes in a running ComfyUI: laws on latents, files, pictures, and messages."""

import base64
import copy
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lorweb_core.checkpoint import load_basis, save_basis
from lorweb_core.coefficients_file import load_coefficients, save_coefficients
from lorweb_core.images import read_image
from tests.host import graphs, models
from tests.host.conftest import read_latent

EDIT = "1_edit_by_analogy"
BASIS, ENCODE, APPLY = "4", "11", "12"


@pytest.fixture
def server(newest_server):
    """The newest host's server, for laws that do not depend on the host."""
    return newest_server


@pytest.fixture
def each_server(servers, host):
    """The server of each host."""
    return servers(host)


@pytest.fixture
def edit():
    """The first workflow, ready to run, saving its latent."""
    return graphs.with_latent_saved(graphs.make_runnable(graphs.load_twin(EDIT)), "edit")


def with_nodes(graph, source, **nodes):
    """Return a copy with more nodes, and the coefficients of Apply from `source`."""
    changed = {**copy.deepcopy(graph), **nodes}
    changed[APPLY]["inputs"]["coefficients"] = source
    return changed


def adjust(source, **changes):
    """Return an Adjust node that changes nothing but `changes`."""
    parts = ("modulation", "attention", "mlp", "context", "early", "middle", "late", "double", "single")
    neutral = {"temperature": 1.0, "top_k": 0, "renormalize": True, **dict.fromkeys(parts, 1.0)}
    return {"class_type": "LoRWeBAdjustCoefficients", "inputs": {"coefficients": source, **neutral, **changes}}


def blend(first, second, **changes):
    """Return a Blend node, by default half of each."""
    inputs = {"method": "interpolate", "position": 0.5, "weight_1": 1.0, "weight_2": 1.0, **changes}
    return {
        "class_type": "LoRWeBBlendCoefficients",
        "inputs": {"coefficients_1": first, "coefficients_2": second, **inputs},
    }


def reversed_analogy(graph):
    """Return an Encode node of the opposite edit: a' → a."""
    node = copy.deepcopy(graph[ENCODE])
    node["inputs"].update(image_a=node["inputs"]["image_a_prime"], image_a_prime=node["inputs"]["image_a"])
    return node


def save(source, **changes):
    """Return a Save Coefficients node."""
    inputs = {"coefficients": source, "filename_prefix": "lorweb_coefficients/kept", "note": "cup → comic", **changes}
    return {"class_type": "LoRWeBSaveCoefficients", "inputs": inputs}


def sample(server, graph):
    """Run a graph and return its latent."""
    return read_latent(server, server.run(graph))


def text_of(outcome, node_id):
    """Return what a node showed."""
    assert outcome.status == "success", outcome
    return "\n".join(outcome.outputs[node_id]["text"])


def test_neutral_nodes_in_between_change_no_bit(each_server, edit):
    plain = sample(each_server, edit)
    chain = {"b": blend([ENCODE, 0], [ENCODE, 0], position=0.3), "c": adjust(["b", 0], top_k=3)}
    assert torch.equal(sample(each_server, with_nodes(edit, ["c", 0], **chain)), plain)


def test_part_strengths_of_zero_are_the_bare_model_and_a_half_everywhere_is_strength_one_half(server, edit):
    bare = sample(server, graphs.without_apply(edit))
    off = with_nodes(edit, ["c", 0], c=adjust([ENCODE, 0], double=0.0, single=0.0))
    torch.testing.assert_close(sample(server, off), bare, atol=1e-5, rtol=1e-5)
    half = with_nodes(edit, ["c", 0], c=adjust([ENCODE, 0], double=0.5, single=0.5))
    weaker = graphs.change(edit, "LoRWeBApplyMixedLoRA", strength=0.5)
    torch.testing.assert_close(sample(server, half), sample(server, weaker), atol=1e-5, rtol=1e-4)


def test_a_blend_reaches_both_of_its_ends_and_lies_between(server, edit):
    nodes = {"r": reversed_analogy(edit)}
    latents = {}
    for position in (0.0, 0.5, 1.0):
        nodes["b"] = blend([ENCODE, 0], ["r", 0], position=position)
        latents[position] = sample(server, with_nodes(edit, ["b", 0], **nodes))
    assert torch.equal(latents[0.0], sample(server, edit))
    assert torch.equal(latents[1.0], sample(server, with_nodes(edit, ["r", 0], **nodes)))
    assert not torch.equal(latents[0.5], latents[0.0]) and not torch.equal(latents[0.5], latents[1.0])


def test_mixes_of_adjusted_coefficients_work_in_both_patch_modes(server, edit):
    latents = []
    for mode in ("weights", "forward"):
        graph = with_nodes(edit, ["c", 0], c=adjust([ENCODE, 0], temperature=0.5, mlp=-0.5, early=1.5))
        latents.append(sample(server, graphs.change(graph, "LoRWeBApplyMixedLoRA", mode=mode)))
    torch.testing.assert_close(latents[0], latents[1], atol=1e-5, rtol=1e-4)


def test_saved_coefficients_are_used_again_without_pictures_and_encoder(each_server, edit):
    plain = sample(each_server, edit)
    outcome = each_server.run({**edit, "s": save([ENCODE, 0], thumbnail=["9", 0])})
    assert "1 mix of lorweb.safetensors" in text_of(outcome, "s")
    path = sorted((each_server.base / "output" / "lorweb_coefficients").glob("kept_*.safetensors"))[-1]
    kept = load_coefficients(path)
    assert kept.note == "cup → comic" and max(kept.thumbnail.size) == 256 and path.stat().st_size < 100_000
    checked = load(path.name)
    checked["inputs"]["basis"] = [BASIS, 0]
    again = with_nodes(edit, ["l", 0], l=checked)
    del again[ENCODE], again["5"]
    assert torch.equal(sample(each_server, again), plain)
    shown = each_server.run({"l": load(path.name), "p": preview(["l", 0])})
    assert "Strongest adapters" in text_of(shown, "p")


def load(name):
    """Return a Load Coefficients node."""
    return {"class_type": "LoRWeBLoadCoefficients", "inputs": {"file_name": name}}


def listed(server):
    """Return the names that Load Coefficients offers."""
    return server.get("/object_info/LoRWeBLoadCoefficients")["LoRWeBLoadCoefficients"]["input"]["required"][
        "file_name"
    ][0]


def test_a_file_from_a_friend_never_takes_the_place_of_ones_own(each_server, edit):
    server = each_server
    prefix = "lorweb_coefficients/shared/clash"
    server.run({**edit, "s": save([ENCODE, 0], filename_prefix=prefix, note="my own")})
    server.run({**edit, "r": reversed_analogy(edit), "s": save(["r", 0], filename_prefix=prefix, note="my second")})
    own, second = sorted((server.base / "output" / "lorweb_coefficients" / "shared").glob("clash_*"))[-2:]
    name = f"shared/{own.name}"
    assert "my own" in text_of(server.run({"l": load(name), "p": preview(["l", 0])}), "l")
    friends = server.base / "models" / "lorweb_coefficients" / "shared" / own.name
    friends.parent.mkdir(parents=True, exist_ok=True)
    save_coefficients(
        friends, load_coefficients(second).coefficients, note="a friend's", thumbnail=torch.ones(1, 8, 8, 3)
    )
    assert {name, f"models/{name}"} <= set(listed(server))
    assert f"models/shared/{second.name}" not in listed(server)
    mine = server.run({"l": load(name), "p": preview(["l", 0])})
    assert "l" in mine.cached or "my own" in text_of(mine, "l")
    theirs = server.run({"l": load(f"models/{name}"), "p": preview(["l", 0])})
    text = text_of(theirs, "l")
    assert "a friend's" in text and f"From models/lorweb_coefficients/{name}" in text
    (picture,) = theirs.outputs["l"]["images"]
    assert Image.open(server.saved(picture)).size == (8, 8)
    own.touch()  # so that it is read again
    text = text_of(server.run({"l": load(name), "p": preview(["l", 0])}), "l")
    assert "my own" in text and f"From output/lorweb_coefficients/{name}" in text
    assert f"Another file of this name is listed as models/{name}." in text
    own.unlink()
    assert f"models/{name}" not in listed(server)
    text = text_of(server.run({"l": load(name), "p": preview(["l", 0])}), "l")
    assert "a friend's" in text and f"From models/lorweb_coefficients/{name}" in text


def preview(source, **inputs):
    """Return a Preview node."""
    return {"class_type": "LoRWeBPreviewCoefficients", "inputs": {"coefficients": source, **inputs}}


def test_a_preview_shows_an_image_numbers_and_text(each_server, edit):
    nodes = {"r": reversed_analogy(edit), "p": preview([ENCODE, 0]), "q": preview([ENCODE, 0], compare_with=["r", 0])}
    outcome = each_server.run({**edit, **nodes})
    assert "20 layers × 3 adapters" in text_of(outcome, "p")
    assert "Cosine per layer" in text_of(outcome, "q")
    for node_id in ("p", "q"):
        (picture,) = outcome.outputs[node_id]["images"]
        pixels = np.asarray(Image.open(each_server.saved(picture)))
        assert pixels.shape[1] > 300
        (data,) = outcome.outputs[node_id]["lorweb_heat_map"]
        assert len(data["layers"]) == 20 and data["basis_size"] == 3
        cells = np.frombuffer(base64.b64decode(data["cell_colors"]), np.uint8).reshape(20, 3, 3)
        assert len(np.unique(cells.reshape(-1, 3), axis=0)) > 4
        assert (pixels[44:668:32, 103:478:150] == cells).all(), "the browser gets the image's own colors"


def test_apply_shows_its_report(each_server, edit):
    fresh = graphs.change(edit, "LoRWeBApplyMixedLoRA", strength=0.9876)  # a cached node shows nothing again
    assert "Layers: 20 matched" in text_of(each_server.run(fresh), APPLY)


def many(graph, **inputs):
    """Return an Encode Many node with the graph's own picture b."""
    given = {name: graph[ENCODE]["inputs"][name] for name in ("basis", "clip_vision", "image_b")}
    return {"class_type": "LoRWeBEncodeAnalogies", "inputs": {**given, "folder": "", "average": "query", **inputs}}


def test_many_examples_of_one_pair_are_that_pair(server, edit):
    folder = server.base / "input" / "pairs" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    edit = copy.deepcopy(edit)
    for node_id, name in (("7", "x_a.png"), ("8", "x_a_prime.png")):  # not JPEG: decoders differ in the last bit
        given = edit[node_id]["inputs"]
        Image.open(server.base / "input" / given["image"]).save(folder / name)
        given["image"] = f"pairs/one/{name}"
    plain = sample(server, edit)
    for average in ("query", "coefficients"):
        for pair in ({"images_a": ["7", 0], "images_a_prime": ["8", 0]}, {"folder": "pairs/one"}):
            graph = with_nodes(edit, ["m", 0], m=many(edit, average=average, **pair))
            torch.testing.assert_close(sample(server, graph), plain, atol=1e-6, rtol=1e-5)


def test_a_folder_of_pairs_is_averaged_and_its_outlier_named(each_server, edit):
    folder = each_server.base / "input" / "pairs" / "comic"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(5):
        sides = ["lorweb_a_cup.jpg", "lorweb_a_prime_cup.jpg"]
        for side, source in zip(("a", "a_prime"), reversed(sides) if index == 3 else sides, strict=True):
            with Image.open(graphs.PICTURES / source) as picture:
                box = (index * 3, 0, picture.width - 12 + index * 3, picture.height)
                picture.crop(box).save(folder / f"{index}_{side}.png")
    outcome = each_server.run(with_nodes(edit, ["m", 0], m=many(edit, folder="pairs/comic", average="coefficients")))
    report = text_of(outcome, "m")
    assert "5 pairs" in report and " 3  <- outlier" in report and report.count("outlier") == 1


def test_a_folder_is_read_as_the_trainer_reads_it(server, edit):
    sources = [Image.open(graphs.PICTURES / f"lorweb_{name}_cup.jpg").resize((96, 96)) for name in ("a", "a_prime")]
    cut_out, gray = sources[0].copy(), sources[1].convert("L")
    cut_out.putalpha(Image.linear_gradient("L").resize((96, 96)))
    latents = []
    for name in ("stored", "read"):
        folder = server.base / "input" / "pairs" / name
        folder.mkdir(parents=True, exist_ok=True)
        before, after = folder / "x_a.png", folder / "x_a_prime.tif"
        cut_out.save(before)
        Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(after)
        if name == "read":
            for path in (before, after):
                read_image(path).save(path)
        graph = with_nodes(edit, ["m", 0], m=many(edit, folder=f"pairs/{name}"))
        latents.append(sample(server, graph))
    assert torch.equal(*latents)
    Image.new("1", (10_000, 9_000)).save(before)
    outcome = server.run(graph)
    assert (outcome.status, outcome.node_type) == ("error", "LoRWeBEncodeAnalogies"), outcome
    assert "too-large" in outcome.error and "10000 × 9000" in outcome.error


def failing(server, graph, node_type, *words):
    """Run a graph that must fail in a node with all words in its message."""
    outcome = server.run(graph)
    assert (outcome.status, outcome.node_type) == ("error", node_type), outcome
    assert ".lorweb_core." in outcome.error_type, outcome
    for word in words:
        assert word in outcome.error, outcome.error


def test_coefficients_of_another_basis_are_refused_on_apply_and_on_load(server, edit):
    width = models.width_for(server.host)
    other = server.base / "models" / "lorweb" / "other.safetensors"
    if not other.exists():
        basis = load_basis(server.base / "models" / "lorweb" / "lorweb.safetensors")
        save_basis(other, {**basis.layers}, basis.settings, training={"note": f"another one of width {width}"})
    server.run({**edit, "s": save([ENCODE, 0], filename_prefix="lorweb_coefficients/mine")})
    name = sorted((server.base / "output" / "lorweb_coefficients").glob("mine_*.safetensors"))[-1].name
    given = load(name)
    swapped = graphs.change(with_nodes(edit, ["l", 0], l=given), "LoRWeBLoadBasis", basis_name="other.safetensors")
    names = ("other.safetensors (id", "lorweb.safetensors (id")
    failing(server, swapped, "LoRWeBApplyMixedLoRA", *names)
    given["inputs"]["basis"] = [BASIS, 0]
    swapped = graphs.change(with_nodes(edit, ["l", 0], l=given), "LoRWeBLoadBasis", basis_name="other.safetensors")
    failing(server, swapped, "LoRWeBLoadCoefficients", *names)


def test_a_basis_file_is_no_coefficients_file(server, edit):
    folder = server.base / "models" / "lorweb_coefficients"
    shutil.copy(server.base / "models" / "lorweb" / "lorweb.safetensors", folder / "mistaken.safetensors")
    given = load("mistaken.safetensors")
    failing(
        server, with_nodes(edit, ["l", 0], l=given), "LoRWeBLoadCoefficients", "a LoRWeB basis", "Load LoRWeB Basis"
    )


def test_errors_in_the_graph_get_a_message_with_a_remedy(server, edit):
    pair = {"images_a": ["7", 0]}
    zero = blend([ENCODE, 0], [ENCODE, 0], method="mean", weight_1=1.0, weight_2=-1.0)
    gap = blend([ENCODE, 0], [ENCODE, 0], coefficients_4=[ENCODE, 0])
    cases = (
        (gap, "LoRWeBBlendCoefficients", ("coefficients_4 is connected without coefficients_3", "without a gap")),
        (many(edit, folder="x" * 300), "LoRWeBEncodeAnalogies", ("looked up", "(300 characters)", "Use a short name")),
        (many(edit, folder="a\0b"), "LoRWeBEncodeAnalogies", ("looked up", "'a\\x00b'", "Use a short name")),
        (zero, "LoRWeBBlendCoefficients", ("sum to zero",)),
        (many(edit), "LoRWeBEncodeAnalogies", ("There is no example pair",)),
        (many(edit, **pair), "LoRWeBEncodeAnalogies", ("images_a has 1 images and images_a_prime 0",)),
        (many(edit, folder="../.."), "LoRWeBEncodeAnalogies", ("leads out of the input folder",)),
        (many(edit, folder="nowhere"), "LoRWeBEncodeAnalogies", ("no folder 'nowhere'",)),
    )
    for node, node_type, words in cases:
        source = [ENCODE, 0] if node_type == "LoRWeBSaveCoefficients" else ["x", 0]
        failing(server, with_nodes(edit, source, x=node), node_type, *words)


def test_a_gap_in_the_sockets_does_not_matter_to_weights(server, edit):
    for method in ("mean", "sum"):
        nodes = {"r": reversed_analogy(edit)}
        weights = {"method": method, "weight_1": 0.5, "weight_2": 0.25}
        gap = blend([ENCODE, 0], ["r", 0], **weights, coefficients_4=[ENCODE, 0], weight_4=0.25)
        none = blend([ENCODE, 0], ["r", 0], **weights, coefficients_3=[ENCODE, 0], weight_3=0.25)
        latents = [sample(server, with_nodes(edit, ["b", 0], **nodes, b=node)) for node in (gap, none)]
        assert torch.equal(*latents)


def test_a_preview_of_layers_that_are_off_in_both_is_valid_json(server, edit):
    off = {"a": adjust([ENCODE, 0], double=0.0), "z": adjust([ENCODE, 0], double=0.0, single=0.0)}
    nodes = {**off, "p": preview(["a", 0], compare_with=["a", 0]), "q": preview(["z", 0], compare_with=["z", 0])}
    outcome = server.run({**edit, **nodes})
    assert "Off in both: " in text_of(outcome, "p") and "lowest 1.000" in text_of(outcome, "p")
    assert "so this mix changes nothing" in text_of(outcome, "q") and "Cosine" not in text_of(outcome, "q")
    for node_id in ("p", "q"):
        json.dumps(outcome.outputs[node_id], allow_nan=False)


def test_files_are_saved_below_the_output_folder_only(server, edit):
    graph = {**edit, "s": save([ENCODE, 0], filename_prefix="../../escaped")}
    failing(server, graph, "LoRWeBSaveCoefficients", "leads out of the output folder")
