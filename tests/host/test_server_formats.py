"""Quantized bases and the host's own image encoder, in a running ComfyUI. Slow: large files on the oldest host."""

import shutil

import pytest
from safetensors.torch import load_file

from tests.host import graphs, models
from tests.host.conftest import GGUF_PACK, UNREAD_FILES

pytestmark = pytest.mark.slow
#: Of the edit's size: float8 is widened to float32, GGUF blocks to float16.
FP8_TOLERANCE, GGUF_TOLERANCE = 1e-5, 2e-3


@pytest.fixture
def folder(server):
    """The folder of diffusion models; what a test puts there goes again, it can be gigabytes."""
    folder = server.base / "models" / "diffusion_models"
    before = set(folder.iterdir())
    yield folder
    for path in set(folder.iterdir()) - before:
        path.unlink()


def sample(server, graph):
    """Return (latent, shown text)."""
    outcome = server.succeed(graph, timeout_seconds=580)
    return server.latent(outcome), outcome.text()


def assert_like_its_plain_twin(server, graph, plain_graph, tolerance):
    """The edit on a quantized base is the edit on a plain file with the same numbers, by another mode."""
    latent, report = sample(server, graph)
    assert "Mode: forward" in report, report
    plain, plain_report = sample(server, graphs.change(plain_graph, "LoRWeBApplyMixedLoRA", mode="weights"))
    assert "Mode: weights" in plain_report
    bare, _ = sample(server, graphs.without_apply(graph))
    change = (plain - bare).abs().mean()
    assert change > 0.05 * plain.abs().mean()
    difference = float((latent - plain).abs().mean() / change)
    assert difference < tolerance


def test_an_fp8_base(server, edit, folder):
    models.write_fp8_flux(folder / "fp8.safetensors", folder / "fp8_plain.safetensors", models.width_for(server.host))
    plain = graphs.change(edit, "UNETLoader", unet_name="fp8_plain.safetensors")
    # On a CPU the host's default widens such a file; this choice, which users of small GPUs make, keeps it.
    graph = graphs.change(edit, "UNETLoader", unet_name="fp8.safetensors", weight_dtype="fp8_e4m3fn")
    assert_like_its_plain_twin(server, graph, plain, FP8_TOLERANCE)


def test_a_scaled_fp8_base(server, edit, folder):
    names = ("scaled.safetensors", "scaled_plain.safetensors")
    models.write_scaled_fp8_flux(folder / names[0], folder / names[1], models.width_for(server.host))
    scaled, plain = (graphs.change(edit, "UNETLoader", unet_name=name) for name in names)
    assert_like_its_plain_twin(server, scaled, plain, FP8_TOLERANCE)
    _, report = sample(server, graphs.change(scaled, "LoRWeBApplyMixedLoRA", mode="weights"))
    assert "Quantized: 13 of 13 weights" in report and "rounds them again" in report, report


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_gguf_base(server, edit, folder, kind):
    if not GGUF_PACK.is_dir():
        pytest.skip("no ComfyUI-GGUF beside the host")
    name, plain_name = f"{kind}.gguf", f"{kind}_plain.safetensors"  # the host caches loaders by name
    width, python = models.width_for(server.host), server.host.python
    models.write_gguf_flux(folder / name, folder / plain_name, width, python=python, kind=kind)
    graph = {**edit, graphs.find_node(edit, "UNETLoader"): graphs.make_node("UnetLoaderGGUF", unet_name=name)}
    plain = graphs.change(edit, "UNETLoader", unet_name=plain_name)
    assert_like_its_plain_twin(server, graph, plain, GGUF_TOLERANCE)
    _, report = sample(server, graphs.change(graph, "LoRWeBApplyMixedLoRA", mode="weights"))
    assert "Quantized: 13 of 13 weights (GGMLTensor)" in report and "again in every step" in report, report


def test_the_host_s_own_vit_l_gives_the_same_mix_as_ours(server, tmp_path):
    """The workflow exactly as shipped, not a node swapped, against our encoder node on the same weights."""
    file = server.base / "models" / "clip_vision" / "clip-vit-large-patch14.safetensors"
    assert any(file.match(name) for name in UNREAD_FILES)
    encoder = file.with_name("vit_l")
    models.write_vit_l(file, encoder)
    try:
        server.succeed(graphs.load_twin(graphs.SAVE_LORA), timeout_seconds=580)
        assert "missing clip vision" not in server.log
        ours = graphs.load_runnable(graphs.SAVE_LORA)
        ours = graphs.change(ours, "LoRWeBLoadImageEncoder", encoder_name=encoder.name)
        server.succeed(ours, timeout_seconds=580)
    finally:
        shutil.rmtree(encoder)
        file.write_bytes(b"")
    first, second = map(load_file, sorted((server.base / "output" / "loras").glob("lorweb_*.safetensors"))[-2:])
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        difference = (tensor.float() - second[name].float()).norm()
        assert difference <= 0.01 * second[name].float().norm(), name
