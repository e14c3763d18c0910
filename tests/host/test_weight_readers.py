"""Nodes that read a model's weights see mode weights, and stop after mode forward: an edit is never lost silently."""

import pytest
import torch

from tests.host import graphs, models
from tests.host.graphs import make_node


def merge(first, second):
    return make_node("ModelMergeSimple", model1=[first, 0], model2=[second, 0], ratio=0.5)


def save(model):
    return make_node("ModelSave", model=[model, 0], filename_prefix="read/model")


#: Name → the node that stops after mode forward, and all nodes behind Apply.
READERS = {
    "save": ("ModelSave", {"reader": save("edited")}),
    "merge": ("ModelMergeSimple", {"reader": merge("bare", "edited"), "save": save("reader")}),
    "merge into": ("ModelMergeSimple", {"reader": merge("edited", "bare"), "save": save("reader")}),
    "extract": (
        "LoraSave",
        {
            "reader": make_node("ModelMergeSubtract", model1=["edited", 0], model2=["bare", 0], multiplier=1.0),
            "extract": make_node(
                "LoraSave",
                model_diff=["reader", 0],
                filename_prefix="read/lora",
                rank=4,
                lora_type="standard",
                bias_diff=False,
            ),
        },
    ),
}


def with_reader(edit, mode, *, sampled, **nodes):
    """Return the edit with nodes that name the loader `bare` and Apply `edited`; one is sampled, or nothing is."""
    graph = graphs.change(edit, "LoRWeBApplyMixedLoRA", mode=mode)
    names = {"bare": graphs.find_node(graph, "UNETLoader"), "edited": graphs.find_node(graph, "LoRWeBApplyMixedLoRA")}
    for name, node in nodes.items():
        inputs = {
            key: [names.get(value[0], value[0]), value[1]] if isinstance(value, list) else value
            for key, value in node["inputs"].items()
        }
        graph[name] = make_node(node["class_type"], **inputs)
    if sampled:
        return graphs.change(graph, "ModelSamplingFlux", model=["reader", 0])
    del graph["latent"]
    return graph


@pytest.mark.parametrize("also_sampled_before", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_after_mode_forward_a_reader_stops_and_after_mode_weights_it_does_not(
    server, edit, reader, also_sampled_before
):
    stops, nodes = READERS[reader]
    if also_sampled_before:
        server.succeed(graphs.change(edit, "LoRWeBApplyMixedLoRA", mode="forward"))
    before = set(server.base.glob("output/read/*"))
    graph = with_reader(edit, "forward", sampled=False, **nodes)
    server.refuse(graph, stops, "mode weights", "Save Mixed LoRA")
    assert set(server.base.glob("output/read/*")) == before
    if stops == "LoraSave" and models.width_for(server.host) == models.PUBLISHED_WIDTH:
        return  # 13 minutes of SVD at FLUX's own width
    server.succeed(with_reader(edit, "weights", sampled=False, **nodes))
    for path in set(server.base.glob("output/read/*")) - before:
        path.unlink()
    bare = server.sample(graphs.without_apply(edit))
    server.forget()
    assert torch.equal(server.sample(graphs.without_apply(edit)), bare)


def test_lora_loaders_and_a_sum_of_models_go_on_after_mode_forward(server, edit):
    """What adds to the weights reads none: W + V + edit."""
    add = make_node("ModelMergeAdd", model1=["edited", 0], model2=["bare", 0])
    forward, weights = (
        server.sample(with_reader(edit, mode, sampled=True, reader=add)) for mode in ("forward", "weights")
    )
    assert (forward - weights).abs().max() <= 1e-5 * weights.abs().max()
