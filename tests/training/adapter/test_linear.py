"""The trained Linear and the stacked router against `lorweb_core`, plain sums, and what blocks expect of a Linear."""

import pytest
import torch
from torch import nn

from lorweb_core.basis import Basis
from lorweb_core.mixing import layer_delta
from lorweb_core.router import route_query
from lorweb_core.settings import RouterSettings
from training.adapter.linear import LoRWeBLinear, StackedRouter, hand_out_coefficients, target_layers
from training.adapter.trainable import BasisShape, TrainableKontext


def _linear(basis_size=3, rank=2, dtype=torch.float32):
    torch.manual_seed(0)
    linear = LoRWeBLinear(nn.Linear(10, 6).to(dtype), 10, 6, basis_size=basis_size, rank=rank)
    nn.init.normal_(linear.down)
    nn.init.normal_(linear.up)
    return linear


@pytest.mark.parametrize("shape", [(2, 10), (2, 5, 10), (2, 3, 4, 10)])
def test_output_is_the_base_plus_the_weighted_sum_of_adapters(shape):
    linear, x, coefficients = _linear(), torch.randn(shape), torch.randn(2, 3)
    linear.scale = coefficients.repeat_interleave(2, dim=-1)
    expected = linear.base(x).double()
    for sample in range(2):
        for n in range(3):
            down, up = linear.down[2 * n : 2 * n + 2].double(), linear.up[2 * n : 2 * n + 2].double()
            expected[sample] += coefficients[sample, n].double() * (x[sample].double() @ down.t() @ up)
    torch.testing.assert_close(linear(x).double(), expected, atol=1e-5, rtol=1e-5)


def test_base_is_frozen_its_facts_are_visible_and_forgotten_coefficients_are_noticed():
    linear = _linear()
    with pytest.raises(AssertionError, match="hand_out_coefficients comes first"):
        linear(torch.randn(2, 5, 10))
    assert {name for name, p in linear.named_parameters() if p.requires_grad} == {"down", "up"}
    assert (linear.weight is linear.base.weight, linear.bias is linear.base.bias) == (True, True)
    assert (linear.in_features, linear.out_features) == (10, 6)


def test_maths_runs_in_the_dtype_of_the_base_and_gradients_reach_float32_masters():
    linear = _linear(dtype=torch.bfloat16)
    linear.scale = torch.rand(2, 6, requires_grad=True)
    output = linear(torch.randn(2, 5, 10, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert linear.down.grad.dtype == linear.up.grad.dtype == linear.scale.grad.dtype == torch.float32


def test_initialisation_is_the_references():
    linear = LoRWeBLinear(nn.Linear(50, 6), 50, 6, basis_size=8, rank=2)
    linear.initialize(torch.Generator().manual_seed(1))
    bound = 1 / (50 * 2) ** 0.5
    assert 0.95 * bound < float(linear.down.detach().abs().max()) <= bound
    assert float(linear.up.detach().abs().max()) == 0
    router = StackedRouter(6, 8, 16, query_dim=36, settings=RouterSettings())
    router.initialize(torch.Generator().manual_seed(1))
    assert abs(float(router.keys.detach().std()) - 1) < 0.1
    assert 0.95 / 6 < float(router.query_projection.detach().abs().max()) <= 1 / 6


@pytest.mark.parametrize(
    "settings",
    [RouterSettings(), RouterSettings(heads=2, reduction="sum"), RouterSettings(activation="tanh", heads=4)],
)
def test_stacked_router_gives_the_coefficients_of_the_core(golden_transformer, settings):
    model = TrainableKontext(golden_transformer, BasisShape(4, 2, 8, 18), settings)
    basis = Basis(model.layers(), settings, basis_id="x")
    query = torch.randn(3, 18)
    expected = route_query(basis, query)
    for name, coefficients in zip(model.linears, model.router(query).detach(), strict=True):
        torch.testing.assert_close(coefficients, expected[name], atol=1e-6, rtol=1e-5)


def test_gain_multiplies_coefficients_and_is_in_the_saved_layers(golden_trainable):
    plain = golden_trainable("basis_A")
    before = {name: layer_delta(layer, torch.ones(4)) for name, layer in plain.layers().items()}
    query = torch.randn(1, 36)
    coefficients = plain.router(query)
    plain.shape = BasisShape(4, 2, 8, 36, coefficient_gain=4.0)
    plain.router.gain = 4.0
    torch.testing.assert_close(plain.router(query), 4 * coefficients)
    for name, layer in plain.layers().items():
        torch.testing.assert_close(layer_delta(layer, torch.ones(4)), 4 * before[name])


def test_coefficients_are_handed_out_in_the_order_of_the_layers():
    linears = {"one": _linear(), "two": _linear()}
    hand_out_coefficients(linears, torch.arange(2 * 1 * 3).view(2, 1, 3).float())
    assert linears["two"].scale.tolist() == [[3, 3, 4, 4, 5, 5]]


def test_all_linears_of_both_block_types_are_trained_and_a_pattern_that_matches_none_is_refused(golden_transformer):
    names = target_layers(golden_transformer)
    assert len(names) == 2 * 14 + 2 * 6
    assert all(name.startswith(("transformer_blocks.", "single_transformer_blocks.")) for name in names)
    with pytest.raises(ValueError, match=r"basis\.include"):
        target_layers(golden_transformer, include=("*.to_w",))


def test_published_model_has_494_layers_and_835051520_parameters():
    from diffusers import FluxTransformer2DModel

    from training.base.source import FULL_SIZE_CONFIG
    from training.config.reading import read_config
    from training.run.memory import estimate_memory

    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**FULL_SIZE_CONFIG)
    config = read_config("paper.yaml", ["data.index=x"])
    assert len(target_layers(transformer)) == 494
    assert estimate_memory(config, FULL_SIZE_CONFIG, 2304).gradients == 4 * 835_051_520


@pytest.mark.slow
def test_regional_compile_has_no_graph_break_and_equals_eager(golden_trainable):
    """Traced and differentiated as on a GPU, without the code generation (minutes on a CPU)."""
    from training.base.transformer import Conditioning

    model = golden_trainable("basis_A")
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    latents, noise, context = normal(2, 16, 8, 8), normal(2, 16, 8, 8), normal(2, 16, 8, 8)
    conditioning = Conditioning(context, normal(2, 7, 32), normal(2, 16), normal(2, 36), 1.0)
    sigmas, weights = torch.tensor([0.3, 0.8]), torch.ones(2)
    eager = model(latents, noise, sigmas, weights, conditioning).detach()
    model.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    compiled = model(latents, noise, sigmas, weights, conditioning)
    torch.testing.assert_close(compiled.detach(), eager, atol=1e-5, rtol=1e-5)
    compiled.sum().backward()
    assert all(parameter.grad is not None for parameter in model.adapter_parameters())
