"""What one prompt leaves on the shared model changes no later prompt: every order of graphs on one server."""

import copy
import shutil
import time

import pytest
import torch

from tests.host import graphs
from tests.host.graphs import make_node

LORA = "orders.safetensors"
CLASSES = {"bypass": "LoraLoaderBypassModelOnly", "cache": "FluxKVCache"}
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
def base(server, edit):
    """The bare graph, and the LoRA file of the host's loaders, which misses the layers that the host fuses."""
    save = graphs.load_runnable(graphs.SAVE_LORA)
    server.succeed(graphs.change(save, "LoRWeBSaveMixedLoRA", filename_prefix="loras/orders"))
    shutil.copy(server.newest("loras/orders"), server.base / "models" / "loras" / LORA)
    return edit


def chain(base, links, *, run=0, rerun="all"):
    """Return a graph with the links of a chain. Another `run` has all links or the sampler alone run again.

    What then differs is below the last bit. There is no node before the links that runs again, since the host uses the
    time after each node to clear away what the prompts before have left.
    """
    graph, tiny = copy.deepcopy(base), run * 1e-12
    apply_id = graphs.find_node(graph, "LoRWeBApplyMixedLoRA")
    apply = graph.pop(apply_id)["inputs"]
    graph = {i: node for i, node in graph.items() if [apply_id, 1] not in node["inputs"].values()}
    graph[graphs.find_node(graph, "KSampler")]["inputs"]["denoise"] = 1.0 - tiny
    changed = tiny if rerun == "all" else 0.0
    last = apply["model"]
    for number, link in enumerate(links):
        inputs = {**apply, "mode": link, "strength": 1.0 + changed}
        if link == "bypass":
            inputs = {"lora_name": LORA, "strength_model": 0.7 + changed}
        graph[f"link{number}"] = make_node(CLASSES.get(link, "LoRWeBApplyMixedLoRA"), **{**inputs, "model": last})
        last = [f"link{number}", 0]
    graph[graphs.find_node(graph, "ModelSamplingFlux")]["inputs"]["model"] = last
    return graph


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


@pytest.mark.timeout(2400)  # the oldest host samples a model of 2 GB, since it fixes FLUX's width
@pytest.mark.parametrize("rerun", ["all", "sampler"])
@pytest.mark.parametrize("length", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_graph_gives_the_same_whatever_ran_before(server, base, length, rerun):
    has_bypass = CLASSES["bypass"] in server.get("/object_info")
    names = [name for name in CHAINS if has_bypass or "bypass" not in name]
    fresh = {}
    for name in names:
        server.forget()
        fresh[name] = server.sample(chain(base, CHAINS[name]))
    assert difference(fresh["forward"], fresh["bare"]) > 0.1
    assert difference(fresh["forward"], fresh["weights"]) <= 3e-6
    if has_bypass:
        both = server.sample(chain(base, ["weights", "bypass"]))
        assert difference(both, fresh["weights"]) > 0.03
        for name in ("bypass, forward", "forward, bypass"):
            assert difference(fresh[name], both) <= 3e-6
    walk, wrong = every_order(names, length), {}
    for run, name in enumerate(walk, 1):
        outcome = server.run(chain(base, CHAINS[name], run=run, rerun=rerun))
        if outcome.status != "success" or not torch.equal(server.latent(outcome), fresh[name]):
            wrong[" → ".join(walk[max(0, run - length) : run])] = outcome.error or "another result"
    assert not wrong, wrong


def test_prompts_that_fail_or_are_interrupted_leave_nothing_behind(server, edit):
    """FluxKVCache cannot sample this graph, with or without Apply; a lost bank would be named in the log ever after."""
    bare = graphs.without_apply(edit)
    fails, fails_bare = (with_cache(graph) for graph in (edit, bare))
    failed = "error" if CLASSES["cache"] in server.get("/object_info") else "refused"
    server.forget()
    for graph, status in ((fails, failed), (edit, "success"), (fails, failed), (fails_bare, failed)):
        assert server.run(graph).status == status
    time.sleep(11)  # the host collects garbage 10 s after the last time: what the failed prompts held goes then
    server.succeed(bare)
    prompt_id = server.submit(graphs.change(edit, "KSampler", steps=10_000))
    server.wait_until_sampling(prompt_id)
    server.interrupt()
    assert server.wait(prompt_id, timeout_seconds=60).status == "interrupted"
    for graph in (bare, edit):
        server.succeed(graphs.change(graph, "KSampler", seed=1))
    assert "memory leak with model" not in server.log
    assert "Requested to load LoRWeBAdapters" in server.log


def with_cache(graph):
    """Return a copy with FluxKVCache before the sampler."""
    after = graph[graphs.find_node(graph, "ModelSamplingFlux")]["inputs"]
    cache = make_node(CLASSES["cache"], model=after["model"])
    return graphs.change({**graph, "cache": cache}, "ModelSamplingFlux", model=["cache", 0])
