"""The coefficient nodes in a running ComfyUI: laws on latents, files, images, and what they show."""

import base64
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lorweb_core import coefficients_file
from lorweb_core.images import read_image
from tests.host import graphs
from tests.host.graphs import adjust, blend, encode_many, load_coefficients, preview, save_coefficients

#: Ids in the first workflow.
BASIS, ENCODER, ENCODE, APPLY = "4", "5", "11", "12"
ENCODED, REVERSED = [ENCODE, 0], ["reversed", 0]


def sample_with(server, graph, source, **nodes):
    """Return the latent with more nodes, and the coefficients of Apply from `source`."""
    return server.sample(graphs.with_coefficients(graph, source, **nodes))


def test_neutral_nodes_in_between_change_no_bit(server, edit):
    chain = {"b": blend(ENCODED, ENCODED, position=0.3), "c": adjust(["b", 0], top_k=3)}
    assert torch.equal(sample_with(server, edit, ["c", 0], **chain), server.sample(edit))


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_strength_of_all_parts_is_the_strength_of_apply(newest_server, edit, strength):
    parts = sample_with(newest_server, edit, ["c", 0], c=adjust(ENCODED, double=strength, single=strength))
    whole = newest_server.sample(graphs.change(edit, "LoRWeBApplyMixedLoRA", strength=strength))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5 if strength == 0 else 1e-4)


def test_a_blend_reaches_both_of_its_ends_and_lies_between(newest_server, edit):
    graph = graphs.with_reversed(edit)
    first, between, second = (
        sample_with(newest_server, graph, ["b", 0], b=blend(ENCODED, REVERSED, position=position))
        for position in (0.0, 0.5, 1.0)
    )
    assert torch.equal(first, newest_server.sample(edit))
    assert torch.equal(second, sample_with(newest_server, graph, REVERSED))
    assert not torch.equal(between, first) and not torch.equal(between, second)


@pytest.mark.parametrize("method", ["mean", "sum"])
def test_a_gap_in_the_sockets_does_not_matter_to_weights(newest_server, edit, method):
    weights = {"method": method, "weight_1": 0.5, "weight_2": 0.25}
    gap = blend(ENCODED, REVERSED, **weights, coefficients_4=ENCODED, weight_4=0.25)
    none = blend(ENCODED, REVERSED, **weights, coefficients_3=ENCODED, weight_3=0.25)
    graph = graphs.with_reversed(edit)
    assert torch.equal(*(sample_with(newest_server, graph, ["b", 0], b=node) for node in (gap, none)))


def test_saved_coefficients_are_used_again_without_images_and_encoder(server, edit):
    plain = server.sample(edit)
    save = save_coefficients(ENCODED, "kept", note="cup → comic", thumbnail=["9", 0])
    assert "1 mix of lorweb.safetensors" in server.succeed({**edit, "s": save}).text("s")
    path = server.newest("lorweb_coefficients/kept")
    kept = coefficients_file.load_coefficients(path)
    assert kept.note == "cup → comic" and max(kept.thumbnail.size) == 256 and path.stat().st_size < 100_000
    again = graphs.with_coefficients(edit, ["l", 0], l=load_coefficients(path.name, basis=[BASIS, 0]))
    del again[ENCODE], again[ENCODER]
    assert torch.equal(server.sample(again), plain)
    shown = server.succeed({"l": load_coefficients(path.name), "p": preview(["l", 0])})
    assert "Strongest adapters" in shown.text("p")


def test_a_file_from_a_friend_never_replaces_ones_own(server, edit):
    def listed():
        info = server.get("/object_info/LoRWeBLoadCoefficients")["LoRWeBLoadCoefficients"]
        return info["input"]["required"]["file_name"][0]

    def shown(file_name):
        return server.succeed({"l": load_coefficients(file_name), "p": preview(["l", 0])})

    for source, note in ((ENCODED, "my own"), (REVERSED, "my second")):
        server.succeed({**graphs.with_reversed(edit), "s": save_coefficients(source, "shared/clash", note=note)})
    own, second = sorted((server.base / "output" / "lorweb_coefficients" / "shared").glob("clash_*"))[-2:]
    name = f"shared/{own.name}"
    assert "my own" in shown(name).text("l")
    friends = server.base / "models" / "lorweb_coefficients" / "shared" / own.name
    friends.parent.mkdir(parents=True, exist_ok=True)
    theirs = coefficients_file.load_coefficients(second).coefficients
    coefficients_file.save_coefficients(friends, theirs, note="a friend's", thumbnail=torch.ones(1, 8, 8, 3))
    assert {name, f"models/{name}"} <= set(listed())
    assert f"models/shared/{second.name}" not in listed()
    outcome = shown(name)
    assert "l" in outcome.cached or "my own" in outcome.text("l")
    outcome = shown(f"models/{name}")
    assert "a friend's" in outcome.text("l") and f"From models/lorweb_coefficients/{name}" in outcome.text("l")
    (image,) = outcome.outputs["l"]["images"]
    assert Image.open(server.saved(image)).size == (8, 8)
    own.touch()  # so that it is read again
    text = shown(name).text("l")
    assert "my own" in text and f"From output/lorweb_coefficients/{name}" in text
    assert f"Another file of this name is listed as models/{name}." in text
    own.unlink()
    assert f"models/{name}" not in listed()
    text = shown(name).text("l")
    assert "a friend's" in text and f"From models/lorweb_coefficients/{name}" in text


def test_a_preview_shows_an_image_numbers_and_text(server, edit):
    graph = graphs.with_reversed(edit)
    outcome = server.succeed({**graph, "p": preview(ENCODED), "q": preview(ENCODED, compare_with=REVERSED)})
    assert "20 layers × 3 adapters" in outcome.text("p")
    assert "Cosine per layer" in outcome.text("q")
    for node_id in ("p", "q"):
        (image,) = outcome.outputs[node_id]["images"]
        pixels = np.asarray(Image.open(server.saved(image)))
        (data,) = outcome.outputs[node_id]["lorweb_heat_map"]
        assert len(data["layers"]) == 20 and data["basis_size"] == 3
        cells = np.frombuffer(base64.b64decode(data["cell_colors"]), np.uint8).reshape(20, 3, 3)
        assert len(np.unique(cells.reshape(-1, 3), axis=0)) > 4
        assert (pixels[44:668:32, 103:478:150] == cells).all(), "the browser gets the image's own colors"


def test_a_preview_of_layers_that_are_off_in_both_is_valid_json(newest_server, edit):
    off = {"a": adjust(ENCODED, double=0.0), "z": adjust(ENCODED, double=0.0, single=0.0)}
    nodes = {**off, "p": preview(["a", 0], compare_with=["a", 0]), "q": preview(["z", 0], compare_with=["z", 0])}
    outcome = newest_server.succeed({**edit, **nodes})
    assert "Off in both: " in outcome.text("p") and "lowest 1.000" in outcome.text("p")
    assert "so this mix changes nothing" in outcome.text("q") and "Cosine" not in outcome.text("q")
    json.dumps(outcome.outputs, allow_nan=False)


def test_many_examples_of_one_pair_are_that_pair(newest_server, edit):
    folder = newest_server.base / "input" / "pairs" / "one"
    folder.mkdir(parents=True, exist_ok=True)
    for node_id, name in (("7", "x_a.png"), ("8", "x_a_prime.png")):  # not JPEG: decoders differ in the last bit
        given = edit[node_id]["inputs"]
        Image.open(newest_server.base / "input" / given["image"]).save(folder / name)
        given["image"] = f"pairs/one/{name}"
    plain = newest_server.sample(edit)
    for average in ("query", "coefficients"):
        for pair in ({"images_a": ["7", 0], "images_a_prime": ["8", 0]}, {"folder": "pairs/one"}):
            many = sample_with(newest_server, edit, ["m", 0], m=encode_many(edit, average=average, **pair))
            torch.testing.assert_close(many, plain, atol=1e-6, rtol=1e-5)


def test_a_folder_of_pairs_is_averaged_and_its_outlier_named(server, edit):
    folder = server.base / "input" / "pairs" / "comic"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(5):
        sides = ["lorweb_a_cup.jpg", "lorweb_a_prime_cup.jpg"]
        for side, source in zip(("a", "a_prime"), reversed(sides) if index == 3 else sides, strict=True):
            with Image.open(graphs.IMAGES / source) as image:
                box = (index * 3, 0, image.width - 12 + index * 3, image.height)
                image.crop(box).save(folder / f"{index}_{side}.png")
    many = encode_many(edit, folder="pairs/comic", average="coefficients")
    report = server.succeed(graphs.with_coefficients(edit, ["m", 0], m=many)).text("m")
    assert "5 pairs" in report and " 3  <- outlier" in report and report.count("outlier") == 1


def test_a_folder_is_read_as_the_trainer_reads_it(newest_server, edit):
    sources = [Image.open(graphs.IMAGES / f"lorweb_{name}_cup.jpg").resize((96, 96)) for name in ("a", "a_prime")]
    cut_out, gray = sources[0].copy(), sources[1].convert("L")
    cut_out.putalpha(Image.linear_gradient("L").resize((96, 96)))
    latents = []
    for name in ("stored", "read"):
        folder = newest_server.base / "input" / "pairs" / name
        folder.mkdir(parents=True, exist_ok=True)
        before, after = folder / "x_a.png", folder / "x_a_prime.tif"
        cut_out.save(before)
        Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(after)
        if name == "read":
            for path in (before, after):
                read_image(path).save(path)
        graph = graphs.with_coefficients(edit, ["m", 0], m=encode_many(edit, folder=f"pairs/{name}"))
        latents.append(newest_server.sample(graph))
    assert torch.equal(*latents)
    Image.new("1", (10_000, 9_000)).save(before)
    newest_server.refuse(graph, "LoRWeBEncodeAnalogies", "too-large", "10000 × 9000")
