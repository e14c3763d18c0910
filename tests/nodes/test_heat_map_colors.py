"""Colors of the heat map, which the node sends to the browser as well."""

import numpy as np
import torch

from lorweb_core import heat_map
from lorweb_core.coefficient_summary import compare
from lorweb_core.coefficients import encode_coefficients
from tests.synthetic import make_basis


def test_a_difference_has_two_sided_colors_whatever_its_signs():
    nothing, more, less = (torch.full((2, 3), value) for value in (0.0, 0.5, -0.5))
    for values, place in ((nothing, 2), (more, 4), (less, 0)):
        assert (heat_map.color_values(values, is_difference=True) == heat_map.DIVERGING[place]).all()
    assert (heat_map.color_values(nothing) == heat_map.SEQUENTIAL[0]).all()


def test_a_comparison_with_itself_is_drawn_white():
    analogy = encode_coefficients(make_basis(), torch.randn(1, 18, generator=torch.Generator().manual_seed(0)))
    image = np.asarray(heat_map.draw_comparison(compare(analogy, analogy), "same"))
    assert (image[60:600, 60:360] == heat_map.DIVERGING[2]).all()
