"""The English texts are those of the node classes, which need the host to be asked."""

import json
import re
from pathlib import Path

import comfyui_lorweb

ROOT = Path(comfyui_lorweb.__file__).parent


def unescape(text):
    """Undo the escapes of the frontend's message format."""
    return re.sub(r"\{'([{}|@])'\}", r"\1", text)


def check_english_texts_equal_the_node_classes():
    english = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    for node_id, node in comfyui_lorweb.NODE_CLASS_MAPPINGS.items():
        texts = english[node_id]
        assert texts["display_name"] == comfyui_lorweb.NODE_DISPLAY_NAME_MAPPINGS[node_id]
        assert unescape(texts["description"]) == node.DESCRIPTION
        inputs = {name: spec for group in node.INPUT_TYPES().values() for name, spec in group.items()}
        assert list(texts["inputs"]) == list(inputs), node_id
        for name, spec in inputs.items():
            assert unescape(texts["inputs"][name]["tooltip"]) == spec[1]["tooltip"], (node_id, name)
        outputs = [(entry["name"], unescape(entry["tooltip"])) for entry in texts["outputs"].values()]
        assert outputs == list(zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True)), node_id
