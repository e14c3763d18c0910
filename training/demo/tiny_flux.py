"""The demo's base: a FLUX.1-Kontext transformer of the true architecture with 2.1 M parameters, and its shipped file.

The file carries the names of Black Forest Labs' code, which ComfyUI's UNETLoader reads as it is; `load_base` maps them
to diffusers' names (diffusers' own converter only knows the full width).
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorweb_core.files import write_safetensors_atomically, write_text_atomically

from ..base.flow import SigmaSchedule
from ..base.single_file import BLOCKS, OUTSIDE, from_bfl
from ..console import let_terminal_replace
from .codec import build_codec, comfyui_vae_tensors
from .scenes import MODEL_FOLDER

CONFIG: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
CODE_DIM = 32


def build_base(seed: int) -> nn.Module:
    """Return an untrained base, initialized so that the edit code enters linearly and steers through modulation.

    The pooled vector passes the flat part of SiLU (large bias, undone behind it), and the time embedding sits at +2:
    so the input of every modulation Linear is nearly constant plus a linear function of the code. A low-rank change of
    these Linears can therefore do what the code does.
    """
    from diffusers import FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = FluxTransformer2DModel(**CONFIG)
        with torch.no_grad():
            _initialize(model)
    return model


def load_base(path: Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the shipped base (BFL names) as a diffusers model in eval mode."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import load_file

    model: Any = FluxTransformer2DModel(**CONFIG)
    model.load_state_dict(from_bfl(load_file(path), path.name))
    if dtype != torch.float32:  # diffusers warns of any cast, though no module here has to stay in float32
        model.to(dtype)
    return model.eval()


def to_bfl(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a diffusers state dict under BFL names, fused Linears stacked; `from_bfl` undoes it."""
    result = {}
    for name, parts in _file_modules().items():
        for kind in ("weight", "bias"):
            if f"{parts[0]}.{kind}" not in state:
                continue
            stacked = torch.cat([state[f"{part}.{kind}"] for part in parts])
            if parts == ("norm_out.linear",):  # FLUX gives (shift, scale); diffusers keeps (scale, shift)
                stacked = torch.cat(stacked.chunk(2)[::-1])
            result[f"{name}.{'scale' if name.endswith('_norm') else kind}"] = stacked.contiguous()
    return result


def _initialize(model: Any) -> None:  # noqa: ANN401 (diffusers has no types)
    text, time = model.time_text_embed.text_embedder, model.time_text_embed.timestep_embedder
    nn.init.orthogonal_(text.linear_1.weight)
    text.linear_1.bias.fill_(3.0)
    text.linear_2.weight.normal_(std=0.1)
    text.linear_2.bias.copy_(-text.linear_2.weight @ nn.functional.silu(text.linear_1.bias))
    time.linear_2.bias.fill_(2.0)
    model.time_text_embed.guidance_embedder.linear_2.weight.zero_()
    model.time_text_embed.guidance_embedder.linear_2.bias.zero_()
    for name, module in model.named_modules():
        if name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear")):
            module.weight.normal_(std=0.02)
            module.bias.zero_()
            chunks = module.bias.chunk(module.bias.shape[0] // 128)
            for gate in chunks[2::3]:
                gate.fill_(0.5)
    model.proj_out.weight.zero_()
    model.proj_out.bias.zero_()


def _file_modules() -> dict[str, tuple[str, ...]]:
    """Return each module of the file → the diffusers modules that it stacks."""
    names: dict[str, tuple[str, ...]] = {name: (part,) for name, part in OUTSIDE.items()}
    for file_list, count in (("double_blocks", CONFIG["num_layers"]), ("single_blocks", CONFIG["num_single_layers"])):
        block_list, table = BLOCKS[file_list]
        for index in range(count):
            for name, parts in table.items():
                names[f"{file_list}.{index}.{name}"] = tuple(f"{block_list}.{index}.{part}" for part in parts)
    return names


# The demo's base as stock diffusers knows models: a pipeline in memory, or a folder that `training.train` reads.
#
# Text encoders are absent: the prompt is one zero token and a zero pooled vector (`analogies.null_prompt`).


_ABSENT = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def kontext_scheduler() -> Any:  # noqa: ANN401 (diffusers has no types)
    """Return diffusers' Euler scheduler with FLUX.1-Kontext's own values."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**asdict(SigmaSchedule(shift=3.0)))


def load_pipeline(base: Path) -> Any:  # noqa: ANN401 (diffusers has no types)
    """Return the stock Kontext pipeline on the shipped base, without text encoders, in float32 on the CPU.

    Call it with `prompt_embeds` and `pooled_prompt_embeds` of zeros, `max_area` = height · width of the grid and
    `_auto_resize=False`, or it resizes the grid.
    """
    from diffusers import FluxKontextPipeline

    absent: dict[str, Any] = dict.fromkeys(_ABSENT)
    pipeline: Any = FluxKontextPipeline(
        transformer=load_base(base), vae=build_codec(), scheduler=kontext_scheduler(), **absent
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_diffusers_folder(base: Path, folder: Path) -> Path:
    """Write the base as a diffusers folder (transformer, vae, scheduler), 14 MB, and return it."""
    parts: dict[str, Any] = {"transformer": load_base(base), "vae": build_codec(), "scheduler": kontext_scheduler()}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index: dict[str, Any] = {"_class_name": "FluxKontextPipeline"} | {name: [None, None] for name in _ABSENT}
    index |= {
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    write_text_atomically(folder / "model_index.json", json.dumps(index, indent=2) + "\n")
    return folder


# Write the demo's files where ComfyUI looks for them: python -m training.demo.tiny_flux COMFYUI/models
#
#     diffusion_models/lorweb_demo_kontext.safetensors    UNETLoader, weight type default
#     vae/lorweb_demo_codec.safetensors                   VAELoader
#     lorweb/lorweb_demo_basis.safetensors                this pack's basis loader
#     clip_vision/lorweb_demo_encoder/                    this pack's image encoder loader (not the host's)
#
# and, where COMFYUI/input exists, the pictures of workflow 0 there. Runs with ComfyUI's own Python:
# nothing is installed.
# Workflow 0_first_try_without_downloads has the settings that give diffusers' result.


EXAMPLE_PICTURES = Path(__file__).parents[2] / "workflows" / "example_pictures"
UNET_NAME = "lorweb_demo_kontext.safetensors"
VAE_NAME = "lorweb_demo_codec.safetensors"
BASIS_NAME = "lorweb_demo_basis.safetensors"
ENCODER_NAME = "lorweb_demo_encoder"


def write_comfyui_folder(models: Path, *, model: Path = MODEL_FOLDER) -> dict[str, Path]:
    """Write base and codec below a ComfyUI `models` folder and return {unet, vae, basis, encoder} → path.

    Args:
        models: ComfyUI's `models` folder; missing folders are made.
        model: the demo's shipped files. Basis and encoder are copied to `lorweb/` and `clip_vision/`.
    """
    places = {
        "unet": models / "diffusion_models" / UNET_NAME,
        "vae": models / "vae" / VAE_NAME,
        "basis": models / "lorweb" / BASIS_NAME,
        "encoder": models / "clip_vision" / ENCODER_NAME,
    }
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model / "base.safetensors", places["unet"])
    write_safetensors_atomically(places["vae"], comfyui_vae_tensors(), {"format": "pt"})
    if (model / "basis.safetensors").is_file():
        shutil.copyfile(model / "basis.safetensors", places["basis"])
    shutil.copytree(model / "encoder", places["encoder"], dirs_exist_ok=True)
    return places


def copy_pictures(folder: Path) -> list[Path]:
    """Copy the pictures of workflow 0 to ComfyUI's input folder and return where they are."""
    return [Path(shutil.copy(path, folder)) for path in sorted(EXAMPLE_PICTURES.glob("lorweb_demo_*.png"))]


def main() -> None:
    """Command line: python -m training.demo.tiny_flux MODELS."""
    let_terminal_replace()
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.tiny_flux", description="Write the demo model for ComfyUI."
    )
    parser.add_argument("models", type=Path, help="ComfyUI's models folder")
    models = parser.parse_args().models
    if not models.is_dir():
        parser.error(f"expected ComfyUI's models folder, got {models}, which is no folder; name the one that exists")
    for name, place in write_comfyui_folder(models).items():
        print(f"{name}: {place}")
    inputs = models.resolve().parent / "input"
    if inputs.is_dir():
        print(f"pictures: {', '.join(map(str, copy_pictures(inputs)))}")
    print("Next: in ComfyUI press R and open the template 0_first_try_without_downloads.")


if __name__ == "__main__":
    main()
