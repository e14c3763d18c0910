"""A base with fp8 weights: forward mode leaves them as they are and adds the edit exactly."""

import torch
from comfyui_lorweb.nodes.apply import ApplyMixedLoRA
from seeded_basis import make_coefficients, make_loaded_basis
from tiny_flux import TINY, build_flux, sample_once, seeded_state_dict

FP8 = torch.float8_e4m3fn


def build_fp8_and_its_exact_twin():
    """Return a model with fp8 weights computing in float32, and a float32 model of the same rounded weights."""
    weights = seeded_state_dict(build_flux(TINY).model.diffusion_model, 0)
    rounded = {name: tensor.to(FP8).float() for name, tensor in weights.items()}
    quantized = build_flux(
        TINY, {name: tensor.to(FP8) for name, tensor in rounded.items()}, dtype=FP8, cast_to=torch.float32
    )
    return quantized, build_flux(TINY, rounded)


def check_forward_on_fp8_equals_weights_on_the_same_numbers_unquantized():
    quantized, exact = build_fp8_and_its_exact_twin()
    loaded = make_loaded_basis(quantized, size=0.1)
    coefficients = make_coefficients(loaded)
    forward = sample_once(ApplyMixedLoRA().apply(quantized, loaded, coefficients, 1.0, "forward")[0])
    expected = sample_once(ApplyMixedLoRA().apply(exact, loaded, coefficients, 1.0, "weights")[0])
    effect = (expected - sample_once(exact)).norm()
    assert (forward - expected).norm() < 1e-4 * effect
    report = ApplyMixedLoRA().apply(quantized, loaded, coefficients, 1.0, "weights")[1]
    assert "13 of 13 weights (torch.float8_e4m3fn), and the host rounds them again" in report, report
    rerounded = sample_once(ApplyMixedLoRA().apply(quantized, loaded, coefficients, 1.0, "weights")[0])
    assert (rerounded - expected).norm() > 100 * (forward - expected).norm()
    assert torch.equal(sample_once(quantized), sample_once(build_fp8_and_its_exact_twin()[0]))
