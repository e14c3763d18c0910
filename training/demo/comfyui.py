"""Write the demo's files where ComfyUI looks for them: python -m training.demo.comfyui COMFYUI/models

    diffusion_models/lorweb_demo_kontext.safetensors    UNETLoader, weight type default
    vae/lorweb_demo_codec.safetensors                   VAELoader
    lorweb/lorweb_demo_basis.safetensors                this pack's basis loader
    clip_vision/lorweb_demo_encoder/                    this pack's image encoder loader (not the host's)

and, where COMFYUI/input exists, the pictures of workflow 0 there. Runs with ComfyUI's own Python: nothing is installed.
Workflow 0_first_try_without_downloads has the settings that give diffusers' result.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from lorweb_core.files import write_safetensors_atomically

from ..terminal import let_terminal_replace
from .codec import comfyui_vae_tensors
from .scenes import MODEL_FOLDER

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
    """Command line: python -m training.demo.comfyui MODELS."""
    let_terminal_replace()
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.comfyui", description="Write the demo model for ComfyUI."
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
