"""Blending: laws of means, sums and interpolations, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorweb_core.basis import Basis
from lorweb_core.blending import blend_coefficients, interpolation_weights, sweep_analogies
from lorweb_core.coefficients import count_mixes, encode_coefficients, require_coefficients_of, with_layers
from lorweb_core.errors import CheckpointError, LoRWeBError, SettingsError, ShapeError
from lorweb_core.mixing import layer_delta
from tests.synthetic import make_basis

BASIS = make_basis()
WEIGHTS = st.floats(-3, 3, allow_nan=False).filter(lambda weight: abs(weight) > 1e-3)


def analogy(seed=0, mixes=2, basis=BASIS):
    return encode_coefficients(basis, torch.randn(mixes, 18, generator=torch.Generator().manual_seed(seed)))


def assert_equal(first, second):
    assert list(first["layers"]) == list(second["layers"]) and first["basis_id"] == second["basis_id"]
    for name, mix in first["layers"].items():
        assert torch.equal(mix, second["layers"][name]), name


@settings(deadline=None, max_examples=50)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=4).filter(lambda weights: abs(sum(weights)) > 1e-2))
def test_a_blend_of_an_analogy_with_itself_is_that_analogy_bit_for_bit(weights):
    assert_equal(blend_coefficients([analogy()] * len(weights), weights), analogy())


@pytest.mark.parametrize("method", ["mean", "sum"])
@pytest.mark.parametrize("only", [0, 1, 2])
def test_weight_on_one_analogy_alone_is_that_analogy_bit_for_bit(method, only):
    weights = [float(index == only) for index in range(3)]
    assert_equal(blend_coefficients([analogy(0), analogy(1), analogy(2)], weights, method=method), analogy(only))


def test_a_mean_is_the_weighted_mean_and_a_sum_the_weighted_sum():
    parts, weights = [analogy(seed) for seed in range(4)], [1.0, 0.5, 2.0, -0.25]
    mean, total = blend_coefficients(parts, weights), blend_coefficients(parts, weights, method="sum")
    for name in BASIS.layers:
        expected = sum(w * part["layers"][name].double() for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(total["layers"][name].double(), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(mean["layers"][name].double(), expected / sum(weights), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(mean["layers"][name].sum(-1), torch.ones(2), atol=1e-5, rtol=0)


def test_the_order_of_analogies_does_not_matter():
    first = blend_coefficients([analogy(0), analogy(1)], [0.3, 0.7])
    second = blend_coefficients([analogy(1), analogy(0)], [0.7, 0.3])
    assert_equal(first, second)


def test_the_delta_of_a_blend_is_the_blend_of_the_deltas():
    parts, weights = [analogy(0, 1), analogy(1, 1)], [1.5, -0.5]
    blended = blend_coefficients(parts, weights)
    for name, layer in BASIS.layers.items():
        deltas = [layer_delta(layer, part["layers"][name][0]) for part in parts]
        delta = layer_delta(layer, blended["layers"][name][0])
        torch.testing.assert_close(delta, weights[0] * deltas[0] + weights[1] * deltas[1], atol=1e-4, rtol=1e-4)


def test_one_mix_is_used_for_every_mix_of_the_others():
    blended = blend_coefficients([analogy(0, 1), analogy(1, 3)], [1, 1])
    assert count_mixes(blended) == 3
    repeated = {name: mix.expand(3, -1) for name, mix in analogy(0, 1)["layers"].items()}
    assert_equal(blended, blend_coefficients([{**analogy(0, 1), "layers": repeated}, analogy(1, 3)], [1, 1]))


def test_nothing_that_goes_in_is_changed():
    parts = [analogy(0), analogy(1)]
    before = [{name: mix.clone() for name, mix in part["layers"].items()} for part in parts]
    blend_coefficients(parts, [0.2, 0.8])["layers"][next(iter(BASIS.layers))].zero_()
    for part, copy in zip(parts, before, strict=True):
        assert all(torch.equal(part["layers"][name], copy[name]) for name in copy)


def test_a_blend_is_accepted_wherever_coefficients_are():
    require_coefficients_of(BASIS, blend_coefficients([analogy(0), analogy(1)], [2, -1]))


def test_layers_of_different_basis_sizes_and_in_another_order_are_blended():
    layers = {**make_basis(basis_size=4).layers, "x": make_basis(basis_size=6).layers["transformer_blocks.0.attn.to_q"]}
    basis = Basis(layers=layers, settings=BASIS.settings, basis_id="mixed", name="mixed")
    first, second = analogy(0, 2, basis), analogy(1, 2, basis)
    turned = {**second, "layers": dict(reversed(second["layers"].items()))}
    assert_equal(blend_coefficients([first, second], [1, 2]), blend_coefficients([first, turned], [1, 2]))


@pytest.mark.parametrize(
    ("position", "count", "weights"),
    [
        (0, 2, [1, 0]),
        (1, 2, [0, 1]),
        (0.25, 2, [0.75, 0.25]),
        (-0.5, 2, [1.5, -0.5]),
        (1.5, 2, [-0.5, 1.5]),
        (1.25, 3, [0, 0.75, 0.25]),
        (3, 4, [0, 0, 0, 1]),
        (3.5, 4, [0, 0, -0.5, 1.5]),
    ],
)
def test_the_way_through_analogies_mixes_neighbors(position, count, weights):
    assert interpolation_weights(position, count) == weights


def other_basis():
    return Basis(layers=BASIS.layers, settings=BASIS.settings, basis_id="fedcba9876543210", name="other")


def with_first(coefficients, mix):
    return {**coefficients, "layers": {**coefficients["layers"], next(iter(BASIS.layers)): mix}}


BAD_BLENDS = {
    "zero": (lambda: ([analogy(0), analogy(1)], [1, -1]), SettingsError, ["sum to zero", "1, -1", "method sum"]),
    "all zero": (lambda: ([analogy(0), analogy(1)], [0, 0]), SettingsError, ["sum to zero"]),
    "nan weight": (lambda: ([analogy(0)], [float("nan")]), SettingsError, ["finite weight", "nan"]),
    "too few": (lambda: ([analogy(0), analogy(1)], [1]), SettingsError, ["2 analogies"]),
    "none": (lambda: ([], []), SettingsError, ["at least one analogy"]),
    "other basis": (
        lambda: ([analogy(0), encode_coefficients(other_basis(), torch.ones(1, 18))], [1, 1]),
        CheckpointError,
        ["synthetic (id 012345", "other (id fedcba", "same basis"],
    ),
    "other N": (
        lambda: ([analogy(0), with_first(analogy(1), torch.ones(2, 5))], [1, 1]),
        ShapeError,
        ["differ in 1 of 4 layers"],
    ),
    "batches": (lambda: ([analogy(0, 2), analogy(1, 3)], [1, 1]), ShapeError, ["2, 3 mixes"]),
    "empty": (lambda: ([analogy(0), with_first(analogy(1), torch.ones(0, 4))], [1, 1]), ShapeError, ["at least one"]),
    "NaN": (lambda: ([with_first(analogy(1), torch.full((2, 4), torch.nan))], [1]), ShapeError, ["finite", "NaN"]),
    "no dict": (lambda: ([3], [1]), CheckpointError, ["int", "Connect the output"]),
}


@pytest.mark.parametrize("method", ["mean", "sum"])
def test_weights_of_any_size_have_a_mean_but_no_infinite_sum(method):
    parts, weights = [analogy(0), analogy(1)], [1e308, 1e308]
    if method == "mean":
        assert_equal(blend_coefficients(parts, weights), blend_coefficients(parts, [1, 1]))
    else:
        with pytest.raises(SettingsError, match=r"weights 1e\+308, 1e\+308 overflow float32.*smaller weights"):
            blend_coefficients(parts, weights, method="sum")


def test_positions_are_refused_by_their_own_name():
    huge = [
        with_layers(analogy(seed), {name: mix * 3e38 for name, mix in analogy()["layers"].items()}) for seed in (0, 0)
    ]
    huge[1]["layers"] = {name: -mix for name, mix in huge[1]["layers"].items()}
    with pytest.raises(SettingsError, match=r"positions 0 to 2 overflow float32.*smaller positions"):
        sweep_analogies(huge, 0, 2, steps=3)
    for position in (1e39, -100_001):
        with pytest.raises(SettingsError, match=r"Position .* with 2 analogies.*from -100,000 to 100,000"):
            sweep_analogies([analogy(0), analogy(1)], position, 1, steps=2)


@pytest.mark.parametrize("case", BAD_BLENDS)
def test_bad_blends_are_refused(case):
    make, error, words = BAD_BLENDS[case]
    with pytest.raises(error) as raised:
        blend_coefficients(*make())
    for word in words:
        assert word in str(raised.value)


def test_unknown_methods_and_positions_are_refused():
    with pytest.raises(SettingsError, match="mean or sum"):
        blend_coefficients([analogy()], [1], method="product")
    for position, count in ((float("nan"), 2), (0.5, 1)):
        with pytest.raises(LoRWeBError, match="two analogies or more"):
            interpolation_weights(position, count)


def test_a_sweep_has_the_blend_of_each_position_in_turn():
    parts = [analogy(0), analogy(1)]
    swept = sweep_analogies(parts, -1.0, 1.5, steps=6)
    assert count_mixes(swept) == 12
    for index, position in enumerate([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5]):
        expected = blend_coefficients(parts, interpolation_weights(position, 2))
        for name, mix in expected["layers"].items():
            assert torch.equal(swept["layers"][name][2 * index : 2 * index + 2], mix)
    three, count = [analogy(0, 1), analogy(1), analogy(2)], 41
    swept = sweep_analogies(three, -1.0, 3.0, steps=count)
    for index in range(count):
        position = -1.0 + 4.0 * index / (count - 1)
        for name, mix in blend_coefficients(three, interpolation_weights(position, 3))["layers"].items():
            assert torch.equal(swept["layers"][name][2 * index : 2 * index + 2], mix)
    assert_equal(sweep_analogies(parts, 0.3, 9.0, steps=1), blend_coefficients(parts, interpolation_weights(0.3, 2)))
    with pytest.raises(SettingsError, match="steps is 0"):
        sweep_analogies(parts, 0, 1, steps=0)


def test_from_nothing_to_an_analogy_positions_are_strengths():
    nothing = {**analogy(), "layers": {name: mix * 0 for name, mix in analogy()["layers"].items()}}
    swept = sweep_analogies([nothing, analogy()], -1.0, 1.5, steps=6)
    for name, mix in analogy()["layers"].items():
        for index, strength in enumerate([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5]):
            torch.testing.assert_close(swept["layers"][name][2 * index : 2 * index + 2], strength * mix)
