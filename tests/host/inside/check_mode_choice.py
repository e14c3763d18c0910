"""Which mode `auto` takes: by the room for originals, by the room for the model, and the same for each new analogy."""

import contextlib

import comfy.model_management
import torch
from comfyui_lorweb.nodes import host, mode_choice
from comfyui_lorweb.nodes.apply import ApplyMixedLoRA
from comfyui_lorweb.nodes.targets import find_targets
from seeded_basis import make_coefficients, make_loaded_basis
from tiny_flux import TINY, build_flux, sample_once, seeded_state_dict

META = torch.device("meta")  # stands for a GPU: on it nothing is computed here, only asked
GIGABYTE = 10**9


@contextlib.contextmanager
def replaced(owner, **values):
    """Give attributes other values for the length of a block."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def make_case(**options):
    model = build_flux(TINY, **options)
    loaded = make_loaded_basis(model)
    return model, loaded, sum(target.weight_bytes for target in find_targets(model, loaded.basis))


def report_of(model, loaded, mode="auto", seed=1):
    return ApplyMixedLoRA().apply(model, loaded, make_coefficients(loaded, seed=seed), 1.0, mode)[1]


def check_auto_takes_weights_when_a_fifth_more_than_the_originals_is_free():
    model, loaded, needed = make_case()
    for extra, mode, words in ((1, "weights", "plain weights;"), (0, "forward", "too little room;")):
        with replaced(host, free_bytes=lambda device, free=int(1.2 * needed) + extra: free):
            report = report_of(model, loaded)
        assert report.startswith(f"Mode: {mode} ({words}"), report
        assert "of originals for RAM, " in report, report


def check_auto_stays_with_its_mode_from_one_analogy_to_the_next():
    model, loaded, needed = make_case()
    for room, mode in ((1.3 * needed, "weights"), (1.1 * needed, "forward")):

        def free(device, room=room):
            return int(room) - sum(
                entry.weight.numel() * entry.weight.element_size() for entry in model.backup.values()
            )

        with replaced(host, free_bytes=free):
            for seed in range(3):
                patched, report = ApplyMixedLoRA().apply(
                    model, loaded, make_coefficients(loaded, seed=seed), 1.0, "auto"
                )
                assert report.startswith(f"Mode: {mode}"), (seed, report)
                sample_once(patched)
        assert bool(model.backup) == (mode == "weights")
        comfy.model_management.unload_all_models()


def check_weights_that_idle_on_the_offload_device_are_originals_already_there():
    model, loaded, needed = make_case()
    targets = find_targets(model, loaded.basis)
    assert mode_choice.find_originals(model, targets).held_bytes == 0, "a CPU needs the patched copies beside them"
    model.load_device = META
    originals = mode_choice.find_originals(model, targets)
    assert originals.held_bytes == originals.total_bytes == needed
    assert originals.have_room(free_bytes=needed) and not originals.have_room(free_bytes=0)


def check_auto_takes_forward_when_the_model_does_not_fit_its_load_device():
    model, loaded, _ = make_case()
    management = comfy.model_management
    model.load_device, size = META, model.model_size()
    inference = int(management.minimum_inference_memory()) + 1
    states = management.VRAMState
    cases = (
        (states.NORMAL_VRAM, inference + size, "weights"),
        (states.NORMAL_VRAM, inference + size - 2, "forward"),
        (states.LOW_VRAM, inference + size - 2, "forward"),
        (states.NO_VRAM, 100 * GIGABYTE, "forward"),
        (states.HIGH_VRAM, 0, "weights"),
    )
    for state, free, mode in cases:

        def free_bytes(device, free=free):
            return free if device == META else 100 * GIGABYTE

        with replaced(host, free_bytes=free_bytes), replaced(management, vram_state=state):
            report = report_of(model, loaded)
            asked = report_of(model, loaded, "weights")
        assert report.startswith(f"Mode: {mode}"), (state, free, report)
        assert ("do not fit meta whole" in report) == (mode == "forward"), report
        assert ("Slow: " in asked and "Mode forward costs less" in asked) == (mode == "forward"), asked


def check_what_the_host_would_unload_counts_as_room():
    model, _, _ = make_case()
    other = build_flux(TINY)
    other.load_device = model.load_device = META
    management = comfy.model_management
    other.model.model_loaded_weight_memory = GIGABYTE
    with (
        replaced(management, vram_state=management.VRAMState.NORMAL_VRAM, loaded_models=lambda: [other, None]),
        replaced(host, free_bytes=lambda device: 2 * GIGABYTE),
    ):
        assert host.room_for_weights(model) == int(3 * GIGABYTE - management.minimum_inference_memory())
    with replaced(management, vram_state=None):
        assert host.room_for_weights(model) is None, "a host that does not say is taken to fit"


def check_originals_that_stay_on_the_gpu_need_its_memory():
    model, loaded, needed = make_case()
    model.offload_device = META  # as with --highvram and --gpu-only
    for free, mode in ((2 * needed, "weights"), (needed, "forward")):
        with replaced(host, free_bytes=lambda device, free=free: free if device == META else 0):
            report = report_of(model, loaded)
        assert report.startswith(f"Mode: {mode}") and "of originals for meta" in report, report
    assert "of originals kept by the host in meta" in report_of(model, loaded, "weights")


def check_dynamic_vram_keeps_no_originals():
    model, loaded, _ = make_case()
    with replaced(host, free_bytes=lambda device: 0):
        assert report_of(model, loaded).startswith("Mode: forward")
        model.is_dynamic = lambda: True
        report = report_of(model, loaded)
    assert report.startswith("Mode: weights (plain weights; the host keeps no originals)"), report
    assert "of patches, no originals kept" in report, report


def check_weights_asked_for_on_quantised_weights_warns():
    seeded = seeded_state_dict(build_flux(TINY).model.diffusion_model, 0)
    float8 = torch.float8_e4m3fn
    weights = {name: tensor.to(float8) for name, tensor in seeded.items()}
    model = build_flux(TINY, weights, dtype=float8, cast_to=torch.float32)
    loaded = make_loaded_basis(model)
    report = report_of(model, loaded, "weights")
    assert "Noise: 13 of 13 weights are quantised (torch.float8_e4m3fn)" in report, report
    assert "of originals kept by the host in RAM" in report, report
    for mode in ("auto", "forward"):
        assert "Noise" not in report_of(model, loaded, mode)
    plain, loaded, _ = make_case()
    assert "Noise" not in report_of(plain, loaded, "weights") and "Slow" not in report_of(plain, loaded, "weights")


def check_weights_asked_for_on_gguf_warns_of_each_step():
    model, loaded, _ = make_case()
    gguf = type("GGMLTensor", (torch.nn.Parameter,), {})
    for target in find_targets(model, loaded.basis):
        target.module.weight.__class__ = gguf
    report = report_of(model, loaded, "weights")
    assert "Slow: 13 of 13 weights are quantised (GGMLTensor)" in report, report
    assert "of patches, no originals kept" in report and "Noise" not in report, report
