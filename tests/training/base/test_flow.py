"""One training step against the published trainer's numbers, and laws of noise, weights and loss."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import GOLDEN
from training.base.flow import (
    add_noise,
    bell_weights,
    draw_sigma,
    quadrant_weights,
    sample_generator,
    sample_losses,
    velocity_target,
)
from training.base.transformer import Conditioning


@pytest.fixture(params=["train_bs1", "train_bs2"])
def golden_step(request):
    facts = json.loads((GOLDEN / f"{request.param}.json").read_text())
    return facts, load_file(GOLDEN / f"{request.param}.safetensors")


def test_weights_and_noisy_latents_of_the_reference_are_reproduced(golden_step):
    _, tensors = golden_step
    torch.testing.assert_close(bell_weights()[tensors["timestep_index"]], tensors["timestep_weight"], atol=1e-6, rtol=0)
    assert abs(float(bell_weights().mean()) - 1) < 1e-6
    assert (float(bell_weights()[0]), float(bell_weights()[500])) == (0, pytest.approx(1.580, abs=1e-3))
    noisy = add_noise(tensors["latents"], tensors["noise"], tensors["timesteps"] / 1000)
    torch.testing.assert_close(noisy, tensors["noisy_latents"], atol=1e-6, rtol=0)
    torch.testing.assert_close(velocity_target(tensors["latents"], tensors["noise"]), tensors["target"])


def test_loss_and_gradients_of_the_reference_are_reproduced(golden_step, golden_trainable, machine_error):
    facts, tensors = golden_step
    model = golden_trainable("basis_A")
    losses = model(
        tensors["latents"],
        tensors["noise"],
        tensors["timesteps"] / 1000,
        bell_weights()[tensors["timestep_index"]],
        Conditioning(
            context_latents=tensors["control_latents"],
            prompt_embeds=tensors["encoder_hidden_states"],
            pooled_embeds=tensors["pooled_projections"],
            query_embedding=tensors["external_query"].flatten(1),
            guidance=facts["guidance_embedding"],
        ),
    )
    loss = losses.mean()
    loss.backward()
    assert abs(float(loss.detach()) - facts["loss"]) < 1e-5 + machine_error
    trained = model.adapter_parameters() + model.router_parameters()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained])
    assert abs(float(norm) - facts["grad_global_norm"]) < 1e-5 + machine_error
    compared = 0
    for name in (name for name in tensors if name.startswith("grad.") and name.endswith("lora_A")):
        layer = name.removeprefix("grad.").removesuffix(".lora_A")
        for suffix, gradient in _gradients_in_file_layout(model, layer).items():
            wanted = tensors[f"grad.{layer}.{suffix}"]
            torch.testing.assert_close(gradient, wanted, atol=1e-5 + machine_error, rtol=1e-5)
            compared += 1
    assert compared == 12


def _gradients_in_file_layout(model, layer):
    linear, index = model.linears[layer], list(model.linears).index(layer)
    sizes = (model.shape.basis_size, model.shape.rank)
    return {
        "lora_A": linear.down.grad.unflatten(0, sizes).transpose(1, 2),
        "lora_B": linear.up.grad.unflatten(0, sizes),
        "lora_keys": model.router.keys.grad[index],
        "att_lora_to_q.weight": model.router.query_projection.grad.unflatten(0, (len(model.linears), -1))[index],
    }


@pytest.mark.parametrize("mode", ["bell", "uniform", "logit_normal", "shifted"])
def test_sigmas_are_within_the_open_range_and_repeatable(mode):
    drawn = [draw_sigma(mode, sample_generator(7, step, 0)) for step in range(200)]
    assert drawn == [draw_sigma(mode, sample_generator(7, step, 0)) for step in range(200)]
    assert all(0 < sigma <= 1 for sigma, _ in drawn)
    assert len({sigma for sigma, _ in drawn}) > 100


def test_shifted_sigmas_are_noisier_than_uniform_ones():
    def mean(mode):
        return sum(draw_sigma(mode, sample_generator(1, step, 0))[0] for step in range(500)) / 500

    assert 0.45 < mean("uniform") < 0.55
    assert mean("shifted") > mean("uniform") + 0.1


def test_every_sample_has_its_own_noise():
    places = [(1, 5, 0), (1, 5, 1), (1, 6, 0), (2, 5, 0)]
    noises = {tuple(torch.randn(8, generator=sample_generator(*place)).tolist()) for place in places}
    assert len(noises) == 4


def test_answer_quadrant_is_weighed_the_mean_stays_one_and_zero_ignores_the_copied_quadrants():
    weights = quadrant_weights(4, 6, 0.25)
    assert abs(float(weights.mean()) - 1) < 1e-6
    torch.testing.assert_close(weights[3, 5] * 0.25, weights[0, 0])
    assert torch.equal(quadrant_weights(4, 6, 1.0), torch.ones(4, 6))
    prediction, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    prediction[:, :, :2] = 9
    assert float(sample_losses(prediction, target, torch.ones(1), copied_weight=0.0)) == 0
