"""Nodes that read a model's weights see mode weights, and stop after mode forward: an edit is never lost silently."""

import copy

import pytest
import torch

from tests.host import graphs
from tests.host.conftest import read_latent

MERGE = {"class_type": "ModelMergeSimple", "inputs": {"model1": ["bare", 0], "model2": ["edited", 0], "ratio": 0.5}}
MERGE_INTO = {
    "class_type": "ModelMergeSimple",
    "inputs": {"model1": ["edited", 0], "model2": ["bare", 0], "ratio": 0.5},
}
SUBTRACT = {
    "class_type": "ModelMergeSubtract",
    "inputs": {"model1": ["edited", 0], "model2": ["bare", 0], "multiplier": 1.0},
}
SAVE = {"class_type": "ModelSave", "inputs": {"model": ["edited", 0], "filename_prefix": "read/model"}}
EXTRACT = {
    "class_type": "LoraSave",
    "inputs": {
        "model_diff": ["reader", 0],
        "filename_prefix": "read/lora",
        "rank": 4,
        "lora_type": "standard",
        "bias_diff": False,
    },
}


@pytest.fixture
def edit():
    """The first workflow, ready to run, saving its latent."""
    return graphs.with_latent_saved(graphs.make_runnable(graphs.load_twin(graphs.EDIT)), "read")


def with_reader(edit, mode, *, sampled, **nodes):
    """Return the edit with nodes that name the loader `bare` and Apply `edited`; one is sampled, or nothing is."""
    graph = graphs.change(edit, "LoRWeBApplyMixedLoRA", mode=mode)
    names = {"bare": graphs.find_node(graph, "UNETLoader"), "edited": graphs.find_node(graph, "LoRWeBApplyMixedLoRA")}
    for name, node in copy.deepcopy(nodes).items():
        node["inputs"] = {
            key: [names.get(value[0], value[0]), value[1]] if isinstance(value, list) else value
            for key, value in node["inputs"].items()
        }
        graph[name] = node
    if sampled:
        graph[graphs.find_node(graph, "ModelSamplingFlux")]["inputs"]["model"] = ["reader", 0]
    else:
        del graph["latent"]
    return graph


@pytest.mark.parametrize("also_sampled_before", [False, True])
@pytest.mark.parametrize(
    ("stops", "nodes"),
    [
        ("ModelSave", {"reader": SAVE}),
        ("ModelMergeSimple", {"reader": MERGE, "save": {**SAVE, "inputs": {**SAVE["inputs"], "model": ["reader", 0]}}}),
        (
            "ModelMergeSimple",
            {"reader": MERGE_INTO, "save": {**SAVE, "inputs": {**SAVE["inputs"], "model": ["reader", 0]}}},
        ),
        ("LoraSave", {"reader": SUBTRACT, "extract": EXTRACT}),
    ],
    ids=["save", "merge", "merge into", "extract"],
)
def test_after_mode_forward_a_reader_stops_and_after_mode_weights_it_does_not(
    server, edit, stops, nodes, also_sampled_before
):
    if also_sampled_before:
        assert server.run(graphs.change(edit, "LoRWeBApplyMixedLoRA", mode="forward")).status == "success"
    before = set(server.base.glob("output/read/*"))
    outcome = server.run(with_reader(edit, "forward", sampled=False, **nodes))
    assert (outcome.status, outcome.node_type) == ("error", stops), outcome
    assert "mode weights" in outcome.error and "Save Mixed LoRA" in outcome.error, outcome.error
    assert set(server.base.glob("output/read/*")) == before
    outcome = server.run(with_reader(edit, "weights", sampled=False, **nodes))
    assert outcome.status == "success", outcome
    for path in set(server.base.glob("output/read/*")) - before:
        path.unlink()
    bare = read_latent(server, server.run(graphs.without_apply(edit)))
    server.forget()
    assert torch.equal(read_latent(server, server.run(graphs.without_apply(edit))), bare)


def test_lora_loaders_and_a_sum_of_models_go_on_after_mode_forward(server, edit):
    """What adds to the weights reads none: W + V + edit."""
    add = {"class_type": "ModelMergeAdd", "inputs": {"model1": ["edited", 0], "model2": ["bare", 0]}}
    forward, weights = (
        read_latent(server, server.run(with_reader(edit, mode, sampled=True, reader=add)))
        for mode in ("forward", "weights")
    )
    assert (forward - weights).abs().max() <= 1e-5 * weights.abs().max()
