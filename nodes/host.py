"""Everything that the pack asks of ComfyUI, v0.3.43 and newer.

The modules of the host exist only inside a running ComfyUI, under top-level names (`nodes`, `folder_paths`, `comfy`) of
their own, so every import of them stands inside a function of this file.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import torch
from PIL import Image

from ..lorweb_core.encoder import CONFIG_FILE
from ..lorweb_core.errors import ImageError, OutputError, printable, quote

BASIS_FOLDER = "lorweb"
#: Below `models` for files from other people, and below the output folder, where Save Coefficients writes.
COEFFICIENTS_FOLDER = "lorweb_coefficients"
MAX_PREFIX_BYTES = 200
#: The name under which the host keeps our wrappers and callbacks.
_WRAPPERS_KEY = "lorweb"
Model = Any  # the host's ModelPatcher: a MODEL, or a patcher that we had it make
#: diffusers parameter name → weight key, or (weight key, (dimension, start, length)) for a part of a fused weight.
WeightTargets = Mapping[str, Any]


# Files and folders


def _register_folder(name: str, roots: Iterable[str]) -> None:
    """Make `name` below each root, and below extra_model_paths.yaml's paths, a folder of .safetensors files."""
    import folder_paths

    for root in roots:
        folder = Path(root) / name
        with contextlib.suppress(OSError):  # read-only: the other folders still work
            folder.mkdir(parents=True, exist_ok=True)
        folder_paths.add_model_folder_path(name, str(folder))
    paths, _ = folder_paths.folder_names_and_paths[name]
    folder_paths.folder_names_and_paths[name] = (paths, {".safetensors"})


def register_basis_folder() -> None:
    """Make `models/lorweb` known to the host."""
    import folder_paths

    _register_folder(BASIS_FOLDER, [folder_paths.models_dir])


def list_bases() -> list[str]:
    """Return the names of the basis files below every `lorweb` folder."""
    import folder_paths

    register_basis_folder()
    return list(folder_paths.get_filename_list(BASIS_FOLDER))


def find_basis(name: str) -> Path | None:
    """Return the path of a listed basis, or None."""
    import folder_paths

    register_basis_folder()
    found = folder_paths.get_full_path(BASIS_FOLDER, name)
    return None if found is None else Path(found)


def map_coefficients() -> dict[str, Path]:
    """Return the coefficient files of all folders: listed name → path.

    The user's own files keep their plain name: if two folders have a file of the same name, the plain name is the one
    in the output folder, and the other is listed as `models/NAME`, from a third folder as `models_2/NAME`.
    """
    import folder_paths

    output = folder_paths.get_output_directory()
    _register_folder(COEFFICIENTS_FOLDER, [folder_paths.models_dir, output])
    own = str(Path(output) / COEFFICIENTS_FOLDER)
    others = [folder for folder in folder_paths.get_folder_paths(COEFFICIENTS_FOLDER) if folder != own]
    plain: dict[str, Path] = {}
    clashing: dict[str, Path] = {}
    for number, folder in enumerate([own, *others]):
        files, _ = folder_paths.recursive_search(folder, [".git"])
        for name in folder_paths.filter_files_extensions(files, {".safetensors"}):
            path = Path(folder) / name
            if not path.is_file():  # a broken link
                continue
            if path.resolve() != plain.setdefault(name, path).resolve():
                clashing[f"models_{number}/{name}" if number > 1 else f"models/{name}"] = path
    return {**clashing, **plain}


def find_encoder_folders() -> dict[str, Path]:
    """Return the folders with a config.json below `models/clip_vision` and `models/lorweb`: name → path."""
    import folder_paths

    register_basis_folder()
    folders: dict[str, Path] = {}
    for kind in ("clip_vision", BASIS_FOLDER):
        for root in folder_paths.get_folder_paths(kind):
            files, _ = folder_paths.recursive_search(root, [".git"])  # follows links, as for model files
            for folder in sorted(path.parent for path in map(Path, files) if path.name == CONFIG_FILE):
                if folder != Path():
                    folders.setdefault(folder.as_posix(), Path(root) / folder)
    return folders


def fingerprint_file(path: Path | None) -> tuple[str, int, int]:
    """Return path, size and time of a file, for `IS_CHANGED`."""
    if path is None or not path.exists():
        return ("missing", 0, 0)
    status = path.stat()
    return (str(path), status.st_size, status.st_mtime_ns)


def find_input_folder(name: str) -> Path:
    """Return a folder below the host's input folder; it need not exist.

    Raises ImageError for a name that leads out of the input folder or cannot be a name.
    """
    import folder_paths

    advice = "Use a short name relative to ComfyUI's input folder, such as pairs/comic"
    root = Path(folder_paths.get_input_directory()).resolve()
    try:
        folder = (root / name.strip()).resolve()
        folder.is_dir()
    except (OSError, ValueError) as error:  # too long, or a character that no name can have
        raise ImageError(f"The folder {quote(name)} cannot be looked up ({_reason(error)}). {advice}.") from error
    if not folder.is_relative_to(root):
        raise ImageError(
            f"The folder {quote(name)} leads out of the input folder, to {folder}. Copy the images into it. {advice}; "
            "a link to elsewhere does not count as inside."
        )
    return folder


def next_output_path(filename_prefix: str) -> tuple[Path, str, int]:
    """Return (folder, file name stem, counter) for a new file below the host's output folder.

    Raises OutputError if the prefix leads out of that folder or cannot be a name, or its folder cannot be made.
    """
    import folder_paths

    def refuse(problem: str) -> OutputError:
        return OutputError(
            f"filename_prefix is {quote(filename_prefix)}: {problem}. Use a short name relative to the output folder, "
            "such as loras/lorweb."
        )

    if printable(filename_prefix) != filename_prefix:
        raise refuse("it has control characters")
    if len(filename_prefix.encode()) > MAX_PREFIX_BYTES:  # file systems allow 255; counter and suffix follow
        raise refuse(f"it is longer than {MAX_PREFIX_BYTES} bytes")
    name = re.split(r"[\\/]", filename_prefix)[-1].strip()
    if not name or name.startswith("."):
        # The host would count such files wrongly and overwrite the first one each time.
        raise refuse("it must end in a file name, which may not begin with a dot")
    output = Path(folder_paths.get_output_directory()).resolve()
    try:
        target = (output / filename_prefix).resolve()
        if not target.is_relative_to(output):
            raise refuse(f"it leads out of the output folder, to {target}; links to elsewhere do not count as inside")
        folder, stem, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, str(output))
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself, up to Python 3.12
        raise refuse(f"its folder cannot be used ({_reason(error)})") from error
    return Path(folder), stem, counter


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def save_previews(images: list[Image.Image], name: str) -> list[dict[str, str]]:
    """Write images to the host's temp folder and return what `ui.images` takes."""
    import folder_paths

    temp = folder_paths.get_temp_directory()
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(name, temp)
    Path(folder).mkdir(parents=True, exist_ok=True)
    entries = []
    for index, image in enumerate(images):
        file_name = f"{stem}_{uuid4().hex[:8]}_{counter + index:05}_.png"
        image.save(Path(folder) / file_name, compress_level=1)
        entries.append({"filename": file_name, "subfolder": subfolder, "type": "temp"})
    return entries


# The model and its patches


def is_flux(model: Model) -> bool:
    """Return whether a MODEL is FLUX.1, dev or Kontext: their configurations are the same."""
    import comfy.model_base

    config = getattr(getattr(model.model, "model_config", None), "unet_config", {})
    return isinstance(model.model, comfy.model_base.Flux) and config.get("image_model") == "flux"


def map_weight_targets(model: Model) -> WeightTargets:
    """Return the host's table from diffusers parameter names to its own weight keys for this model."""
    import comfy.utils

    return comfy.utils.flux_to_diffusers(model.model.model_config.unet_config, output_prefix="diffusion_model.")


def make_lora_patch(up: torch.Tensor, down: torch.Tensor) -> Any:  # noqa: ANN401 - the host's LoRAAdapter
    """Return the host's patch object for delta = up @ down at scale 1."""
    from comfy.weight_adapter.lora import LoRAAdapter

    return LoRAAdapter(set(), (up, down, None, None, None, None))


def compute_dtype(model: Model) -> torch.dtype:
    """Return the dtype in which a MODEL's Linears receive their input."""
    return model.model.manual_cast_dtype or model.model.get_dtype()


def watch_latent_batches(model: Model, check: Callable[[int], None]) -> None:
    """Call `check` with the size of the latent batch before each step, before the host joins conditionings."""
    import comfy.patcher_extension

    def call_after_check(executor: Any, inner_model: Any, conds: Any, latents: torch.Tensor, *rest: Any) -> Any:  # noqa: ANN401
        check(latents.shape[0])
        return executor(inner_model, conds, latents, *rest)

    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, _WRAPPERS_KEY, call_after_check)


def watch_weight_readers(model: Model, refuse: Callable[..., NoReturn]) -> None:
    """Make nodes that read a MODEL's weights, or scale them, call `refuse`; sampling and LoRA loaders are unaffected.

    Nodes that save ask the model inside, where an object patch answers. Merges and extraction ask the MODEL itself for
    the weights below a prefix: these methods are replaced on it and, by the host's own callback, on each of its clones.
    """
    import comfy.patcher_extension

    def replace_methods(_source: Model, clone: Model) -> None:
        kind, own = type(clone), weakref.proxy(clone)  # a strong reference would keep the clone alive

        def model_state_dict(filter_prefix: str | None = None) -> Any:  # noqa: ANN401
            return kind.model_state_dict(own) if filter_prefix is None else refuse()

        def get_key_patches(filter_prefix: str | None = None) -> Any:  # noqa: ANN401
            return kind.get_key_patches(own) if filter_prefix is None else refuse()

        def add_patches(patches: Any, strength_patch: float = 1.0, strength_model: float = 1.0) -> Any:  # noqa: ANN401
            return kind.add_patches(own, patches, strength_patch) if strength_model == 1.0 else refuse()

        clone.model_state_dict, clone.get_key_patches = model_state_dict, get_key_patches
        clone.add_patches = add_patches

    model.add_object_patch("state_dict_for_saving", refuse)
    model.add_callback_with_key(comfy.patcher_extension.CallbacksMP.ON_CLONE, _WRAPPERS_KEY, replace_methods)
    replace_methods(None, model)


# Memory, progress, interruption


def make_model_patcher(module: torch.nn.Module, *, load_device: torch.device, offload_device: torch.device) -> Model:
    """Return a patcher through which the host counts, loads and unloads a module like a model of its own."""
    import comfy.model_patcher

    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(module, load_device=load_device, offload_device=offload_device)


def load_patchers(patchers: list[Model]) -> None:
    """Have the host move models to their load devices, unloading others as needed."""
    import comfy.model_management

    comfy.model_management.load_models_gpu(patchers)


def text_encoder_devices() -> tuple[torch.device, torch.device]:
    """Return the (load, offload) devices that the host uses for encoders."""
    import comfy.model_management as management

    return management.text_encoder_device(), management.text_encoder_offload_device()


def make_vision_output(**fields: object) -> Any:  # noqa: ANN401 - the host's Output
    """Return the host's CLIP_VISION_OUTPUT with tensors on its intermediate device."""
    import comfy.clip_vision
    import comfy.model_management

    device = comfy.model_management.intermediate_device()
    output = comfy.clip_vision.Output()
    for name, value in {"mm_projected": None, **fields}.items():
        output[name] = value.to(device) if isinstance(value, torch.Tensor) else value
    return output


def raise_if_interrupted() -> None:
    """Stop the running prompt if the user asked for it."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


class Progress:
    """The host's progress bar on the running node; each step also stops if the user interrupted the prompt."""

    def __init__(self, total: int = 1) -> None:
        import comfy.utils

        self._bar = comfy.utils.ProgressBar(total)

    def step(self) -> None:
        """Advance by one."""
        raise_if_interrupted()
        self._bar.update(1)

    def show(self, done: int, total: int) -> None:
        """Show `done` of `total`."""
        raise_if_interrupted()
        self._bar.update_absolute(done, total)
