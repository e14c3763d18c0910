"""The heat map made with PIL and the one made by the browser have the same colors."""

import json
import re

import pytest

from lorweb_core import heat_map
from tests.host.hosts import ROOT

SCRIPT = (ROOT / "web" / "js" / "heat_map_drawing.js").read_text()


@pytest.mark.parametrize("name", ["SEQUENTIAL", "DIVERGING", "BACKGROUND"])
def test_palettes_are_equal(name):
    (found,) = re.findall(rf"^const {name} = (\[.*\])$", SCRIPT, re.MULTILINE)
    assert json.loads(found) == json.loads(json.dumps(getattr(heat_map, name)))


@pytest.mark.parametrize(
    ("name", "colors"),
    [
        ("PART_COLORS", {part: heat_map.PART_COLORS[part] for part in ("modulation", "attention", "mlp")}),
        (
            "KIND_COLORS",
            {
                "transformer_blocks": heat_map.KIND_COLORS["double"],
                "single_transformer_blocks": heat_map.KIND_COLORS["single"],
            },
        ),
    ],
)
def test_colors_of_blocks_and_parts_are_equal(name, colors):
    (found,) = re.findall(rf"^const {name} = \{{(.*)\}}$", SCRIPT, re.MULTILINE)
    pairs = re.findall(r"(\w+): 'rgb\((\d+),(\d+),(\d+)\)'", found)
    assert {part: tuple(map(int, rgb)) for part, *rgb in pairs} == colors
