"""The demo's VAE, file layout and base, in stock diffusers: laws that hold for untrained weights too."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.demo_pipeline import load_pipeline, psnr
from training.base.flow import unpack_latents
from training.base.single_file import from_bfl
from training.base.transformer import Conditioning, predict_velocity
from training.demo import tiny_kontext
from training.demo.analogies import (
    GUIDANCE,
    STEPS,
    context_latents,
    draw_analogies,
    generate,
    null_prompt,
    stack_images,
)
from training.demo.base import edit_code, save_base
from training.demo.scenes import TRAINING_PHOTOS, Edit, to_image
from training.demo.tiny_kontext import build_base, load_base
from training.demo.vae import build_vae, comfyui_vae_tensors, decode_art, encode_art


@pytest.fixture(scope="module")
def base_file(tmp_path_factory):
    model = build_base(3)
    with torch.no_grad():
        model.proj_out.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("demo") / "base.safetensors"
    save_base(path, model)
    return path


@pytest.fixture
def art():
    return torch.randint(0, 256, (2, 12, 12, 3), generator=torch.Generator().manual_seed(1)) / 255


def _pixels(art):
    return art.repeat_interleave(8, 1).repeat_interleave(8, 2).movedim(-1, 1) * 2 - 1


@torch.no_grad()
def test_the_vae_network_computes_the_closed_form_clips_and_keeps_every_level_even_in_half_precision(art):
    vae = build_vae()
    latents = vae.encode(_pixels(art)).latents
    torch.testing.assert_close(latents, encode_art(art), atol=1e-6, rtol=0)
    torch.testing.assert_close(decode_art(latents), art, atol=1e-6, rtol=0)
    assert float((vae.decode(torch.full((1, 16, 2, 2), -1.3)).sample + 1).abs().max()) < 1e-4
    for rounded in (vae, vae.half().float()):
        back = rounded.decode(encode_art(art)).sample
        assert psnr((back + 1) / 2, (_pixels(art) + 1) / 2) > 65
        assert torch.equal((back * 127.5 + 127.5).round(), (_pixels(art) * 127.5 + 127.5).round())


def test_the_vae_for_comfyui_has_its_names_and_scales():
    tensors = comfyui_vae_tensors()
    assert float(tensors["vae_scale"]) == pytest.approx(0.3611)
    assert float(tensors["vae_shift"]) == pytest.approx(0.1159)
    assert tensors["taesd_encoder.0.weight"].shape == (64, 3, 3, 3)
    assert tensors["taesd_decoder.1.weight"].shape == (64, 16, 3, 3)


def test_bfl_names_and_back_is_bit_equal():
    state = build_base(0).state_dict()
    back = from_bfl(tiny_kontext.to_bfl(state), "memory")
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@torch.no_grad()
def test_an_untrained_base_takes_the_code_linearly_into_its_modulation_and_the_zero_code_means_copy():
    embedder = build_base(0).time_text_embed.text_embedder
    first, second = edit_code(Edit("frame", hue=3)), edit_code(Edit("darker", amount=0.65))
    both, one, other, none = (embedder(code[None]) for code in (first + second, first, second, 0 * first))
    assert float((both - one - other + none).norm() / (both - none).norm()) < 0.12
    edits = (None, Edit("frame", hue=0), Edit("frame", hue=1), Edit("gray"))
    codes = {tuple(edit_code(edit).tolist()) for edit in edits}
    assert len(codes) == 4 and (0.0,) * tiny_kontext.CODE_DIM in codes and not edit_code(None).any()


def test_the_stock_pipeline_and_our_sampler_agree(base_file):
    analogies = draw_analogies([Edit("stripes", hue=2)], per_edit=1, seed=0, photos=TRAINING_PHOTOS)
    a, a_prime, b, _ = (to_image(pixels) for pixels in analogies[0].images)
    grid = Image.fromarray(np.vstack([np.hstack([a, a_prime]), np.hstack([b, b])]))
    prompt, code = null_prompt(1)[0], edit_code(analogies[0].edit)[None]
    packed = load_pipeline(base_file)(
        image=grid, height=192, width=192, max_area=192 * 192, _auto_resize=False, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, prompt_embeds=prompt, pooled_prompt_embeds=code, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    context = context_latents(*stack_images(analogies)[:3])
    model, conditioning = load_base(base_file), Conditioning(context, prompt, code, None, GUIDANCE)
    ours = generate(lambda noisy, sigmas: predict_velocity(model, noisy, sigmas, conditioning), context)
    torch.testing.assert_close(unpack_latents(packed, 24, 24), ours, atol=1e-4, rtol=0)


def test_the_diffusers_folder_gives_the_same_weights(base_file, tmp_path):
    from diffusers import FluxTransformer2DModel

    folder = tiny_kontext.write_diffusers_folder(base_file, tmp_path / "kontext")
    loaded = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer", local_files_only=True)
    expected = load_base(base_file).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert {tensor.dtype for tensor in load_file(base_file).values()} == {torch.bfloat16}
