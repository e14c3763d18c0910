"""Routing: golden coefficients of the reference run, the oracle, and laws."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lorweb_core.basis import Basis, LayerBasis
from lorweb_core.checkpoint import load_basis
from lorweb_core.errors import ShapeError
from lorweb_core.router import coefficients_from_queries, route_query
from lorweb_core.settings import RouterSettings
from tests import oracle
from tests.synthetic import SIZES, make_basis

GOLDEN = Path(__file__).parents[1] / "golden"
MODULES = [case for case in json.loads((GOLDEN / "modules.json").read_text()) if case["external_query"]]


@pytest.mark.parametrize("case", "ABCDEFGH")
def test_coefficients_equal_those_of_the_reference_run(case):
    basis = load_basis(GOLDEN / f"basis_{case}.safetensors")
    recorded = load_file(GOLDEN / f"io_{case}.safetensors")
    coefficients = route_query(basis, recorded["in.external_query"])
    assert len(coefficients) == 40
    for name, values in coefficients.items():
        torch.testing.assert_close(values, recorded[f"coeff.{name}"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", MODULES, ids=lambda case: case["name"])
def test_single_layers_equal_those_of_the_reference_run(case):
    recorded = load_file(GOLDEN / "modules.safetensors")
    name = case["name"]
    query = recorded[f"{name}.query"].flatten(1)
    projection = recorded.get(f"{name}.to_q")
    projected = query if projection is None else query @ projection.t()
    rules = RouterSettings(
        activation="softmax" if case["softmax"] else "tanh", heads=case["heads"], reduction=case["mixing"]
    )
    values = coefficients_from_queries(projected, recorded[f"{name}.lora_keys"], settings=rules)
    torch.testing.assert_close(values, recorded[f"{name}.coeff"].reshape(values.shape), atol=2e-6, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 4]),
    head_dim=st.integers(1, 5),
    basis_size=st.integers(1, 6),
    activation=st.sampled_from(["softmax", "tanh"]),
    reduction=st.sampled_from(["mean", "sum"]),
    project=st.booleans(),
)
def test_routing_agrees_with_the_oracle(seed, batch, heads, head_dim, basis_size, activation, reduction, project):
    key_dim = heads * head_dim
    rules = RouterSettings(activation=activation, heads=heads, reduction=reduction, query_mode="aa'bb'")
    basis = make_basis(
        settings=rules, basis_size=basis_size, key_dim=key_dim, query_dim=9 if project else key_dim, project=project
    )
    query = torch.randn(batch, basis.query_dim, generator=torch.Generator().manual_seed(seed))
    for name, values in route_query(basis, query).items():
        layer = basis.layers[name]
        expected = oracle.coefficients(
            query, layer.keys, layer.query_projection, heads=heads, activation=activation, reduction=reduction
        )
        np.testing.assert_allclose(values.numpy(), expected, atol=2e-6)
        if activation == "softmax" and reduction == "mean":
            np.testing.assert_allclose(values.sum(-1).numpy(), 1.0, atol=1e-5)


def test_three_embeddings_are_joined_in_their_order():
    basis = make_basis()
    embeddings = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(5))
    joined = route_query(basis, embeddings.reshape(2, 18))
    for name, values in route_query(basis, embeddings).items():
        assert torch.equal(values, joined[name])


def test_layers_of_different_sizes_and_in_float16_are_routed_in_float32():
    small, large = make_basis(basis_size=2, key_dim=4), make_basis(basis_size=5, key_dim=8)
    layers = {name: (small if index % 2 else large).layers[name] for index, name in enumerate(SIZES)}
    layers = {
        name: LayerBasis(layer.lora_down, layer.lora_up, layer.keys.half(), layer.query_projection.half())
        for name, layer in layers.items()
    }
    coefficients = route_query(Basis(layers, small.settings, small.basis_id), torch.ones(1, 18))
    assert list(coefficients) == list(SIZES)
    for name, values in coefficients.items():
        layer = layers[name]
        expected = oracle.coefficients(torch.ones(1, 18), layer.keys.float(), layer.query_projection.float())
        assert values.dtype == torch.float32
        np.testing.assert_allclose(values.numpy(), expected, atol=2e-6)


UNUSABLE_QUERIES = [
    (torch.ones(1, 17), r"width 18, but it is 17.*image encoder"),
    (torch.ones(18), r"shape \[18\], not \[batch, width\]"),
    (torch.ones(0, 18), r"\[0, 18\].*at least one row"),
    (torch.full((1, 18), float("nan")), "NaN or infinity.*float32"),
]


@pytest.mark.parametrize(("query", "message"), UNUSABLE_QUERIES)
def test_unusable_queries_are_refused(query, message):
    with pytest.raises(ShapeError, match=message):
        route_query(make_basis(), query)
