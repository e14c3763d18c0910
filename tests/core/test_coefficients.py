"""The coefficients dict: what the router gives, and what Apply and Save refuse."""

import pytest
import torch

from lorweb_core.basis import Basis
from lorweb_core.coefficients import (
    count_mixes,
    encode_coefficients,
    require_coefficients_of,
    require_whole_coefficients,
)
from lorweb_core.errors import CheckpointError, LoRWeBError, ShapeError
from tests.synthetic import make_basis

QUERY = torch.randn(2, 18, generator=torch.Generator().manual_seed(0))


def test_coefficients_are_plain_float32_tensors_on_the_cpu():
    basis = make_basis()
    coefficients = encode_coefficients(basis, QUERY.double())
    assert type(coefficients) is dict
    assert set(coefficients) == {"format_version", "basis_id", "layers", "settings"}
    assert coefficients["settings"]["activation"] == "softmax" and coefficients["settings"]["basis_name"] == "synthetic"
    for mix in coefficients["layers"].values():
        assert mix.dtype == torch.float32 and mix.device.type == "cpu" and mix.shape == (2, 4)
    assert count_mixes(coefficients) == 2
    checked = require_coefficients_of(basis, coefficients)
    assert all(torch.equal(checked["layers"][name], mix) for name, mix in coefficients["layers"].items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_numbers_of_another_dtype_are_taken_as_float32(dtype):
    basis = make_basis()
    coefficients = encode_coefficients(basis, QUERY)
    foreign = {**coefficients, "layers": {name: mix.to(dtype) for name, mix in coefficients["layers"].items()}}
    for checked in (require_coefficients_of(basis, foreign), require_whole_coefficients(foreign)):
        for name, mix in checked["layers"].items():
            assert mix.dtype == torch.float32 and torch.equal(mix, foreign["layers"][name].float())


def broken(change):
    coefficients = encode_coefficients(make_basis(), QUERY)
    coefficients["layers"] = dict(coefficients["layers"])
    change(coefficients)
    return coefficients


FIRST = next(iter(make_basis().layers))
DAMAGE = {
    "newer format": (lambda c: c.update(format_version=2), CheckpointError, ["version 1", "version 2", "Update"]),
    "version in quotes": (lambda c: c.update(format_version="1"), CheckpointError, ["version 1.", "version '1'"]),
    "no layers": (lambda c: c.update(layers={}), CheckpointError, ["Connect the output of Encode Analogy"]),
    "no id": (lambda c: c.pop("basis_id"), CheckpointError, ["basis_id"]),
    "missing layer": (lambda c: c["layers"].pop(FIRST), ShapeError, ["4 layers", "1 missing", FIRST]),
    "extra layer": (lambda c: c["layers"].update(other=torch.ones(2, 4)), ShapeError, ["1 unknown", "other"]),
    "wrong size": (lambda c: c["layers"].update({FIRST: torch.ones(2, 5)}), ShapeError, [FIRST, "[2, 5]"]),
    "other batch": (lambda c: c["layers"].update({FIRST: torch.ones(3, 4)}), ShapeError, ["same batch"]),
    "layers as a list": (lambda c: c.update(layers=[torch.ones(2, 4)]), CheckpointError, ["layers as list"]),
    "layers as a tensor": (lambda c: c.update(layers=torch.ones(2, 4)), CheckpointError, ["layers as Tensor"]),
    "numbers as a list": (lambda c: c["layers"].update({FIRST: [[0.5, 0.5]]}), CheckpointError, [f"{FIRST} as list"]),
    "no settings": (lambda c: c.update(settings=None), CheckpointError, ["settings as NoneType"]),
    "not a number": (lambda c: c["layers"].update({FIRST: torch.full((2, 4), torch.nan)}), ShapeError, ["NaN"]),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_coefficients_are_refused(case):
    change, error, words = DAMAGE[case]
    with pytest.raises(error) as raised:
        require_coefficients_of(make_basis(), broken(change))
    for word in words:
        assert word in str(raised.value)


def test_coefficients_of_another_basis_are_refused_naming_both():
    basis = make_basis()
    other = Basis(layers=basis.layers, settings=basis.settings, basis_id="fedcba9876543210", name="other")
    with pytest.raises(CheckpointError, match=r"other \(id fedcba.*synthetic \(id 012345.*Connect the same basis"):
        require_coefficients_of(other, encode_coefficients(basis, QUERY))


@pytest.mark.parametrize("value", [None, 3, [], {}])
def test_anything_else_on_the_socket_is_refused(value):
    with pytest.raises(LoRWeBError, match="Connect the output of Encode Analogy"):
        require_coefficients_of(make_basis(), value)
