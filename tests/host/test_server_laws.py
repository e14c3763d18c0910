"""Laws of the nodes in a running ComfyUI, on latents: what must be equal, and what must not."""

import shutil

import pytest
import torch
from PIL import Image

from tests.host import graphs, models
from tests.host.conftest import read_latent

EDIT, BATCH, SAVE, USE = graphs.EDIT, graphs.BATCH, graphs.SAVE_LORA, graphs.USE_LORA


@pytest.fixture
def edit():
    """The first workflow, ready to run, saving its latent."""
    return graphs.with_latent_saved(graphs.make_runnable(graphs.load_twin(EDIT)), "edit")


def sample(server, graph):
    """Run a graph and return its latent."""
    return read_latent(server, server.run(graph))


def apply_with(graph, **inputs):
    """Return a copy with other inputs of Apply."""
    return graphs.change(graph, "LoRWeBApplyMixedLoRA", **inputs)


def assert_close(first, second, tolerance):
    """Compare relative to the size of the latents."""
    difference = (first - second).abs().max() / second.abs().max()
    assert difference <= tolerance, float(difference)


def test_both_modes_agree_and_change_what_the_bare_model_gives(server, edit):
    bare = sample(server, graphs.without_apply(edit))
    weights = sample(server, apply_with(edit, mode="weights"))
    forward = sample(server, apply_with(edit, mode="forward"))
    assert (weights - bare).abs().max() > 0.1 * bare.abs().max()
    assert_close(forward, weights, 3e-6)
    assert torch.equal(sample(server, graphs.without_apply(edit)), bare)


def test_strength_zero_is_bit_identical_to_no_node(server, edit):
    bare = sample(server, graphs.without_apply(edit))
    for mode in ("forward", "forward"):
        assert torch.equal(sample(server, apply_with(edit, strength=0.0, mode=mode)), bare)


def test_an_exported_file_in_the_stock_loader_equals_apply(server, edit):
    save = graphs.make_runnable(graphs.load_twin(SAVE))
    save = graphs.change(save, "LoRWeBSaveMixedLoRA", dtype="fp32", filename_prefix="loras/exact", strength=0.8)
    written = server.run(save)
    assert written.status == "success", written
    path = sorted((server.base / "output" / "loras").glob("exact_*.safetensors"))[-1]
    shutil.copy(path, server.base / "models" / "loras" / "exact.safetensors")
    use = graphs.with_latent_saved(graphs.make_runnable(graphs.load_twin(USE)), "use")
    used = sample(server, graphs.change(use, "LoraLoaderModelOnly", lora_name="exact.safetensors"))
    assert_close(used, sample(server, apply_with(edit, strength=0.8, mode="weights")), 3e-6)


def test_a_batch_gives_each_picture_what_it_gets_alone(server, edit):
    batch = graphs.with_latent_saved(graphs.make_runnable(graphs.load_twin(BATCH)), "batch")
    together = sample(server, batch)
    alone = sample(server, apply_with(edit, mode="forward"))
    assert together.shape[0] == 2
    assert_close(together[:1], alone, 1e-4)  # the sampler draws the same noise for the first picture of a batch


def test_the_crop_gives_b_back_when_nothing_is_sampled(server):
    twin = graphs.make_runnable(graphs.load_twin(EDIT), megapixels=0.25)
    graph = graphs.change(twin, "VAEDecode", samples=[graphs.find_node(twin, "VAEEncode"), 0])
    outcome = server.run(graph)
    assert outcome.status == "success", outcome
    (saved,) = [output["images"][0] for output in outcome.outputs.values() if "images" in output]
    result, cat = Image.open(server.saved(saved)), Image.open(graphs.PICTURES / "lorweb_b_cat.jpg")
    assert result.size == cat.size
    result, cat = (
        torch.tensor(list(picture.convert("RGB").resize((18, 12), Image.Resampling.BOX).tobytes())).float()
        for picture in (result, cat)
    )
    assert (result - cat).abs().mean() < 3, "not b, or not where b is"


def test_a_basis_that_was_replaced_is_loaded_again_and_nothing_else_is(server, edit):
    target = server.base / "models" / "lorweb" / "replaced.safetensors"
    width = models.width_for(server.host)
    models.write_basis(target, width, seed=1)
    graph = graphs.change(edit, "LoRWeBLoadBasis", basis_name=target.name)
    before = sample(server, graph)
    models.write_basis(target, width, seed=2)
    outcome = server.run(graph)
    assert (read_latent(server, outcome) - before).abs().max() > 1e-3
    assert graphs.find_node(graph, "UNETLoader") in outcome.cached
    assert graphs.find_node(graph, "LoRWeBLoadBasis") not in outcome.cached


def with_linked_names(graph):
    """Return a copy whose loaders get their names from other nodes."""
    changed = graphs.change(graph, "LoRWeBLoadBasis")
    for class_type, name in (("LoRWeBLoadBasis", "basis_name"), ("LoRWeBLoadImageEncoder", "encoder_name")):
        inputs = changed[graphs.find_node(changed, class_type)]["inputs"]
        changed[name] = {"class_type": "LoRWeBTestNameOnALink", "inputs": {"text": inputs[name]}}
        inputs[name] = [name, 0]
    return changed


def test_a_name_on_a_link_loads_again_only_when_a_file_changes(server):
    target = server.base / "models" / "lorweb" / "linked.safetensors"
    width = models.width_for(server.host)
    models.write_basis(target, width, seed=1)
    save = graphs.make_runnable(graphs.load_twin(SAVE))
    graph = with_linked_names(graphs.change(save, "LoRWeBLoadBasis", basis_name=target.name))
    seen = len(server.log)
    assert server.run(graph).status == "success"
    again = server.run(graph)
    assert again.status == "success" and again.cached == set(graph), again
    models.write_basis(target, width, seed=2)
    outcome = server.run(graph)
    assert graphs.find_node(graph, "LoRWeBLoadBasis") not in outcome.cached
    assert graphs.find_node(graph, "LoRWeBLoadImageEncoder") in outcome.cached
    assert "WARNING" not in server.log[seen:], server.log[seen:]


def test_coefficients_named_over_a_link_are_not_read_again(server):
    save = graphs.make_runnable(graphs.load_twin(graphs.SAVE_ANALOGY))
    saved = server.run(save)
    assert saved.status == "success", saved
    path = sorted((server.base / "output" / "lorweb_coefficients").glob("*.safetensors"))[-1]
    graph = {
        "name": {"class_type": "LoRWeBTestNameOnALink", "inputs": {"text": path.name}},
        "load": {"class_type": "LoRWeBLoadCoefficients", "inputs": {"file_name": ["name", 0]}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["load", 2]}},
    }
    seen = len(server.log)
    assert server.run(graph).status == "success"
    again = server.run(graph)
    assert again.cached == set(graph), again
    assert "WARNING" not in server.log[seen:], server.log[seen:]


def test_a_new_strength_runs_only_what_comes_after_apply(server, edit):
    sample(server, apply_with(edit, strength=0.9))
    outcome = server.run(apply_with(edit, strength=0.7))
    assert graphs.find_node(edit, "LoRWeBEncodeAnalogy") in outcome.cached
    assert graphs.find_node(edit, "LoRWeBApplyMixedLoRA") not in outcome.cached
