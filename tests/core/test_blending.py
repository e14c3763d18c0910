"""Blending: laws of means, sums and interpolations, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorweb_core.basis import Basis
from lorweb_core.blending import blend_coefficients, interpolation_weights, sweep_analogies
from lorweb_core.coefficients import count_mixes, require_coefficients_of
from lorweb_core.errors import CheckpointError, LoRWeBError, SettingsError, ShapeError
from tests.synthetic import assert_same_coefficients, change_layers, make_basis, make_coefficients

BASIS = make_basis()
FIRST = next(iter(BASIS.layers))
WEIGHTS = st.floats(-3, 3, allow_nan=False).filter(lambda weight: abs(weight) > 1e-3)


@settings(deadline=None, max_examples=50)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=4).filter(lambda weights: abs(sum(weights)) > 1e-2))
def test_a_blend_of_an_analogy_with_itself_is_that_analogy_bit_for_bit(weights):
    assert_same_coefficients(blend_coefficients([make_coefficients()] * len(weights), weights), make_coefficients())


@pytest.mark.parametrize("method", ["mean", "sum"])
@pytest.mark.parametrize("only", [0, 1, 2])
def test_weight_on_one_analogy_alone_is_that_analogy_bit_for_bit(method, only):
    weights = [float(index == only) for index in range(3)]
    assert_same_coefficients(
        blend_coefficients([make_coefficients(0), make_coefficients(1), make_coefficients(2)], weights, method=method),
        make_coefficients(only),
    )


def test_a_mean_is_the_weighted_mean_and_a_sum_the_weighted_sum():
    parts, weights = [make_coefficients(seed) for seed in range(4)], [1.0, 0.5, 2.0, -0.25]
    mean, total = blend_coefficients(parts, weights), blend_coefficients(parts, weights, method="sum")
    require_coefficients_of(BASIS, total)
    for name in BASIS.layers:
        expected = sum(w * part["layers"][name].double() for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(total["layers"][name].double(), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(mean["layers"][name].double(), expected / sum(weights), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(mean["layers"][name].sum(-1), torch.ones(2), atol=1e-5, rtol=0)


def test_one_mix_is_used_for_every_mix_of_the_others():
    blended = blend_coefficients([make_coefficients(0, 1), make_coefficients(1, 3)], [1, 1])
    assert count_mixes(blended) == 3
    repeated = change_layers(make_coefficients(0, 1), lambda mix: mix.expand(3, -1))
    assert_same_coefficients(blended, blend_coefficients([repeated, make_coefficients(1, 3)], [1, 1]))


def test_nothing_that_goes_in_is_changed():
    parts = [make_coefficients(0), make_coefficients(1)]
    before = [{name: mix.clone() for name, mix in part["layers"].items()} for part in parts]
    blend_coefficients(parts, [0.2, 0.8])["layers"][FIRST].zero_()
    for part, copy in zip(parts, before, strict=True):
        assert all(torch.equal(part["layers"][name], copy[name]) for name in copy)


def test_layers_of_different_basis_sizes_and_in_another_order_are_blended():
    layers = {**make_basis(basis_size=4).layers, "x": make_basis(basis_size=6).layers["transformer_blocks.0.attn.to_q"]}
    basis = Basis(layers=layers, settings=BASIS.settings, basis_id="mixed", name="mixed")
    first, second = make_coefficients(0, 2, basis), make_coefficients(1, 2, basis)
    turned = {**second, "layers": dict(reversed(second["layers"].items()))}
    assert_same_coefficients(blend_coefficients([first, second], [1, 2]), blend_coefficients([first, turned], [1, 2]))


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


@pytest.mark.parametrize("method", ["mean", "sum"])
def test_weights_of_any_size_have_a_mean_but_no_infinite_sum(method):
    parts, weights = [make_coefficients(0), make_coefficients(1)], [1e308, 1e308]
    if method == "mean":
        assert_same_coefficients(blend_coefficients(parts, weights), blend_coefficients(parts, [1, 1]))
    else:
        with pytest.raises(SettingsError, match=r"weights 1e\+308, 1e\+308 overflow float32.*smaller weights"):
            blend_coefficients(parts, weights, method="sum")


def with_first(mix):
    coefficients = make_coefficients(1)
    coefficients["layers"][FIRST] = mix
    return coefficients


ONE, TWO = make_coefficients(0), make_coefficients(1)
OTHER = make_coefficients(basis=Basis(BASIS.layers, BASIS.settings, basis_id="fedcba9876543210", name="other"))
BAD_BLENDS = {
    "zero": ([ONE, TWO], [1, -1], SettingsError, "1, -1 sum to zero.*method sum"),
    "all zero": ([ONE, TWO], [0, 0], SettingsError, "sum to zero"),
    "nan weight": ([ONE], [float("nan")], SettingsError, r"\[nan\].*finite weight"),
    "too few": ([ONE, TWO], [1], SettingsError, "2 analogies"),
    "none": ([], [], SettingsError, "at least one analogy"),
    "other basis": ([ONE, OTHER], [1, 1], CheckpointError, r"synthetic \(id 012345.*other \(id fedcba.*same basis"),
    "other N": ([ONE, with_first(torch.ones(2, 5))], [1, 1], ShapeError, "differ in 1 of 4 layers"),
    "batches": ([ONE, make_coefficients(1, 3)], [1, 1], ShapeError, "2, 3 mixes"),
    "empty": ([ONE, with_first(torch.ones(0, 4))], [1, 1], ShapeError, "at least one"),
    "NaN": ([with_first(torch.full((2, 4), torch.nan))], [1], ShapeError, "NaN.*finite"),
    "no dict": ([3], [1], CheckpointError, "int.*Connect the output"),
}


@pytest.mark.parametrize(("parts", "weights", "error", "message"), BAD_BLENDS.values(), ids=BAD_BLENDS)
def test_bad_blends_are_refused(parts, weights, error, message):
    with pytest.raises(error, match=message):
        blend_coefficients(parts, weights)


def test_unknown_methods_and_positions_are_refused():
    with pytest.raises(SettingsError, match="mean or sum"):
        blend_coefficients([ONE], [1], method="product")
    for position, count in ((float("nan"), 2), (0.5, 1)):
        with pytest.raises(LoRWeBError, match="two analogies or more"):
            interpolation_weights(position, count)
    with pytest.raises(SettingsError, match="steps is 0"):
        sweep_analogies([ONE, TWO], 0, 1, steps=0)


def test_positions_are_refused_by_their_own_name():
    huge = [change_layers(ONE, lambda mix: mix * 3e38), change_layers(ONE, lambda mix: mix * -3e38)]
    with pytest.raises(SettingsError, match=r"positions 0 to 2 overflow float32.*smaller positions"):
        sweep_analogies(huge, 0, 2, steps=3)
    for position in (1e39, -100_001):
        with pytest.raises(SettingsError, match=r"Position .* with 2 analogies.*from -100,000 to 100,000"):
            sweep_analogies([ONE, TWO], position, 1, steps=2)


@pytest.mark.parametrize(("count", "start", "end", "steps"), [(2, -1.0, 1.5, 6), (3, -1.0, 3.0, 41), (2, 0.3, 9.0, 1)])
def test_a_sweep_has_the_blend_of_each_position_in_turn(count, start, end, steps):
    parts = [make_coefficients(0, 1), *(make_coefficients(seed) for seed in range(1, count))]
    swept = sweep_analogies(parts, start, end, steps=steps)
    assert count_mixes(swept) == 2 * steps
    for index in range(steps):
        position = start + (end - start) * index / max(steps - 1, 1)
        blended = blend_coefficients(parts, interpolation_weights(position, count))
        at = slice(2 * index, 2 * index + 2)
        assert_same_coefficients(change_layers(swept, lambda mix, at=at: mix[at]), blended)
