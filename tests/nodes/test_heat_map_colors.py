"""The picture drawn with PIL and the one drawn by the browser have the same colors."""

import json
import re

import numpy as np
import pytest
import torch

from lorweb_core import heat_map
from lorweb_core.coefficient_summary import compare
from lorweb_core.coefficients import encode_coefficients
from tests.host.hosts import ROOT
from tests.synthetic import make_basis

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


def test_a_difference_has_two_sided_colors_whatever_its_signs():
    nothing, more, less = (torch.full((2, 3), value) for value in (0.0, 0.5, -0.5))
    for values, place in ((nothing, 2), (more, 4), (less, 0)):
        assert (heat_map.color_values(values, is_difference=True) == heat_map.DIVERGING[place]).all()
    assert (heat_map.color_values(nothing) == heat_map.SEQUENTIAL[0]).all()


def test_a_comparison_with_itself_is_drawn_white():
    analogy = encode_coefficients(make_basis(), torch.randn(1, 18, generator=torch.Generator().manual_seed(0)))
    picture = np.asarray(heat_map.draw_comparison(compare(analogy, analogy), "same"))
    assert (picture[60:600, 60:360] == heat_map.DIVERGING[2]).all()
