"""Our image encoder under the host's memory management."""

import json
import tempfile
from pathlib import Path

import comfy.clip_vision
import comfy.model_management
import torch
from comfyui_lorweb.lorweb_core.basis import Basis, LayerBasis
from comfyui_lorweb.lorweb_core.errors import ModelError
from comfyui_lorweb.lorweb_core.settings import RouterSettings
from comfyui_lorweb.nodes.vision import embed_images, load_clip_vision
from refusals import expect
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def load_tiny_encoder():
    folder = Path(tempfile.mkdtemp()) / "encoder"
    config = CLIPVisionConfig(**TINY, image_size=32, patch_size=8, projection_dim=16)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return load_clip_vision(folder)


def check_the_hosts_encoder_without_its_projection_is_refused():
    config = TINY | {"hidden_size": 1024, "num_attention_heads": 16, "image_size": 224, "patch_size": 56}
    config |= {
        "model_type": "clip_vision_model",
        "projection_dim": 768,
        "num_channels": 3,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    path = Path(tempfile.mkdtemp()) / "config.json"
    path.write_text(json.dumps(config))
    vision = comfy.clip_vision.ClipVisionModel(str(path))
    state_dict = vision.model.state_dict()
    vision.load_sd({name: 0.02 * torch.ones_like(state_dict[name]) for name in state_dict if "projection" not in name})
    layer = LayerBasis(torch.ones(2, 1, 4), torch.ones(2, 4, 1), torch.ones(2, 3), torch.ones(3, 3 * 768))
    basis = Basis(layers={"proj_out": layer}, settings=RouterSettings(), basis_id="tiny")
    try:
        embed_images(vision, torch.rand(3, 224, 224, 3), basis)
    except ModelError as error:
        assert "Load clip-vit-large-patch14.safetensors" in str(error), error
        return
    raise AssertionError("embeddings from a projection that is not in the file")


def check_modules_that_the_host_leaves_behind_follow():
    vision = load_tiny_encoder()
    vision.patcher.load(torch.device("meta"), lowvram_model_memory=64 * 1024)  # meta stands for a small GPU
    devices = {parameter.device.type for parameter in vision.model.parameters()}
    assert devices == {"cpu", "meta"}, "the host loads what fits"
    vision.load_device = torch.device("meta")
    vision.load()
    tensors = [*vision.model.parameters(), *vision.model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def check_embedding_many_images_can_be_interrupted():
    vision = load_tiny_encoder()
    images = torch.rand(40, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    batches = []
    vision.model.register_forward_hook(lambda *_: batches.append(1))
    comfy.model_management.interrupt_current_processing(True)
    expect(comfy.model_management.InterruptProcessingException, (), vision.embed, images)
    assert len(batches) == 1
    assert vision.embed(images).shape == (40, 16) and len(batches) == 3


def check_embedding_and_encode_image_agree():
    vision = load_tiny_encoder()
    images = torch.rand(2, 40, 50, 3, generator=torch.Generator().manual_seed(0))
    output = vision.encode_image(images)
    assert torch.equal(vision.embed(images), output["image_embeds"])
    assert output["last_hidden_state"].shape == output["penultimate_hidden_states"].shape == (2, 17, 32)
