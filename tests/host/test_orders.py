"""What one prompt leaves on the shared model changes no later prompt: every order of graphs on one server."""

import copy
import shutil

import pytest
import torch

from tests.host import graphs
from tests.host.conftest import read_latent

LORA = "orders.safetensors"
BYPASS = "LoraLoaderBypassModelOnly"
#: Graph → what stands between the loader and the sampler, in this order.
CHAINS = {
    "bare": [],
    "bypass": ["bypass"],
    "forward": ["forward"],
    "weights": ["weights"],
    "bypass, forward": ["bypass", "forward"],
    "forward, bypass": ["forward", "bypass"],
}


@pytest.fixture
def base(server):
    """The bare graph, and the LoRA file of the host's loaders, which misses the layers that the host fuses."""
    save = graphs.change(
        graphs.make_runnable(graphs.load_twin(graphs.SAVE_LORA)), "LoRWeBSaveMixedLoRA", filename_prefix="loras/orders"
    )
    assert server.run(save).status == "success"
    path = sorted((server.base / "output" / "loras").glob("orders_*.safetensors"))[-1]
    shutil.copy(path, server.base / "models" / "loras" / LORA)
    return graphs.with_latent_saved(graphs.make_runnable(graphs.load_twin(graphs.EDIT)), "orders")


def chain(base, links, *, run=0, new="model"):
    """Return a graph with the links of a chain, in which everything after a new model, or a new latent, runs again."""
    graph = copy.deepcopy(base)
    apply_id = graphs.find_node(graph, "LoRWeBApplyMixedLoRA")
    apply = graph.pop(apply_id)["inputs"]
    after = graph[graphs.find_node(graph, "ModelSamplingFlux")]["inputs"]
    sampler = graph[graphs.find_node(graph, "KSampler")]["inputs"]
    owner, name = (apply, "model") if new == "model" else (sampler, "latent_image")
    graph["again"] = {"class_type": "LoRWeBTestPassAgain", "inputs": {"value": owner[name], "run": run}}
    owner[name] = ["again", 0]
    last = apply["model"]
    for number, link in enumerate(links):
        if link == "bypass":
            node = {"class_type": BYPASS, "inputs": {"model": last, "lora_name": LORA, "strength_model": 0.7}}
        else:
            node = {"class_type": "LoRWeBApplyMixedLoRA", "inputs": {**apply, "model": last, "mode": link}}
        graph[f"link{number}"], last = node, [f"link{number}", 0]
    after["model"] = last
    return {i: node for i, node in graph.items() if [apply_id, 1] not in node["inputs"].values()}


def every_order(names, length):
    """Return a sequence in which each order of `length` names stands once, one after another (de Bruijn)."""
    walk = [names[0]] * length
    seen = {tuple(walk)}
    while new := [name for name in reversed(names) if (*walk[1 - length :], name) not in seen]:
        walk.append(new[0])
        seen.add(tuple(walk[-length:]))
    assert len(seen) == len(names) ** length
    return walk


def difference(first, second):
    return float((first - second).abs().max() / second.abs().max())


@pytest.mark.parametrize("new", ["model", "latent"])
@pytest.mark.parametrize("length", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_graph_gives_the_same_whatever_ran_before(server, base, length, new):
    has_bypass = "error" not in server.get(f"/object_info/{BYPASS}") and server.get(f"/object_info/{BYPASS}") != {}
    names = [name for name in CHAINS if has_bypass or "bypass" not in name]
    fresh = {}
    for name in names:
        server.forget()
        fresh[name] = read_latent(server, server.run(chain(base, CHAINS[name], run=-1)))
    assert difference(fresh["forward"], fresh["bare"]) > 0.1
    assert difference(fresh["forward"], fresh["weights"]) <= 3e-6
    if has_bypass:
        both = read_latent(server, server.run(chain(base, ["weights", "bypass"])))
        assert difference(both, fresh["weights"]) > 0.03
        for name in ("bypass, forward", "forward, bypass"):
            assert difference(fresh[name], both) <= 3e-6
    walk, wrong = every_order(names, length), {}
    for run, name in enumerate(walk):
        outcome = server.run(chain(base, CHAINS[name], run=run, new=new))
        if outcome.status != "success" or not torch.equal(read_latent(server, outcome), fresh[name]):
            wrong[" → ".join(walk[max(0, run + 1 - length) : run + 1])] = outcome.error or "another result"
    assert not wrong, wrong


def test_prompts_that_fail_or_are_interrupted_leave_nothing_behind(server, base):
    """FluxKVCache cannot sample this graph, with or without Apply; a lost bank would be named in the log ever after."""
    edit = chain(base, ["forward"])
    expected = read_latent(server, server.run(edit))
    if "FluxKVCache" in server.get("/object_info"):
        cached = copy.deepcopy(edit)
        after = cached[graphs.find_node(cached, "ModelSamplingFlux")]["inputs"]
        cached["cache"] = {"class_type": "FluxKVCache", "inputs": {"model": after["model"]}}
        after["model"] = ["cache", 0]
        for run in range(2):
            assert server.run(graphs.change(cached, "LoRWeBTestPassAgain", run=run)).status == "error"
    prompt_id = server.submit(graphs.change(edit, "KSampler", steps=10_000))
    server.wait_until_sampling(prompt_id)
    server.interrupt()
    assert server.wait(prompt_id, timeout_seconds=60).status == "interrupted"
    for run in range(2):
        again = server.run(graphs.change(edit, "LoRWeBTestPassAgain", run=run))
        assert torch.equal(read_latent(server, again), expected)
        bare = read_latent(server, server.run(chain(base, [], run=run)))
        assert difference(bare, expected) > 0.1
    assert "memory leak with model" not in server.log
    assert "Requested to load LoRWeBAdapters" in server.log
