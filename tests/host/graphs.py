"""Shipped workflows, their API twins, and how a test changes a twin before it is run.

A graph is the API format: node id → {class_type, inputs}; an input that is a list [node id, slot] is a link.
"""

import copy
import json
import re

from tests.host.hosts import ROOT

WORKFLOWS = ROOT / "workflows"
TWINS = ROOT / "tests" / "host" / "workflows_api"
IMAGES = WORKFLOWS / "example_images"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
DEMO, EDIT, BATCH, SAVE_LORA, USE_LORA, BLEND, SWEEP, SAVE_ANALOGY, REUSE_ANALOGY = NAMES
TINY_ENCODER = "tiny_clip"
#: Nodes that exist in the frontend only.
NOTES = ("Note", "MarkdownNote")
#: Widgets of the frontend that are saved but not sent.
_UNSENT_AFTER = {"seed": 1, "noise_seed": 1}


def load_workflow(name):
    """Return a shipped workflow in UI format."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


def load_twin(name):
    """Return a workflow's API twin."""
    return json.loads((TWINS / f"{name}.json").read_text())


def convert_to_api(workflow):
    """Return the API graph that a UI workflow stands for, by its own links and widget values."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        values = iter(node["widgets_values"])
        inputs = {}
        for entry in node["inputs"]:
            if "widget" in entry:
                inputs[entry["name"]] = next(values)
                for _ in range(_UNSENT_AFTER.get(entry["name"], 0)):
                    next(values)
            if entry["link"] is not None:
                inputs[entry["name"]] = sources[entry["link"]]
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def make_node(class_type, **inputs):
    """Return a node of a graph."""
    return {"class_type": class_type, "inputs": inputs}


def find_node(graph, class_type):
    """Return the id of the only node of a class."""
    (found,) = [node_id for node_id, node in graph.items() if node["class_type"] == class_type]
    return found


def change(graph, class_type, **inputs):
    """Return a copy with other inputs at the only node of a class."""
    changed = copy.deepcopy(graph)
    changed[find_node(changed, class_type)]["inputs"].update(inputs)
    return changed


def make_runnable(twin, *, steps=2, megapixels=0.06):
    """Return a twin for a machine without a GPU and without 10 GB of encoders.

    Swapped are DualCLIPLoader for the seeded text encoder and CLIPVisionLoader for our encoder node on a tiny folder;
    steps and megapixels are fewer. Everything else, file names included, stays.
    """
    graph = copy.deepcopy(twin)
    for node in graph.values():
        if node["class_type"] == "DualCLIPLoader":
            node.update(class_type="LoRWeBTestTextEncoder", inputs={})
        elif node["class_type"] == "CLIPVisionLoader":
            node.update(class_type="LoRWeBLoadImageEncoder", inputs={"encoder_name": TINY_ENCODER})
        elif node["class_type"] == "KSampler":
            node["inputs"]["steps"] = steps
        elif node["class_type"] == "LoRWeBBuildGrid":
            node["inputs"]["megapixels"] = megapixels
    return graph


def load_runnable(name, **sizes):
    """Return a workflow's twin, ready to run."""
    return make_runnable(load_twin(name), **sizes)


def list_differences(graph, other):
    """Return (class in `other`, input or `class_type`) for everything in which two graphs differ."""
    assert set(graph) == set(other)
    found = set()
    for node_id, node in other.items():
        if graph[node_id]["class_type"] != node["class_type"]:
            found.add((node["class_type"], "class_type"))
            continue
        for name in set(node["inputs"]) | set(graph[node_id]["inputs"]):
            if graph[node_id]["inputs"].get(name) != node["inputs"].get(name):
                found.add((node["class_type"], name))
    return found


def with_latent_saved(graph):
    """Return a copy that saves the sampled latent instead of any image."""
    changed = {node_id: node for node_id, node in copy.deepcopy(graph).items() if node["class_type"] != "SaveImage"}
    changed["latent"] = make_node("SaveLatent", samples=[find_node(changed, "KSampler"), 0], filename_prefix="tests")
    return changed


def without_apply(graph):
    """Return a copy in which the bare model goes where the patched one went."""
    changed = copy.deepcopy(graph)
    apply_id = find_node(changed, "LoRWeBApplyMixedLoRA")
    model = changed[apply_id]["inputs"]["model"]
    for node_id in [i for i, node in changed.items() if [apply_id, 1] in node["inputs"].values()]:
        del changed[node_id]
    for other in changed.values():
        other["inputs"] = {name: model if value == [apply_id, 0] else value for name, value in other["inputs"].items()}
    del changed[apply_id]
    return changed


def with_coefficients(graph, source, **nodes):
    """Return a copy with more nodes, and the coefficients of Apply from `source`."""
    return change({**graph, **nodes}, "LoRWeBApplyMixedLoRA", coefficients=source)


def with_reversed(graph):
    """Return a copy with a node `reversed` that encodes the opposite edit: a′ → a."""
    encode = graph[find_node(graph, "LoRWeBEncodeAnalogy")]["inputs"]
    a, a_prime = encode["image_a"], encode["image_a_prime"]
    return {**graph, "reversed": make_node("LoRWeBEncodeAnalogy", **{**encode, "image_a": a_prime, "image_a_prime": a})}


def adjust(source, **changes):
    """Return an Adjust node that changes nothing but `changes`."""
    parts = ("modulation", "attention", "mlp", "context", "early", "middle", "late", "double", "single")
    neutral = {"temperature": 1.0, "top_k": 0, "renormalize": True, **dict.fromkeys(parts, 1.0)}
    return make_node("LoRWeBAdjustCoefficients", coefficients=source, **{**neutral, **changes})


def blend(first, second, **changes):
    """Return a Blend node, by default half of each."""
    inputs = {"method": "interpolate", "position": 0.5, "weight_1": 1.0, "weight_2": 1.0, **changes}
    return make_node("LoRWeBBlendCoefficients", coefficients_1=first, coefficients_2=second, **inputs)


def encode_many(graph, **changes):
    """Return an Encode Many node with the b of a graph's Encode node, by default without any pair."""
    encode = graph[find_node(graph, "LoRWeBEncodeAnalogy")]["inputs"]
    given = {name: encode[name] for name in ("basis", "clip_vision", "image_b")}
    return make_node("LoRWeBEncodeAnalogies", **{**given, "folder": "", "average": "query", **changes})


def save_coefficients(source, prefix, *, note="", **changes):
    """Return a Save Coefficients node."""
    prefix = f"lorweb_coefficients/{prefix}"
    return make_node("LoRWeBSaveCoefficients", coefficients=source, filename_prefix=prefix, note=note, **changes)


def load_coefficients(name, **inputs):
    """Return a Load Coefficients node."""
    return make_node("LoRWeBLoadCoefficients", file_name=name, **inputs)


def preview(source, **inputs):
    """Return a Preview Coefficients node."""
    return make_node("LoRWeBPreviewCoefficients", coefficients=source, **inputs)


def links_in(text):
    """Return the URLs of a Markdown text."""
    return re.findall(r"\]\((https?://[^)\s]+)\)", text)
