"""The tiny trained Kontext in a running ComfyUI: it does the edit, and it does what stock diffusers does.

Hosts from v0.9 only: older ones insist on the published widths of text (v0.3.72 … v0.8) or of the whole model.
"""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lorweb_core.checkpoint import load_basis
from lorweb_core.coefficients import encode_coefficients
from lorweb_core.encoder import load_image_encoder
from lorweb_core.images import from_pil
from lorweb_core.mixing import layer_delta
from lorweb_core.query import embed_analogy
from tests.demo_pipeline import load_pipeline, psnr
from tests.host import graphs
from tests.host.models import scale_to_fp8
from training.base.flow import unpack_latents
from training.demo.analogies import GUIDANCE, STEPS, draw_analogies, null_prompt, score
from training.demo.scenes import BLOCK_PX, IMAGE_PX, MODEL_FOLDER, TEST_PHOTOS, to_image
from training.demo.show import shown_edits
from training.demo.vae import HOST_SCALE, HOST_SHIFT

PLAIN, SCALED, TWIN = (f"demo_{name}.safetensors" for name in ("fp32", "scaled_fp8", "twin_of_scaled"))
#: Largest difference of latents in the model's space; PSNR in dB of two hosts' images, and of a right answer.
LATENT_TOLERANCE, SAME_DB, RIGHT_DB = 1e-5, 50, 20
#: ComfyUI re-rounds the float8 weights that it patches.
REROUNDED_DB = 30


@pytest.fixture(scope="module")
def copies(newest_server):
    """Write the base as float32 and as scaled float8; name → a plain file of the same numbers, for diffusers."""
    folder = newest_server.base / "models" / "diffusion_models"
    plain = {name: tensor.float() for name, tensor in load_file(MODEL_FOLDER / "base.safetensors").items()}
    matrices = [name for name, tensor in plain.items() if tensor.dim() == 2 and "_blocks." in name]
    scaled, twin = scale_to_fp8(plain, matrices)
    for file, tensors in ((PLAIN, plain), (SCALED, scaled), (TWIN, twin)):
        save_file(tensors, folder / file)
    return {PLAIN: folder / PLAIN, SCALED: folder / TWIN}


@pytest.fixture(scope="module")
def analogies(newest_server):
    """One analogy of every kind, held-out parameters and photographs; the images are in the server's input folder."""
    drawn = draw_analogies(shown_edits(), per_edit=1, seed=8, photos=TEST_PHOTOS)
    for analogy in drawn:
        for name, pixels in zip(("a", "a_prime", "b", "b_prime"), analogy.images, strict=True):
            to_image(pixels).save(newest_server.base / "input" / f"{analogy.edit.name}_{name}.png")
    return drawn


def generate_in_comfyui(server, analogy, **changes):
    """Return (final latent in the model's space, b̂′ [96, 96, 3] as saved) of the demo workflow with other images."""
    graph = graphs.load_twin(graphs.DEMO)
    for node in graph.values():
        if node["class_type"] == "LoadImage":
            part = node["inputs"]["image"].removeprefix("lorweb_demo_")
            node["inputs"]["image"] = f"{analogy.edit.name}_{part}"
    for class_type, inputs in changes.items():
        graph = graphs.change(graph, class_type, **inputs)
    outcome = server.succeed({**graph, "latent": graphs.with_latent_saved(graph)["latent"]})
    (image,) = server.images(outcome)
    return (server.latent(outcome) - HOST_SHIFT) * HOST_SCALE, from_pil(image)


def generate_in_diffusers(base, analogy):
    """Return the same of diffusers' own pipeline, the analogy's mix folded into its weights."""
    images = [to_image(pixels) for pixels in analogy.images[:3]]
    basis, encoder = load_basis(MODEL_FOLDER / "basis.safetensors"), load_image_encoder(MODEL_FOLDER / "encoder")
    query = embed_analogy(basis.settings, encoder.embed, *(from_pil(image)[None] for image in images))
    pipeline = load_pipeline(base)
    with torch.no_grad():
        for name, coefficients in encode_coefficients(basis, query)["layers"].items():
            pipeline.transformer.get_submodule(name).weight += layer_delta(basis.layers[name], coefficients[0])
    grid = Image.new("RGB", (2 * IMAGE_PX, 2 * IMAGE_PX))
    for index, image in enumerate([*images, images[2]]):
        grid.paste(image, (index % 2 * IMAGE_PX, index // 2 * IMAGE_PX))
    prompt, pooled = null_prompt(1)
    options = {"height": 192, "width": 192, "max_area": 192 * 192, "_auto_resize": False, "output_type": "latent"}
    packed = pipeline(
        image=grid, num_inference_steps=STEPS, guidance_scale=GUIDANCE, prompt_embeds=prompt,
        pooled_prompt_embeds=pooled, generator=torch.Generator().manual_seed(0), **options,
    ).images  # fmt: skip
    latent = unpack_latents(packed, 24, 24)
    with torch.no_grad():
        decoded = pipeline.image_processor.postprocess(pipeline.vae.decode(latent).sample, output_type="pt")[0]
    return latent, decoded[:, IMAGE_PX:, IMAGE_PX:].movedim(0, -1)


@pytest.mark.parametrize("mode", ["weights", "forward"])
def test_every_kind_of_edit_is_right(newest_server, analogies, mode):
    answers = [
        generate_in_comfyui(newest_server, analogy, LoRWeBApplyMixedLoRA={"mode": mode})[1] for analogy in analogies
    ]
    scores = score(torch.stack(answers)[:, BLOCK_PX // 2 :: BLOCK_PX, BLOCK_PX // 2 :: BLOCK_PX], analogies)
    assert {item.edit.name: item.whole_db for item in scores if not item.is_right or item.whole_db < RIGHT_DB} == {}


@pytest.mark.parametrize(("file", "mode"), [(PLAIN, "weights"), (PLAIN, "forward"), (SCALED, "forward")])
def test_comfyui_and_diffusers_give_the_same_answer(newest_server, copies, analogies, file, mode):
    for analogy in analogies[::3]:
        changes = {"UNETLoader": {"unet_name": file}, "LoRWeBApplyMixedLoRA": {"mode": mode}}
        latent, image = generate_in_comfyui(newest_server, analogy, **changes)
        expected_latent, expected = generate_in_diffusers(copies[file], analogy)
        torch.testing.assert_close(latent, expected_latent, atol=LATENT_TOLERANCE, rtol=0)
        assert psnr(image, expected) > SAME_DB


def test_patched_float8_weights_still_give_the_edit(newest_server, copies, analogies):
    changes = {"UNETLoader": {"unet_name": SCALED}, "LoRWeBApplyMixedLoRA": {"mode": "weights"}}
    for analogy in analogies[::3]:
        _, image = generate_in_comfyui(newest_server, analogy, **changes)
        assert psnr(image, generate_in_diffusers(copies[SCALED], analogy)[1]) > REROUNDED_DB


def test_strength_zero_gives_b_back(newest_server, analogies):
    for analogy in analogies[:3]:
        _, image = generate_in_comfyui(newest_server, analogy, LoRWeBApplyMixedLoRA={"strength": 0.0})
        assert psnr(image, from_pil(to_image(analogy.images[2]))) > SAME_DB - 10
