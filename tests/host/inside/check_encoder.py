"""Our image encoder under the host's memory management."""

import tempfile
from pathlib import Path

import torch
from comfyui_lorweb.nodes.vision import load_clip_vision
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def load_tiny_encoder():
    folder = Path(tempfile.mkdtemp()) / "encoder"
    config = CLIPVisionConfig(**TINY, image_size=32, patch_size=8, projection_dim=16)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return load_clip_vision(folder)


def check_modules_that_the_host_leaves_behind_follow():
    vision = load_tiny_encoder()
    vision.patcher.load(torch.device("meta"), lowvram_model_memory=64 * 1024)  # meta stands for a small GPU
    devices = {parameter.device.type for parameter in vision.model.parameters()}
    assert devices == {"cpu", "meta"}, "the host loads what fits"
    vision.load_device = torch.device("meta")
    vision.load()
    tensors = [*vision.model.parameters(), *vision.model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def check_embedding_and_encode_image_agree():
    vision = load_tiny_encoder()
    pictures = torch.rand(2, 40, 50, 3, generator=torch.Generator().manual_seed(0))
    output = vision.encode_image(pictures)
    assert torch.equal(vision.embed(pictures), output["image_embeds"])
    assert output["last_hidden_state"].shape == output["penultimate_hidden_states"].shape == (2, 17, 32)
