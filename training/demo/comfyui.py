"""Write the demo's files where ComfyUI looks for them: python -m training.demo.comfyui COMFYUI/models

    diffusion_models/lorweb_demo_kontext.safetensors    UNETLoader, weight type default
    vae/lorweb_demo_vae.safetensors                   VAELoader
    lorweb/lorweb_demo_basis.safetensors                this pack's basis loader
    clip_vision/lorweb_demo_encoder/                    this pack's image encoder loader (not ComfyUI's own)

The images of workflow 0_first_try_without_downloads go to COMFYUI/input, if that folder exists. This module runs with
ComfyUI's own Python, which may lack typer and the trainer's other packages.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from lorweb_core.errors import OutputError
from lorweb_core.safetensors_file import write_safetensors_atomically

from .scenes import MODEL_FOLDER
from .vae import comfyui_vae_tensors

EXAMPLE_IMAGES = Path(__file__).parents[2] / "workflows" / "example_images"


def write_comfyui_folder(models: Path) -> dict[str, Path]:
    """Write base, VAE, basis and encoder into ComfyUI's `models` and return {unet, vae, basis, encoder} → path."""
    paths = {
        "unet": models / "diffusion_models" / "lorweb_demo_kontext.safetensors",
        "vae": models / "vae" / "lorweb_demo_vae.safetensors",
        "basis": models / "lorweb" / "lorweb_demo_basis.safetensors",
        "encoder": models / "clip_vision" / "lorweb_demo_encoder",
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(MODEL_FOLDER / "base.safetensors", paths["unet"])
    write_safetensors_atomically(paths["vae"], comfyui_vae_tensors(), {"format": "pt"})
    shutil.copyfile(MODEL_FOLDER / "basis.safetensors", paths["basis"])
    shutil.copytree(MODEL_FOLDER / "encoder", paths["encoder"], dirs_exist_ok=True)
    return paths


def write_for_comfyui(models: Path) -> None:
    """Write the files and the example images, and print where they are.

    Raises OutputError if there is no such folder.
    """
    if not models.is_dir():
        raise OutputError(f"{models} is not a folder. Name the models folder of your ComfyUI.")
    for name, path in write_comfyui_folder(models).items():
        print(f"{name}: {path}")
    inputs = models.resolve().parent / "input"
    if inputs.is_dir():
        copies = [str(shutil.copy(path, inputs)) for path in sorted(EXAMPLE_IMAGES.glob("lorweb_demo_*.png"))]
        print(f"images: {', '.join(copies)}")
    print("Next: in ComfyUI press R and open the template 0_first_try_without_downloads.")


def main() -> None:
    """`python -m training.demo.comfyui MODELS`, without typer."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # Windows code pages lack characters that paths can have
        sys.stdout.reconfigure(errors="replace")
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python -m training.demo.comfyui COMFYUI/models")
    try:
        write_for_comfyui(Path(sys.argv[1]))
    except OutputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
