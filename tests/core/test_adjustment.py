"""Temperature, top-k and strength by part: identities, laws, and what is refused."""

import math

import pytest
import torch

from benchmarks.synthetic_basis import layer_sizes
from lorweb_core.adjustment import PART_NAMES, adjust_coefficients, parts_of_layers
from lorweb_core.coefficients import require_coefficients_of
from lorweb_core.errors import SettingsError, ShapeError
from lorweb_core.mixing import layer_delta
from lorweb_core.settings import RouterSettings
from tests.synthetic import assert_same_coefficients, change_layers, make_basis, make_coefficients

BASIS = make_basis()
TANH = make_basis(settings=RouterSettings(activation="tanh"))
FIRST = next(iter(BASIS.layers))


@pytest.mark.parametrize("basis", [BASIS, TANH], ids=["softmax", "tanh"])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("top_k", [0, 4, 5, 10_000])
def test_defaults_and_top_n_of_n_change_no_bit(basis, renormalize, top_k):
    ones, before = dict.fromkeys(PART_NAMES, 1.0), make_coefficients(basis=basis)
    adjusted = adjust_coefficients(before, temperature=1.0, top_k=top_k, renormalize=renormalize, part_strengths=ones)
    assert_same_coefficients(adjusted, before)
    assert_same_coefficients(before, make_coefficients(basis=basis))


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 0.5, 2.0, 10.0, 1e6])
def test_a_temperature_is_the_routers_own(temperature):
    query = torch.randn(2, 18, generator=torch.Generator().manual_seed(0))  # that of `make_coefficients`
    adjusted = adjust_coefficients(make_coefficients(), temperature=temperature)
    for name, layer in BASIS.layers.items():
        scores = query.double() @ layer.query_projection.double().t() @ layer.keys.double().t() / math.sqrt(8)
        expected = (scores / temperature).softmax(-1)
        torch.testing.assert_close(adjusted["layers"][name].double(), expected, atol=2e-5, rtol=2e-3)


def test_a_strength_given_before_survives_temperature_and_top_k():
    for strength in (0.5, -2.0, 0.0):
        scaled = change_layers(make_coefficients(), lambda mix, strength=strength: mix * strength)
        for options in ({"temperature": 0.7}, {"top_k": 2}):
            adjusted, plain = (
                adjust_coefficients(scaled, **options),
                adjust_coefficients(make_coefficients(), **options),
            )
            for name, mix in adjusted["layers"].items():
                torch.testing.assert_close(mix, plain["layers"][name] * strength, atol=1e-6, rtol=1e-5)


def test_top_k_keeps_the_largest_magnitudes_and_of_equal_ones_the_first():
    mix = torch.tensor([[0.1, -0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]])
    given = change_layers(make_coefficients(), lambda _: mix)
    kept = adjust_coefficients(given, top_k=2, renormalize=False)["layers"][FIRST]
    assert torch.equal(kept, torch.tensor([[0, -0.4, 0.3, 0], [0.25, 0.25, 0, 0]]))
    scaled = adjust_coefficients(given, top_k=2)["layers"][FIRST]
    torch.testing.assert_close(scaled, torch.tensor([[0, -0.4 / 0.7, 0.3 / 0.7, 0], [0.5, 0.5, 0, 0]]))


def test_every_part_strength_scales_the_delta_of_its_layers_and_no_other():
    parts = parts_of_layers(BASIS.layers)
    for part in PART_NAMES:
        adjusted = adjust_coefficients(make_coefficients(), part_strengths={part: -0.5})
        for name, layer in BASIS.layers.items():
            factor = -0.5 if part in parts[name] else 1.0
            before, after = (layer_delta(layer, c["layers"][name][0]) for c in (make_coefficients(), adjusted))
            torch.testing.assert_close(after, factor * before)


def test_parts_of_the_full_model_are_those_of_its_names():
    parts = parts_of_layers([*(name for name, _, _ in layer_sizes()), "proj_out", "x_embedder"])
    for name, expected in {
        "transformer_blocks.0.norm1_context.linear": "modulation context early double",
        "transformer_blocks.5.attn.to_q": "attention early double",
        "transformer_blocks.6.attn.to_q": "attention middle double",
        "transformer_blocks.12.ff.net.2": "mlp middle double",
        "transformer_blocks.13.ff.net.2": "mlp late double",
        "single_transformer_blocks.12.proj_out": "mlp early single",
        "single_transformer_blocks.13.proj_mlp": "mlp middle single",
        "single_transformer_blocks.24.attn.to_q": "attention middle single",
        "single_transformer_blocks.25.attn.to_q": "attention late single",
        "single_transformer_blocks.37.norm.linear": "modulation late single",
        "proj_out": "",
        "x_embedder": "",
    }.items():
        assert parts[name] == expected.split()


def test_the_order_is_temperature_then_top_k_then_strengths():
    options = {"temperature": 0.5, "top_k": 2, "part_strengths": {"attention": 0.3}}
    step = make_coefficients()
    for name, value in options.items():
        step = adjust_coefficients(step, **{name: value})
    together = adjust_coefficients(make_coefficients(), **options)
    assert_same_coefficients(together, step)
    require_coefficients_of(BASIS, together)


BAD_SETTINGS = {
    "zero temperature": ({"temperature": 0.0}, "above 0.*top_k 1"),
    "nan temperature": ({"temperature": float("nan")}, "is nan.*above 0"),
    "negative top_k": ({"top_k": -1}, "top_k is -1.*Use 0"),
    "unknown part": ({"part_strengths": {"atention": 1}}, "'atention'.*modulation, .*Did you mean 'attention'"),
    "overflowing strength": ({"part_strengths": {"attention": 1e39}}, r"attention 1e\+39.*float32.*Use smaller"),
    "overflowing product": (
        {"part_strengths": {"attention": 1e20, "double": 1e20}}, r"attention 1e\+20, double 1e\+20.*attn.to_q"
    ),
    "infinite strength": ({"part_strengths": {"mlp": float("inf")}}, "mlp is inf.*finite"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        adjust_coefficients(make_coefficients(), **options)


def test_a_temperature_is_refused_for_tanh_and_for_mixed_signs():
    with pytest.raises(SettingsError, match=r"is 0.5, but this basis uses tanh.*Leave the temperature at 1"):
        adjust_coefficients(make_coefficients(basis=TANH), temperature=0.5)
    mixed = make_coefficients()
    mixed["layers"][FIRST] = torch.tensor([[1.5, -0.5, 0, 0]] * 2)
    with pytest.raises(ShapeError, match=f"{FIRST} has negative and positive.*before a blend"):
        adjust_coefficients(mixed, temperature=0.5)
