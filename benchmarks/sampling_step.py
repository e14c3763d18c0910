"""What does a sampling step cost in each patch mode?

One double and one single block of FLUX.1 at full width (3072), 1024 image + 256 text tokens, a basis of N 32, rank 4 on
all 20 Linears. Compared: the bare model, mode weights, mode forward; and, on the modules that the host's own bypass
loader covers (no q, k, v, proj_mlp), mode forward next to that loader.

    COMFYUI_PATH/.venv/bin/python benchmarks/sampling_step.py COMFYUI_PATH [--dtype fp32|bf16] [--rounds 9]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BYPASS_COVERS = ("norm", "to_out", "to_add_out", "ff", "proj_out")


def load_by_path(name: str, path: Path, **options: list[str]) -> object:
    """Import a file under a fixed name, as the host's process has names of its own."""
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Parse, import the host, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", type=Path)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    sys.argv = sys.argv[:1]
    sys.path[0] = str(options.host)
    import comfy.cli_args
    import torch

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    machine = load_by_path("machine", ROOT / "benchmarks" / "machine.py")
    load_by_path("comfyui_lorweb", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    for helper in ("tiny_flux", "seeded_basis"):
        load_by_path(helper, ROOT / "tests" / "host" / "inside" / f"{helper}.py")
    with torch.inference_mode():
        dtype = torch.float32 if options.dtype == "fp32" else torch.bfloat16
        result = measure(machine, dtype, options.rounds)
    version = (options.host / "comfyui_version.py").read_text().split('"')[1]
    machine.save_result(f"sampling_step-{options.dtype}", {"comfyui": version, "dtype": options.dtype, **result})


def measure(machine, dtype, rounds):  # noqa: ANN001, ANN201 - types of the host's process
    """Return the ratios of all variants to the bare model, and of ours to the host's bypass loader."""
    variants, inputs = build_variants(dtype), step_inputs(dtype)
    seconds = {name: [] for name in variants}
    for _ in range(rounds):
        for name, model in variants.items():
            seconds[name] += time_loaded(machine, model, inputs)
    ratios = machine.median_ratios(seconds, "bare")
    result = {"rounds": rounds, "ratio_to_bare": ratios, "bare_seconds": round(sorted(seconds["bare"])[rounds // 2], 4)}
    if "host's bypass loader" in variants:
        pair = {name: seconds[name] for name in ("host's bypass loader", "forward, bypass's modules")}
        result["ratio_to_bypass_loader"] = machine.median_ratios(pair, "host's bypass loader")
    return result


def build_variants(dtype):  # noqa: ANN001, ANN201
    """Return name → the host's model: bare, with each of our modes, and with its own bypass loader where it has one."""
    import comfy.sd
    from comfyui_lorweb.lorweb_core.basis import Basis
    from comfyui_lorweb.nodes.apply import ApplyMixedLoRA
    from comfyui_lorweb.nodes.sockets import LoadedBasis
    from seeded_basis import make_coefficients, make_loaded_basis
    from tiny_flux import TINY, build_flux, seeded_state_dict

    config = TINY | {"hidden_size": 3072, "num_heads": 24, "context_in_dim": 4096}
    bare = build_flux(config, dtype=dtype)
    second = build_flux(config, seeded_state_dict(bare.model.diffusion_model, 0), dtype=dtype)
    loaded = make_loaded_basis(bare, basis_size=32, rank=4)
    coefficients = make_coefficients(loaded)

    def patched(model, basis, mode):  # noqa: ANN001, ANN202
        own = {**coefficients, "layers": {name: coefficients["layers"][name] for name in basis.basis.layers}}
        return ApplyMixedLoRA().apply(model, basis, own, 1.0, mode)[0]

    covered = {name: layer for name, layer in loaded.basis.layers.items() if is_covered(name)}
    part = LoadedBasis(Basis(covered, loaded.basis.settings, loaded.basis.basis_id, "covered"))
    variants = {
        "bare": bare,
        "weights": patched(second, loaded, "weights"),
        "forward": patched(bare, loaded, "forward"),
        "forward, bypass's modules": patched(bare, part, "forward"),
    }
    if hasattr(comfy.sd, "load_bypass_lora_for_models"):
        lora = plain_lora(covered, coefficients, dtype)
        variants["host's bypass loader"] = comfy.sd.load_bypass_lora_for_models(bare, None, lora, 1.0, 0.0)[0]
    return variants


def plain_lora(layers, coefficients, dtype):  # noqa: ANN001, ANN201
    """Return the mixed LoRA of these layers as the tensors of an ordinary LoRA file."""
    from comfyui_lorweb.lorweb_core.mixing import mix_layer

    lora = {}
    for name, layer in layers.items():
        mixed = mix_layer(layer, coefficients["layers"][name][0])
        lora[f"transformer.{name}.lora_A.weight"] = mixed.down.contiguous().to(dtype)
        lora[f"transformer.{name}.lora_B.weight"] = mixed.up.contiguous().to(dtype)
    return lora


def step_inputs(dtype):  # noqa: ANN001, ANN201
    """Return what the model's forward_orig takes: 1024 image tokens and 256 text tokens."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, 1024, 64, generator=generator).to(dtype),
        torch.zeros(1, 1024, 3),
        torch.randn(1, 256, 4096, generator=generator).to(dtype),
        torch.zeros(1, 256, 3),
        torch.full((1,), 0.5).to(dtype),
        torch.randn(1, 768, generator=generator).to(dtype),
        torch.full((1,), 2.5).to(dtype),
    ]


def time_loaded(machine, model, inputs):  # noqa: ANN001, ANN201
    """Return the seconds of one step of a model, after loading it through the host and one step to warm up."""
    import comfy.model_management

    additional = model.get_nested_additional_models()
    comfy.model_management.load_models_gpu([model, *additional])
    model.inject_model()
    seconds = machine.time_interleaved({"step": lambda: model.model.diffusion_model.forward_orig(*inputs)}, rounds=1)
    model.eject_model()
    return seconds["step"]


def is_covered(name: str) -> bool:
    """Whether the host's bypass loader acts on this layer: not on parts of fused weights."""
    return any(part in name for part in BYPASS_COVERS)


main()
