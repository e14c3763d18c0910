"""Write the demo's files where ComfyUI looks for models: python -m training.demo.comfyui COMFYUI/models

    diffusion_models/lorweb_demo_kontext.safetensors    UNETLoader, weight type default
    vae/lorweb_demo_codec.safetensors                   VAELoader
    lorweb/lorweb_demo_basis.safetensors                this pack's basis loader
    clip_vision/lorweb_demo_encoder/                    this pack's image encoder loader (not the host's)

Settings that give diffusers' result: ModelSamplingFlux(max_shift 1.15, base_shift 0.5, 192, 192), KSampler euler /
simple / 8 steps / cfg 1, FluxGuidance 2.5, ReferenceLatent of the 192-px grid, zero conditioning of one token.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from lorweb_core.files import write_safetensors_atomically

from .codec import comfyui_vae_tensors
from .scenes import MODEL_FOLDER

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


def main() -> None:
    """Command line: python -m training.demo.comfyui MODELS."""
    parser = argparse.ArgumentParser(description="Write the demo model for ComfyUI.")
    parser.add_argument("models", type=Path, help="ComfyUI's models folder")
    for name, place in write_comfyui_folder(parser.parse_args().models).items():
        print(f"{name}: {place}")


if __name__ == "__main__":
    main()
