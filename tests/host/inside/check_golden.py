"""The reference run's outputs, reproduced by our Apply inside the host's own Flux, in both modes."""

from pathlib import Path

import comfy.model_management
import torch
from comfyui_lorweb.lorweb_core.checkpoint import load_basis
from comfyui_lorweb.lorweb_core.coefficients import encode_coefficients
from comfyui_lorweb.nodes.apply import ApplyMixedLoRA
from comfyui_lorweb.nodes.sockets import LoadedBasis
from safetensors.torch import load_file
from tiny_flux import GOLDEN as CONFIG
from tiny_flux import build_flux, convert_from_diffusers

GOLDEN = Path(__file__).parents[2] / "golden"


def run_model(patcher, recorded):
    """Return the velocity [B, 2n, 64] of the host's Flux for the recorded inputs."""
    comfy.model_management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])
    return patcher.model.diffusion_model.forward_orig(
        recorded["in.hidden_states"],
        recorded["in.img_ids"].expand(len(recorded["in.hidden_states"]), -1, -1),
        recorded["in.encoder_hidden_states"],
        recorded["in.txt_ids"].expand(len(recorded["in.hidden_states"]), -1, -1),
        recorded["in.timestep"],
        recorded["in.pooled_projections"],
        recorded["in.guidance"],
    )


def reproduce(case, modes):
    """Compare base and adapted outputs of one golden case."""
    state_dict = convert_from_diffusers(load_file(GOLDEN / "base_model.safetensors"), CONFIG)
    model = build_flux(CONFIG, state_dict)
    recorded = load_file(GOLDEN / f"io_{case}.safetensors")
    torch.testing.assert_close(run_model(model, recorded), recorded["out.base"], atol=2e-5, rtol=0)
    basis = load_basis(GOLDEN / f"basis_{case}.safetensors")
    coefficients = encode_coefficients(basis, recorded["in.external_query"])
    for mode in modes:
        patched, report = ApplyMixedLoRA().apply(model, LoadedBasis(basis), coefficients, 1.0, mode)
        assert f"Mode: {mode}" in report and "40 matched" in report, report
        torch.testing.assert_close(run_model(patched, recorded), recorded["out.lora"], atol=2e-5, rtol=0)
    assert torch.equal(run_model(model, recorded), run_model(build_flux(CONFIG, state_dict), recorded))


def check_case_A():
    reproduce("A", ["weights", "forward"])


def check_case_B_tanh():
    reproduce("B", ["weights", "forward"])


def check_case_C_two_heads_summed():
    reproduce("C", ["weights", "forward"])


def check_case_D_single_adapter():
    reproduce("D", ["weights", "forward"])


def check_case_E_grid_query():
    reproduce("E", ["weights", "forward"])


def check_case_F_one_mix_per_sample():
    reproduce("F", ["forward"])


def check_case_G_tanh_heads_summed():
    reproduce("G", ["weights", "forward"])


def check_case_H_float16_file():
    reproduce("H", ["weights", "forward"])
