"""Files on the disk: when loaders read again, what they list, and where results may go."""

import tempfile
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfyui_lorweb.lorweb_core.basis import LayerBasis
from comfyui_lorweb.lorweb_core.checkpoint import save_basis
from comfyui_lorweb.lorweb_core.errors import CheckpointError, ImageError, LoRWeBError, OutputError
from comfyui_lorweb.lorweb_core.settings import RouterSettings
from comfyui_lorweb.nodes import host
from comfyui_lorweb.nodes.analogy import EncodeAnalogies
from comfyui_lorweb.nodes.coefficients import AdjustCoefficients, PreviewCoefficients
from comfyui_lorweb.nodes.loaders import LoadBasis, LoadImageEncoder
from refusals import expect
from seeded_basis import make_coefficients, make_loaded_basis
from tiny_flux import TINY, build_flux

ROOT = Path(tempfile.mkdtemp())
LAYER = LayerBasis(torch.ones(2, 1, 4), torch.ones(2, 4, 1), torch.ones(2, 3), torch.ones(3, 6))


def new_folder(name):
    folder = ROOT / name
    folder.mkdir()
    return folder


def write_basis(folder):
    """Write a basis without settings in its header into a `lorweb` folder of extra_model_paths.yaml."""
    host.register_basis_folder()
    folder_paths.add_model_folder_path("lorweb", str(folder))
    name = f"{folder.name}.safetensors"
    save_basis(folder / name, {"transformer_blocks.0.attn.to_q": LAYER}, RouterSettings())
    return name


def check_a_basis_is_read_again_when_its_sidecar_comes_or_changes():
    folder = new_folder("sidecar")
    name = write_basis(folder)
    seen = [LoadBasis.IS_CHANGED(name), LoadBasis.IS_CHANGED(name)]
    assert seen[0] == seen[1] and seen[0][0] == str(folder / name)
    for text in ("heads: 1", "heads: 3 "):
        (folder / name).with_suffix(".yaml").write_text(text)
        seen.append(LoadBasis.IS_CHANGED(name))
    assert len(set(seen)) == 3, seen


def check_adapters_of_a_file_that_changed_are_not_mixed_with_the_old_keys():
    folder = new_folder("dropped")
    name = write_basis(folder)
    (loaded,) = LoadBasis().load(name)
    loaded.drop_adapters()
    assert torch.equal(loaded.with_adapters().layers["transformer_blocks.0.attn.to_q"].lora_up, LAYER.lora_up)
    (folder / name).with_suffix(".yaml").write_text("heads: 1")
    expect(CheckpointError, [name, "changed", "Queue the prompt again"], loaded.with_adapters)


def check_pairs_are_encoded_again_when_an_image_in_their_folder_changes():
    folder = new_folder("input") / "pairs"
    folder.mkdir()
    folder_paths.set_input_directory(str(folder.parent))
    seen = [EncodeAnalogies.IS_CHANGED(["pairs"]), EncodeAnalogies.IS_CHANGED([" pairs "])]
    assert seen[0] == seen[1]
    for text in ("one", "three"):
        (folder / "x_a.png").write_text(text)
        seen.append(EncodeAnalogies.IS_CHANGED(["pairs"]))
    assert len(set(seen)) == 3
    assert EncodeAnalogies.IS_CHANGED([""]) == EncodeAnalogies.IS_CHANGED([""])
    unknown = [frozenset([EncodeAnalogies.IS_CHANGED((None,))]) for _ in range(2)]
    assert unknown[0] != unknown[1], "a name that comes from another node may be any folder, in any state"


def check_an_encoder_is_read_again_when_any_of_its_files_changes():
    encoder = new_folder("encoders") / "tiny"
    encoder.mkdir()
    folder_paths.add_model_folder_path("clip_vision", str(encoder.parent))
    seen = []
    for name in ("config.json", "adapter.safetensors", "model.safetensors", "preprocessor_config.json"):
        (encoder / name).write_text(name)
        seen.append(LoadImageEncoder.IS_CHANGED("tiny"))
    assert seen[0] == seen[1] and len(set(seen)) == 3, "what is not read does not count, all else does"


def check_linked_encoder_folders_are_listed():
    elsewhere = new_folder("elsewhere")
    (elsewhere / "config.json").write_text("{}")
    models = new_folder("linked_models")
    (models / "linked").symlink_to(elsewhere, target_is_directory=True)
    (models / "config.json").write_text("{}")
    folder_paths.add_model_folder_path("clip_vision", str(models))
    found = host.find_encoder_folders()
    assert found["linked"] == models / "linked"
    assert "." not in found and models not in found.values(), "the models folder itself is no encoder"


def check_loading_a_basis_can_be_interrupted():
    name = write_basis(new_folder("interrupted"))
    assert LoadBasis().load(name)[0].basis.name == name
    comfy.model_management.interrupt_current_processing(True)
    expect(comfy.model_management.InterruptProcessingException, (), LoadBasis().load, name)


def check_names_that_lead_elsewhere_are_refused_with_where():
    outside, inside = new_folder("outside"), new_folder("inside")
    (inside / "linked").symlink_to(outside, target_is_directory=True)
    folder_paths.set_input_directory(str(inside))
    folder_paths.set_output_directory(str(inside))
    where = ("'linked'", f"leads out of the input folder, to {outside.resolve()}", "Copy the images")
    expect(ImageError, where, host.find_input_folder, "linked")
    where = ("'linked/x'", f"leads out of the output folder, to {outside.resolve() / 'x'}", "links to elsewhere")
    expect(OutputError, where, host.next_output_path, "linked/x")
    assert host.find_input_folder("pairs/comic") == (inside / "pairs" / "comic").resolve()


def check_prefixes_without_a_file_name_are_refused():
    output = new_folder("prefixes")
    folder_paths.set_output_directory(str(output))
    for prefix in ("", ".", "..", " ", "loras/", "loras/..", "loras/.", "loras/ ", "loras/.hidden", "a\\.."):
        words = (f"filename_prefix is {prefix!r}: it must end in a file name", "such as loras/lorweb")
        expect(OutputError, words, host.next_output_path, prefix)
    assert not list(output.iterdir()), "nothing is made for them"
    for prefix, name in (("lorweb", "lorweb"), ("loras/v1.2", "v1.2"), ("a/../b", "b")):
        folder, stem, counter = host.next_output_path(prefix)
        assert (stem, counter) == (name, 1)
        (folder / f"{stem}_00001_.safetensors").touch()
        assert host.next_output_path(prefix)[2] == 2, "the next file gets the next number"


def check_a_preview_refuses_what_is_no_coefficients():
    coefficients = make_coefficients(make_loaded_basis(build_flux(TINY)))
    expect(CheckpointError, ("This input got []", "not coefficients"), PreviewCoefficients().preview, coefficients, {})


def check_a_link_to_an_input_that_adjust_no_longer_has_is_refused():
    values = dict.fromkeys(AdjustCoefficients.INPUT_TYPES()["required"], 1.0) | {"top_k": 0, "renormalize": True}
    values["coefficients"] = make_coefficients(make_loaded_basis(build_flux(TINY)))
    AdjustCoefficients().adjust(**values)
    words = ["Adjust Coefficients", "'old_input'", "Delete the node from the workflow and add it again"]
    expect(LoRWeBError, words, lambda: AdjustCoefficients().adjust(**values, old_input=1.0))
