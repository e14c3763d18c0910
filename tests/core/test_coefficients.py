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
from tests.synthetic import assert_same_coefficients, change_layers, make_basis, make_coefficients

BASIS = make_basis()
FIRST = next(iter(BASIS.layers))


def test_coefficients_are_plain_float32_tensors_on_the_cpu():
    coefficients = encode_coefficients(BASIS, torch.ones(2, 18).double())
    assert type(coefficients) is dict
    assert set(coefficients) == {"format_version", "basis_id", "layers", "settings"}
    assert coefficients["settings"]["activation"] == "softmax" and coefficients["settings"]["basis_name"] == "synthetic"
    for mix in coefficients["layers"].values():
        assert mix.dtype == torch.float32 and mix.device.type == "cpu" and mix.shape == (2, 4)
    assert count_mixes(coefficients) == 2
    assert_same_coefficients(require_coefficients_of(BASIS, coefficients), coefficients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_numbers_of_another_dtype_are_taken_as_float32(dtype):
    foreign = change_layers(make_coefficients(), lambda mix: mix.to(dtype))
    for checked in (require_coefficients_of(BASIS, foreign), require_whole_coefficients(foreign)):
        assert_same_coefficients(checked, change_layers(foreign, lambda mix: mix.float()))
        assert all(mix.dtype == torch.float32 for mix in checked["layers"].values())


def set_first(value):
    return lambda c: c["layers"].update({FIRST: value})


DAMAGE = {
    "newer format": (lambda c: c.update(format_version=2), CheckpointError, "version 2.*version 1.*Update"),
    "version in quotes": (lambda c: c.update(format_version="1"), CheckpointError, "version '1'.*version 1[.]"),
    "no layers": (lambda c: c.update(layers={}), CheckpointError, "Connect the output of Encode Analogy"),
    "no id": (lambda c: c.pop("basis_id"), CheckpointError, "basis_id"),
    "missing layer": (lambda c: c["layers"].pop(FIRST), ShapeError, f"4 layers.*1 missing.*{FIRST}"),
    "extra layer": (lambda c: c["layers"].update(other=torch.ones(2, 4)), ShapeError, "1 unknown.*other"),
    "wrong size": (set_first(torch.ones(2, 5)), ShapeError, rf"{FIRST}.*\[2, 5\]"),
    "other batch": (set_first(torch.ones(3, 4)), ShapeError, "same batch"),
    "layers as a list": (lambda c: c.update(layers=[torch.ones(2, 4)]), CheckpointError, "layers as list"),
    "layers as a tensor": (lambda c: c.update(layers=torch.ones(2, 4)), CheckpointError, "layers as Tensor"),
    "numbers as a list": (set_first([[0.5, 0.5]]), CheckpointError, f"{FIRST} as list"),
    "no settings": (lambda c: c.update(settings=None), CheckpointError, "settings as NoneType"),
    "not a number": (set_first(torch.full((2, 4), torch.nan)), ShapeError, "NaN"),
}


@pytest.mark.parametrize(("change", "error", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_coefficients_are_refused(change, error, message):
    coefficients = make_coefficients()
    change(coefficients)
    with pytest.raises(error, match=message):
        require_coefficients_of(BASIS, coefficients)


def test_coefficients_of_another_basis_are_refused_naming_both():
    other = Basis(layers=BASIS.layers, settings=BASIS.settings, basis_id="fedcba9876543210", name="other")
    with pytest.raises(CheckpointError, match=r"other \(id fedcba.*synthetic \(id 012345.*Connect the same basis"):
        require_coefficients_of(other, make_coefficients())


@pytest.mark.parametrize("value", [None, 3, [], {}])
def test_anything_else_on_the_socket_is_refused(value):
    with pytest.raises(LoRWeBError, match="Connect the output of Encode Analogy"):
        require_coefficients_of(BASIS, value)
