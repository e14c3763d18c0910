"""Mixing: golden outputs, the oracle, and laws (mixed = sum of parts, forward = weights, one-hot = one adapter)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lorweb_core.basis import LayerBasis
from lorweb_core.errors import ShapeError
from lorweb_core.mixing import add_contribution, layer_delta, mix_layer
from tests import oracle
from tests.synthetic import make_layer

GOLDEN = Path(__file__).parents[1] / "golden"
MODULES = [case for case in json.loads((GOLDEN / "modules.json").read_text()) if isinstance(case["multiplier"], float)]


def seeded(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", MODULES, ids=lambda case: case["name"])
def test_layer_outputs_equal_those_of_the_reference_run(case):
    recorded = load_file(GOLDEN / "modules.safetensors")
    part = {key.split(".", 1)[1]: value for key, value in recorded.items() if key.startswith(case["name"] + ".")}
    layer = LayerBasis(
        lora_down=part["lora_A"].transpose(1, 2),
        lora_up=part["lora_B"].transpose(1, 2),
        keys=part["lora_keys"],
        query_projection=part.get("to_q"),
        lora_bias=part.get("lora_B_bias"),
    )
    strength = case["multiplier"] * case["effective_scale"]
    mixes = part["coeff"].reshape(-1, layer.basis_size)
    output = add_contribution(part["y_base"], part["x"], layer, mixes, strength=strength)
    torch.testing.assert_close(output, part["y"], atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    tokens=st.one_of(st.none(), st.integers(1, 4)),
    widths=st.sampled_from([(5, 9), (9, 5), (6, 6)]),
    basis_size=st.integers(1, 5),
    rank=st.integers(1, 3),
    strength=st.floats(-4, 4),
    bias=st.booleans(),
)
def test_forward_weights_and_oracle_agree(seed, batch, tokens, widths, basis_size, rank, strength, bias):
    layer = make_layer(*widths, basis_size=basis_size, rank=rank, seed=seed, bias=bias)
    x = seeded(batch, *([tokens] if tokens else []), widths[0], seed=seed + 1)
    weight, base_bias = seeded(widths[1], widths[0], seed=2), seeded(widths[1], seed=3)
    mixes = seeded(batch, basis_size, seed=seed + 2)
    base = torch.nn.functional.linear(x, weight, base_bias)
    forward = add_contribution(base, x, layer, mixes, strength=strength)
    expected = oracle.layer_output(
        x,
        weight,
        base_bias,
        layer.lora_down.transpose(1, 2),
        layer.lora_up.transpose(1, 2),
        mixes,
        strength=strength,
        lora_bias=layer.lora_bias,
    )
    np.testing.assert_allclose(forward.numpy(), expected, atol=2e-4, rtol=1e-5)
    for index in range(batch):
        mixed = mix_layer(layer, mixes[index], strength=strength)
        shift = 0 if mixed.bias is None else mixed.bias
        through_weights = torch.nn.functional.linear(x[index], weight + mixed.up @ mixed.down, base_bias + shift)
        torch.testing.assert_close(through_weights, forward[index], atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("widths", [(6, 8), (8, 6)])
@pytest.mark.parametrize("mix", [seeded(4), torch.eye(4)[2]], ids=["any", "one-hot"])
def test_the_mixed_lora_is_the_weighted_sum_of_its_adapters(widths, mix):
    layer = make_layer(*widths)
    parts = sum(mix[n] * layer.lora_up[n] @ layer.lora_down[n] for n in range(4))
    torch.testing.assert_close(layer_delta(layer, mix), parts, atol=1e-5, rtol=1e-5)


def test_strength_zero_leaves_the_output_untouched():
    layer, x = make_layer(6, 8, bias=True), seeded(2, 3, 6)
    output = seeded(2, 3, 8)
    assert torch.equal(add_contribution(output, x, layer, seeded(2, 4), strength=0.0), output)


def test_the_unfolded_side_shares_the_memory_of_the_basis():
    wide, narrow = make_layer(6, 8), make_layer(8, 6)
    assert mix_layer(wide, torch.ones(4)).up.data_ptr() == wide.lora_up.data_ptr()
    assert mix_layer(narrow, torch.ones(4)).down.data_ptr() == narrow.lora_down.data_ptr()


def test_mixes_repeat_over_a_larger_batch_in_turn():
    layer, x, output = make_layer(6, 8), seeded(4, 3, 6), torch.zeros(4, 3, 8)
    mixes = seeded(2, 4)
    result = add_contribution(output, x, layer, mixes)
    expected = add_contribution(output, x, layer, torch.cat([mixes, mixes]))
    assert torch.equal(result, expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_that_is_no_multiple_of_the_mixes_is_refused(batch):
    layer = make_layer(6, 8)
    with pytest.raises(ShapeError, match=rf"batch is {batch}, not a multiple of the 2 mixes.*Make the latent batch 2"):
        add_contribution(torch.zeros(batch, 3, 8), torch.zeros(batch, 3, 6), layer, torch.ones(2, 4))


def test_coefficients_of_another_size_are_refused():
    with pytest.raises(ShapeError, match=r"shape \[5\], but .* need \[4\].*router"):
        mix_layer(make_layer(6, 8), torch.ones(5))
