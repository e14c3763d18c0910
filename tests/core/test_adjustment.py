"""Temperature, top-k and strength by part: identities, laws, and what is refused."""

import math

import pytest
import torch

from benchmarks.synthetic_basis import layer_sizes
from lorweb_core.adjustment import PART_NAMES, adjust_coefficients, parts_of_layers
from lorweb_core.coefficients import encode_coefficients, require_coefficients_of, with_layers
from lorweb_core.errors import SettingsError, ShapeError
from lorweb_core.mixing import layer_delta
from lorweb_core.settings import RouterSettings
from tests.synthetic import make_basis

BASIS = make_basis()
QUERY = torch.randn(2, 18, generator=torch.Generator().manual_seed(0))
FULL_MODEL = [name for name, _, _ in layer_sizes()]
FIRST = next(iter(BASIS.layers))


def analogy(basis=BASIS):
    return encode_coefficients(basis, QUERY)


def tanh_analogy():
    return analogy(make_basis(settings=RouterSettings(activation="tanh")))


def assert_equal(first, second):
    assert list(first["layers"]) == list(second["layers"])
    for name, mix in first["layers"].items():
        assert torch.equal(mix, second["layers"][name]), name


@pytest.mark.parametrize("make", [analogy, tanh_analogy])
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("top_k", [0, 4, 5, 10_000])
def test_defaults_and_top_n_of_n_change_no_bit(make, renormalize, top_k):
    ones = dict.fromkeys(PART_NAMES, 1.0)
    before = make()
    assert_equal(
        adjust_coefficients(before, temperature=1.0, top_k=top_k, renormalize=renormalize, part_strengths=ones), before
    )
    assert_equal(before, make())


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0, 10.0])
def test_a_temperature_is_the_routers_own(temperature):
    adjusted = adjust_coefficients(analogy(), temperature=temperature)
    for name, layer in BASIS.layers.items():
        scores = QUERY.double() @ layer.query_projection.double().t() @ layer.keys.double().t() / math.sqrt(8)
        expected = (scores / temperature).softmax(-1)
        torch.testing.assert_close(adjusted["layers"][name].double(), expected, atol=2e-5, rtol=2e-3)


def test_a_low_temperature_keeps_the_strongest_alone_and_a_high_one_makes_all_equal():
    cold, hot = (adjust_coefficients(analogy(), temperature=t)["layers"][FIRST] for t in (1e-3, 1e6))
    strongest = analogy()["layers"][FIRST].argmax(-1)
    assert torch.equal(cold, torch.nn.functional.one_hot(strongest, 4).float()) or cold.max(-1).values.min() > 0.99
    torch.testing.assert_close(hot, torch.full((2, 4), 0.25), atol=1e-4, rtol=0)


def test_temperatures_follow_each_other_by_multiplication():
    twice = adjust_coefficients(adjust_coefficients(analogy(), temperature=2.0), temperature=1.5)
    once = adjust_coefficients(analogy(), temperature=3.0)
    for name in BASIS.layers:
        torch.testing.assert_close(twice["layers"][name], once["layers"][name], atol=1e-6, rtol=1e-5)


def test_a_strength_given_before_survives_temperature_and_top_k():
    for strength in (0.5, -2.0, 0.0):
        scaled = with_layers(analogy(), {name: mix * strength for name, mix in analogy()["layers"].items()})
        for options in ({"temperature": 0.7}, {"top_k": 2}):
            adjusted, plain = adjust_coefficients(scaled, **options), adjust_coefficients(analogy(), **options)
            for name, mix in adjusted["layers"].items():
                torch.testing.assert_close(mix, plain["layers"][name] * strength, atol=1e-6, rtol=1e-5)


def test_top_k_keeps_the_largest_magnitudes_and_of_equal_ones_the_first():
    mix = torch.tensor([[0.1, -0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]])
    given = with_layers(analogy(), dict.fromkeys(BASIS.layers, mix))
    kept = adjust_coefficients(given, top_k=2, renormalize=False)["layers"][FIRST]
    assert torch.equal(kept, torch.tensor([[0, -0.4, 0.3, 0], [0.25, 0.25, 0, 0]]))
    scaled = adjust_coefficients(given, top_k=2)["layers"][FIRST]
    torch.testing.assert_close(scaled, torch.tensor([[0, -0.4 / 0.7, 0.3 / 0.7, 0], [0.5, 0.5, 0, 0]]))


def test_renormalized_layers_keep_their_sum():
    for options in ({"top_k": 1}, {"top_k": 3}, {"temperature": 0.3, "top_k": 2}):
        for mix in adjust_coefficients(analogy(), **options)["layers"].values():
            torch.testing.assert_close(mix.sum(-1), torch.ones(2), atol=1e-6, rtol=0)


def test_layers_of_zeros_stay_zero():
    zeros = with_layers(analogy(), {name: torch.zeros_like(mix) for name, mix in analogy()["layers"].items()})
    assert_equal(adjust_coefficients(zeros, temperature=0.5, top_k=1), zeros)


def test_every_part_strength_scales_the_delta_of_its_layers_and_no_other():
    parts = parts_of_layers(BASIS.layers)
    for part in PART_NAMES:
        adjusted = adjust_coefficients(analogy(), part_strengths={part: -0.5})
        for name, layer in BASIS.layers.items():
            factor = -0.5 if part in parts[name] else 1.0
            before, after = (layer_delta(layer, c["layers"][name][0]) for c in (analogy(), adjusted))
            torch.testing.assert_close(after, factor * before)


def test_parts_of_the_full_model_are_those_of_its_names():
    parts = parts_of_layers([*FULL_MODEL, "proj_out", "x_embedder"])
    for name, expected in {
        "transformer_blocks.0.norm1_context.linear": "modulation context early double",
        "transformer_blocks.5.attn.to_q": "attention early double",
        "transformer_blocks.6.attn.to_q": "attention middle double",
        "transformer_blocks.12.ff.net.2": "mlp middle double",
        "transformer_blocks.13.ff.net.2": "mlp late double",
        "single_transformer_blocks.12.proj_out": "mlp early single",
        "single_transformer_blocks.13.proj_mlp": "mlp middle single",
        "single_transformer_blocks.37.norm.linear": "modulation late single",
        "proj_out": "",
        "x_embedder": "",
    }.items():
        assert parts[name] == expected.split()


def test_thirds_of_a_block_list_are_equal_up_to_one_block():
    for kind, count in (("transformer_blocks", 19), ("single_transformer_blocks", 38)):
        parts = parts_of_layers([f"{kind}.{index}.attn.to_q" for index in range(count)]).values()
        sizes = [sum(third in part for part in parts) for third in ("early", "middle", "late")]
        assert sum(sizes) == count and max(sizes) - min(sizes) <= 1


def test_the_order_is_temperature_then_top_k_then_strengths():
    options = {"temperature": 0.5, "top_k": 2, "part_strengths": {"attention": 0.3}}
    step = analogy()
    for name, value in options.items():
        step = adjust_coefficients(step, **{name: value})
    assert_equal(adjust_coefficients(analogy(), **options), step)


def test_adjusted_coefficients_are_accepted_wherever_coefficients_are():
    require_coefficients_of(BASIS, adjust_coefficients(analogy(), top_k=1, part_strengths={"mlp": -1.5}))


BAD_SETTINGS = {
    "zero temperature": ({"temperature": 0.0}, ["above 0", "top_k 1"]),
    "nan temperature": ({"temperature": float("nan")}, ["above 0", "nan"]),
    "negative top_k": ({"top_k": -1}, ["top_k is -1", "Use 0"]),
    "unknown part": (
        {"part_strengths": {"atention": 1}},
        ["'atention'", "modulation, attention", "Did you mean 'attention'"],
    ),
    "overflowing strength": ({"part_strengths": {"attention": 1e39}}, ["attention 1e+39", "float32", "Use smaller"]),
    "overflowing product": (
        {"part_strengths": {"attention": 1e20, "double": 1e20}},
        ["attention 1e+20, double 1e+20", "attn.to_q"],
    ),
    "infinite strength": ({"part_strengths": {"mlp": float("inf")}}, ["finite", "mlp is inf"]),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_refused(case):
    options, words = BAD_SETTINGS[case]
    with pytest.raises(SettingsError) as raised:
        adjust_coefficients(analogy(), **options)
    for word in words:
        assert word in str(raised.value)


def test_a_temperature_is_refused_for_tanh_and_for_mixed_signs():
    with pytest.raises(SettingsError, match=r"is 0.5, but this basis uses tanh.*Leave the temperature at 1"):
        adjust_coefficients(tanh_analogy(), temperature=0.5)
    mixed = with_layers(analogy(), {**analogy()["layers"], FIRST: torch.tensor([[1.5, -0.5, 0, 0]] * 2)})
    with pytest.raises(ShapeError, match=f"{FIRST} has negative and positive.*before a blend"):
        adjust_coefficients(mixed, temperature=0.5)
