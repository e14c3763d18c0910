"""Memory that really runs out: nodes say so, and leave nothing half-written."""

import contextlib
import resource
import tempfile
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import torch
from comfyui_lorweb.lorweb_core.basis import Basis, LayerBasis
from comfyui_lorweb.lorweb_core.coefficients import encode_coefficients
from comfyui_lorweb.lorweb_core.errors import LoRWeBError
from comfyui_lorweb.lorweb_core.settings import RouterSettings
from comfyui_lorweb.nodes.analogy import EncodeAnalogy
from comfyui_lorweb.nodes.coefficients import SaveCoefficients
from comfyui_lorweb.nodes.export import SaveMixedLoRA
from comfyui_lorweb.nodes.grid import BuildGrid
from comfyui_lorweb.nodes.sockets import LoadedBasis
from refusals import expect

#: Views of one pixel and of one number: small themselves, 1.2 GB and more for whoever computes with them.
HUGE_IMAGE = torch.full((1, 1, 1, 3), 0.5).expand(1, 10_000, 10_000, 3)
NUMBER = torch.ones(1, 1, 1)
HUGE_LAYER = LayerBasis(NUMBER.expand(8, 16, 2_000_000), NUMBER.expand(8, 4, 16), torch.ones(8, 3), torch.ones(3, 6))
LAYER = LayerBasis(torch.ones(2, 1, 4), torch.ones(2, 4, 1), torch.ones(2, 3), torch.ones(3, 6))
WORDS = ("not enough memory (RAM)", "Close other programs")


def make_basis(layer):
    layers = {"transformer_blocks.0.attn.to_q": layer}
    return LoadedBasis(Basis(layers, RouterSettings(), basis_id="id", name="memory.safetensors"))


@contextlib.contextmanager
def little_memory(spare_bytes=200_000_000):
    """Let this process take only so much more memory than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + spare_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def check_encoding_and_grids_without_memory_say_so():
    encode, vision = EncodeAnalogy().encode, SimpleNamespace(encode_image=None)
    with little_memory():
        expect(LoRWeBError, ("Encode Analogy", *WORDS), encode, make_basis(LAYER), vision, *[HUGE_IMAGE] * 3)
        expect(LoRWeBError, ("Build Analogy Grid", *WORDS), BuildGrid().build, *[HUGE_IMAGE] * 3, 1.0, "pad")


def check_saving_without_memory_says_so_and_leaves_nothing():
    output = tempfile.mkdtemp()
    folder_paths.set_output_directory(output)
    huge, save = make_basis(HUGE_LAYER), SaveMixedLoRA().save
    coefficients = encode_coefficients(huge.basis, torch.ones(1, 6))
    with little_memory():
        expect(LoRWeBError, ("Save Mixed LoRA", *WORDS), save, huge, coefficients, "x", 1.0, 0, "bf16")
        expect(LoRWeBError, ("Save Coefficients", *WORDS), SaveCoefficients().save, coefficients, "x", "", HUGE_IMAGE)
    assert not list(Path(output).iterdir())


def check_the_hosts_own_handling_of_a_full_gpu_still_sees_its_error():
    def fail(images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    image = torch.rand(1, 64, 64, 3)
    encode, vision = EncodeAnalogy().encode, SimpleNamespace(encode_image=fail)
    expect(torch.OutOfMemoryError, ("CUDA",), encode, make_basis(LAYER), vision, image, image, image)
