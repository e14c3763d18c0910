"""Laws of the nodes in a running ComfyUI, on latents: what must be equal, what must not, and what runs again."""

import shutil

import pytest
import torch
from PIL import Image

from tests.host import graphs, models
from tests.host.graphs import make_node


def apply_with(graph, **inputs):
    """Return a copy with other inputs of Apply."""
    return graphs.change(graph, "LoRWeBApplyMixedLoRA", **inputs)


def assert_close(first, second, tolerance):
    """Compare relative to the size of the latents."""
    difference = (first - second).abs().max() / second.abs().max()
    assert difference <= tolerance, float(difference)


def test_an_exported_file_in_the_stock_loader_equals_apply(server, edit):
    exact = {"dtype": "fp32", "filename_prefix": "loras/exact", "strength": 0.8}
    server.succeed(graphs.change(graphs.load_runnable(graphs.SAVE_LORA), "LoRWeBSaveMixedLoRA", **exact))
    shutil.copy(server.newest("loras/exact"), server.base / "models" / "loras" / "exact.safetensors")
    use = graphs.with_latent_saved(graphs.load_runnable(graphs.USE_LORA))
    used = server.sample(graphs.change(use, "LoraLoaderModelOnly", lora_name="exact.safetensors"))
    assert_close(used, server.sample(apply_with(edit, strength=0.8, mode="weights")), 3e-6)


def test_a_batch_gives_each_image_what_it_gets_alone(server, edit):
    together = server.sample(graphs.with_latent_saved(graphs.load_runnable(graphs.BATCH)))
    assert together.shape[0] == 2
    # the sampler uses the same noise for the first image of a batch
    assert_close(together[:1], server.sample(apply_with(edit, mode="forward")), 1e-4)


def test_the_crop_gives_b_back_when_nothing_is_sampled(server):
    graph = graphs.load_runnable(graphs.EDIT, megapixels=0.25)
    graph = graphs.change(graph, "VAEDecode", samples=[graphs.find_node(graph, "VAEEncode"), 0])
    (result,) = server.images(server.succeed(graph))
    cat = Image.open(graphs.IMAGES / "lorweb_b_cat.jpg").convert("RGB")
    assert result.size == cat.size
    small = [image.resize((18, 12), Image.Resampling.BOX).tobytes() for image in (result, cat)]
    result, cat = (torch.tensor(list(pixels)).float() for pixels in small)
    assert (result - cat).abs().mean() < 3, "not b, or not where b is"


def test_a_new_strength_runs_only_what_comes_after_apply(server, edit):
    server.sample(apply_with(edit, strength=0.9))
    outcome = server.run(apply_with(edit, strength=0.7))
    assert graphs.find_node(edit, "LoRWeBEncodeAnalogy") in outcome.cached
    assert graphs.find_node(edit, "LoRWeBApplyMixedLoRA") not in outcome.cached


def name_on_a_link(text):
    """Return a node that gives a name to a widget that was made an input."""
    return make_node("LoRWeBTestNameOnALink", text=text)


@pytest.mark.parametrize("is_linked", [False, True], ids=["by widget", "on a link"])
def test_a_basis_that_was_replaced_is_loaded_again_and_nothing_else_is(server, edit, is_linked):
    target = server.base / "models" / "lorweb" / f"replaced_{is_linked}.safetensors"
    width = models.width_for(server.host)
    models.write_basis(target, width, seed=1)
    graph = graphs.change(edit, "LoRWeBLoadBasis", basis_name=target.name)
    if is_linked:
        graph = graphs.change(graph, "LoRWeBLoadBasis", basis_name=["basis name", 0])
        graph = graphs.change(graph, "LoRWeBLoadImageEncoder", encoder_name=["encoder name", 0])
        graph["basis name"], graph["encoder name"] = map(name_on_a_link, (target.name, graphs.TINY_ENCODER))
    seen = len(server.log)
    before = server.sample(graph)
    assert "latent" in server.succeed(graph).cached
    models.write_basis(target, width, seed=2)
    outcome = server.run(graph)
    assert (server.latent(outcome) - before).abs().max() > 1e-3
    assert graphs.find_node(graph, "LoRWeBLoadBasis") not in outcome.cached
    assert {graphs.find_node(graph, name) for name in ("UNETLoader", "LoRWeBLoadImageEncoder")} <= outcome.cached
    assert "WARNING" not in server.log[seen:], server.log[seen:]


def test_coefficients_named_over_a_link_are_not_read_again(server):
    server.succeed(graphs.load_runnable(graphs.SAVE_ANALOGY))
    graph = {
        "name": name_on_a_link(server.newest("lorweb_coefficients/*").name),
        "load": graphs.load_coefficients(["name", 0]),
        "show": make_node("PreviewImage", images=["load", 2]),
    }
    seen = len(server.log)
    server.succeed(graph)
    assert server.run(graph).cached == set(graph)
    assert "WARNING" not in server.log[seen:], server.log[seen:]
