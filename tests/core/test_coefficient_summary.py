"""Numbers and images of coefficients: known cases, and the cells of the image."""

import math

import numpy as np
import pytest
import torch

from lorweb_core.basis import Basis
from lorweb_core.coefficient_summary import compare, describe, describe_comparison, summarize, tabulate
from lorweb_core.coefficients import encode_coefficients
from lorweb_core.errors import CheckpointError, ShapeError
from lorweb_core.heat_map import DIVERGING, SEQUENTIAL, color_values, draw_coefficients, draw_comparison
from tests.synthetic import SIZES, change_layers, make_basis, make_coefficients

BASIS = make_basis()
FIRST = next(iter(BASIS.layers))


def every_layer(row):
    return change_layers(make_coefficients(), lambda _: torch.tensor([row] * 2))


def test_uniform_and_one_hot_coefficients_have_the_known_entropy():
    uniform, one_hot = (summarize(tabulate(every_layer(row))) for row in ([0.25] * 4, [0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(uniform.effective_adapters, torch.full((4,), 4.0))
    torch.testing.assert_close(uniform.entropy, torch.ones(4))
    assert uniform.distance_from_uniform == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(one_hot.effective_adapters, torch.ones(4))
    assert one_hot.distance_from_uniform == pytest.approx(0.75) and one_hot.adapter_use.tolist() == [0, 1, 0, 0]


def test_numbers_equal_those_of_a_slow_computation():
    table = tabulate(make_coefficients(), mix=1)
    summary = summarize(table)
    for row, entropy in zip(table.values.tolist(), summary.entropy.tolist(), strict=True):
        assert -sum(p * math.log(p) for p in row) / math.log(4) == pytest.approx(entropy, abs=1e-5)
    torch.testing.assert_close(summary.adapter_use, table.values.mean(0), atol=1e-6, rtol=1e-5)


def test_rows_are_in_computing_order():
    turned = {**make_coefficients(), "layers": dict(reversed(make_coefficients()["layers"].items()))}
    assert list(tabulate(turned).layer_names) == list(SIZES)
    assert torch.equal(tabulate(turned, mix=1).values, tabulate(make_coefficients(), mix=1).values)


def test_layers_that_are_switched_off_do_not_count():
    off = every_layer([0.0, 1.0, 0.0, 0.0])
    off["layers"][FIRST] = torch.zeros(2, 4)
    summary = summarize(tabulate(off))
    assert summary.layers_off == 1 and summary.adapter_use.tolist() == [0, 1, 0, 0]
    assert "Switched off: 1 of 4 layers" in describe(off)


def test_a_mix_that_is_all_off_is_neither_uniform_nor_has_it_a_strongest_adapter():
    nothing = every_layer([0.0] * 4)
    assert math.isnan(summarize(tabulate(nothing)).distance_from_uniform)
    text = describe(nothing)
    assert "Switched off: all 4 layers, so this mix changes nothing" in text
    assert "Strongest" not in text and "uniform" not in text and "%" not in text


def test_layers_that_are_off_in_both_are_not_called_far_apart():
    first = make_coefficients()
    first["layers"][FIRST] = torch.zeros(2, 4)
    comparison = compare(first, first)
    at = comparison.difference.layer_names.index(FIRST)
    assert comparison.cosine.isnan().tolist() == [index == at for index in range(4)]
    text = describe_comparison(comparison)
    assert "Off in both: 1 of 4 layers" in text and "mean 1.000, lowest 1.000" in text
    assert FIRST not in text
    one_side = compare(first, make_coefficients(1))
    assert one_side.cosine[at] == 0 and f"Furthest apart: {FIRST} (0.000)" in describe_comparison(one_side)
    assert draw_comparison(comparison, "off in both").size == draw_comparison(one_side, "off in one").size


def test_two_mixes_that_are_all_off_have_no_cosine_at_all():
    nothing = every_layer([0.0] * 4)
    text = describe_comparison(compare(nothing, nothing))
    assert text.splitlines() == ["Difference: 0.0% of the mix on average", "Off in both: 4 of 4 layers"]


def test_a_cosine_does_not_depend_on_the_size_of_the_numbers():
    for size in (1e-30, 1e30):
        scaled = change_layers(make_coefficients(1), lambda mix, size=size: mix * size)
        torch.testing.assert_close(compare(scaled, make_coefficients(1)).cosine, torch.ones(4))


def test_layers_of_fewer_adapters_leave_their_cells_empty():
    small = make_basis(basis_size=2).layers[FIRST]
    basis = Basis(layers={**BASIS.layers, FIRST: small}, settings=BASIS.settings, basis_id="0", name="uneven")
    uneven = encode_coefficients(basis, torch.ones(1, 18))
    table = tabulate(uneven)
    assert table.values[0].isnan().tolist() == [False, False, True, True]
    assert bool(summarize(table).entropy.isfinite().all())
    assert draw_coefficients(table, "uneven").size[0] > 0 and "4 adapters" in describe(uneven)


def test_the_text_names_the_strongest_adapters():
    text = describe(every_layer([0.1, 0.6, 0.3, 0.0]), mix=1)
    assert "Mix 2 of 2: 4 layers × 4 adapters" in text and "synthetic (id 0123" in text
    assert "Strongest adapters: 1 (60.0%), 2 (30.0%), 0 (10.0%)" in text


def test_an_analogy_does_not_differ_from_itself():
    same = compare(make_coefficients(), make_coefficients(), mix=1)
    assert same.distance == 0 and bool((same.difference.values == 0).all())
    torch.testing.assert_close(same.cosine, torch.ones(4))
    opposite = compare(every_layer([1.0, 0.0, 0.0, 0.0]), every_layer([0.0, 0.0, 1.0, 0.0]))
    assert opposite.distance == pytest.approx(1) and opposite.cosine.tolist() == [0] * 4
    assert "Difference: 100.0%" in describe_comparison(opposite)


def test_one_mix_is_compared_with_each_of_several():
    one, three = make_coefficients(0, 1), make_coefficients(1, 3)
    for mix in range(3):
        alone = change_layers(three, lambda values, mix=mix: values[mix : mix + 1])
        for sides in ((one, three), (three, one)):
            compared = compare(*sides, mix=mix)
            expected = compare(*(alone if side is three else one for side in sides))
            assert torch.equal(compared.difference.values, expected.difference.values)
            assert torch.equal(compared.cosine, expected.cosine) and compared.distance == expected.distance > 0


def test_mixes_that_do_not_exist_and_other_bases_are_refused():
    with pytest.raises(ShapeError, match=r"no mix 2: these coefficients have 2.*0 … 1"):
        tabulate(make_coefficients(), mix=2)
    for mixes in ((2, 2), (1, 2), (1, 1)):
        with pytest.raises(ShapeError, match="There is no mix"):
            compare(*(make_coefficients(seed, count) for seed, count in enumerate(mixes)), mix=2)
    with pytest.raises(ShapeError, match="2, 3 mixes"):
        compare(make_coefficients(), make_coefficients(1, 3))
    with pytest.raises(ShapeError, match="difference of these analogies overflows float32"):
        compare(every_layer([3e38] * 4), every_layer([-3e38] * 4))
    with pytest.raises(CheckpointError, match=r"different bases: .* and .*synthetic"):
        compare(make_coefficients(), {**make_coefficients(), "basis_id": "x"})


def test_every_cell_of_the_image_has_its_color():
    table = tabulate(make_coefficients())
    image = np.asarray(draw_coefficients(table, "t"))
    cells = color_values(table.values)
    for color in cells.reshape(-1, 3):
        area = (image == color).all(-1).sum()
        assert area >= 100 * 100 * 0.9
    compared = draw_comparison(compare(make_coefficients(), make_coefficients(1)), "d")
    assert compared.size == draw_coefficients(table, "t").size


def test_colors_run_from_zero_to_the_largest_and_are_two_sided_for_negative_numbers_and_differences():
    colors = color_values(torch.tensor([[0.0, 1.0], [0.25, float("nan")]]))
    assert tuple(colors[0, 0]) == SEQUENTIAL[0] and tuple(colors[0, 1]) == SEQUENTIAL[-1]
    assert tuple(colors[1, 0]) == SEQUENTIAL[2]
    signed = color_values(torch.tensor([[-1.0, 0.0, 1.0]]))
    assert [tuple(color) for color in signed[0]] == [DIVERGING[0], DIVERGING[2], DIVERGING[4]]
    for value, position in ((0.0, 2), (0.5, 4), (-0.5, 0)):
        assert (color_values(torch.full((2, 3), value), is_difference=True) == DIVERGING[position]).all()


def test_a_comparison_with_itself_is_white():
    image = np.asarray(draw_comparison(compare(make_coefficients(), make_coefficients()), "same"))
    assert (image[60:600, 60:360] == DIVERGING[2]).all()
