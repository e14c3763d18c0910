"""Small model files that the real host loads through its own loaders: Flux, VAE, image encoders, a basis.

Flux files have the published tensor names and one double and one single block. Hosts from v0.3.72 read the width from
the file (here 128, 5 MB); older ones insist on 3072 (1.1 GB). Weights are seeded.
"""

import subprocess
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorweb_core.basis import LayerBasis
from lorweb_core.checkpoint import save_basis
from lorweb_core.layer_names import MODULE_PARTS
from lorweb_core.settings import RouterSettings
from tests.host.pack_for_tests import CONTEXT_DIM, POOLED_DIM

EMBEDDING_DIM = 768
HEAD_DIM = 128
TINY_WIDTH, PUBLISHED_WIDTH = 128, 3072
FIRST_VERSION_OF_ANY_WIDTH = (0, 3, 72)
FP8 = torch.float8_e4m3fn

#: Output and input width of each module, in multiples of the model's width.
_DOUBLE = {
    "img_mod.lin": (6, 1), "txt_mod.lin": (6, 1),
    "img_attn.qkv": (3, 1), "txt_attn.qkv": (3, 1),
    "img_attn.proj": (1, 1), "txt_attn.proj": (1, 1),
    "img_mlp.0": (4, 1), "txt_mlp.0": (4, 1),
    "img_mlp.2": (1, 4), "txt_mlp.2": (1, 4),
}  # fmt: skip
_SINGLE = {"linear1": (7, 1), "linear2": (1, 5), "modulation.lin": (3, 1)}
#: The same in the basis' names; what is not listed is (1, 1).
_LAYER_WIDTHS = {
    "norm1.linear": (6, 1), "norm1_context.linear": (6, 1), "norm.linear": (3, 1),
    "ff.net.0.proj": (4, 1), "ff_context.net.0.proj": (4, 1), "proj_mlp": (4, 1),
    "ff.net.2": (1, 4), "ff_context.net.2": (1, 4), "proj_out": (1, 5),
}  # fmt: skip


def width_for(host):
    """Return the narrowest Flux that a host loads from a file."""
    return TINY_WIDTH if host.version >= FIRST_VERSION_OF_ANY_WIDTH else PUBLISHED_WIDTH


def flux_tensors(width, *, dtype=torch.float32, seed=0):
    """Return name → tensor of a Flux with one double and one single block."""
    sizes = {
        "img_in": (width, 64),
        "txt_in": (width, CONTEXT_DIM),
        "time_in.in_layer": (width, 256),
        "time_in.out_layer": (width, width),
        "vector_in.in_layer": (width, POOLED_DIM),
        "vector_in.out_layer": (width, width),
        "guidance_in.in_layer": (width, 256),
        "guidance_in.out_layer": (width, width),
        "final_layer.linear": (64, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
        **{f"double_blocks.0.{name}": (out * width, wide * width) for name, (out, wide) in _DOUBLE.items()},
        **{f"single_blocks.0.{name}": (out * width, wide * width) for name, (out, wide) in _SINGLE.items()},
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (wide_out, wide_in) in sizes.items():
        weight = torch.randn(wide_out, wide_in, generator=generator, dtype=torch.bfloat16 if width > 1000 else None)
        tensors[f"{name}.weight"] = (weight * wide_in**-0.5).to(dtype)
        tensors[f"{name}.bias"] = (torch.randn(wide_out, generator=generator) * 0.1).to(dtype)
    norms = ("double_blocks.0.img_attn.norm", "double_blocks.0.txt_attn.norm", "single_blocks.0.norm")
    for name in (f"{norm}.{part}_norm.scale" for norm in norms for part in ("query", "key")):
        tensors[name] = (1 + 0.1 * torch.randn(HEAD_DIM, generator=generator)).to(dtype)
    return tensors


def write_flux(path, width, *, dtype=torch.float32):
    """Write a plain file for UNETLoader."""
    _save(flux_tensors(width, dtype=dtype), path)


def write_fp8_flux(path, plain_path, width):
    """Write float8 matrices beside bfloat16 vectors, without scales, and the same numbers as a plain file."""
    tensors = _with_fp8_vectors(flux_tensors(width, dtype=torch.bfloat16))
    tensors = {name: tensor.to(FP8) if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    _save(tensors, path)
    _save({name: tensor.float() for name, tensor in tensors.items()}, plain_path)


def write_scaled_fp8_flux(path, plain_path, width):
    """Write float8 matrices with one scale each, and the same numbers as a plain file.

    Every Linear has a scale: v0.3.43 keeps all of them in float8 once one is, and would round the others anew.
    """
    tensors = _with_fp8_vectors(flux_tensors(width, dtype=torch.bfloat16))
    scaled, plain = scale_to_fp8(tensors, [name for name, tensor in tensors.items() if tensor.dim() == 2])
    _save(scaled, path)
    _save(plain, plain_path)


def scale_to_fp8(tensors, matrices):
    """Return the tensors with scaled float8 in place of these matrices, and the same numbers as float32."""
    scaled = {**tensors, "scaled_fp8": torch.empty(0, dtype=FP8)}
    plain = {name: tensor.float() for name, tensor in tensors.items()}
    for name in matrices:
        scale = plain[name].abs().max() / torch.finfo(FP8).max
        scaled[name] = (plain[name] / scale).to(FP8)
        scaled[name.removesuffix("weight") + "scale_weight"] = scale
        plain[name] = scaled[name].float() * scale
    return scaled, plain


def _with_fp8_vectors(tensors):
    """Round biases and norms to float8's numbers, as the host keeps them in the dtype of the matrices."""
    return {name: tensor.to(FP8).to(tensor.dtype) if tensor.dim() == 1 else tensor for name, tensor in tensors.items()}


def write_gguf_flux(path, plain_path, width, *, python, kind="Q8_0"):
    """Write block matrices as GGUF blocks of `kind`, the rest float32, and the same numbers plain."""
    source = path.with_suffix(".source.safetensors")
    write_flux(source, width)
    script = Path(__file__).parent / "write_gguf.py"
    subprocess.run([python, script, source, path, kind, plain_path], check=True, capture_output=True, timeout=300)
    source.unlink()


def write_basis(path, width, *, basis_size=3, rank=2, size=0.4, seed=0, dtype=torch.float32):
    """Write a seeded basis over every layer of the one-block Flux, with settings in its header."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    layers = {}
    for prefix, kind in (("transformer_blocks.0", "double"), ("single_transformer_blocks.0", "single")):
        for module in MODULE_PARTS[kind]:
            out, wide = (count * width for count in _LAYER_WIDTHS.get(module, (1, 1)))
            layers[f"{prefix}.{module}"] = LayerBasis(
                lora_down=normal(basis_size, rank, wide) * wide**-0.5,
                lora_up=(normal(basis_size, rank, out) * size).transpose(1, 2),
                keys=normal(basis_size, 8),
                query_projection=normal(8, 3 * EMBEDDING_DIM),
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_basis(path, layers, RouterSettings(), dtype=dtype)


def write_vae(path):
    """Write the 8 × 8 block VAE under ComfyUI's names."""
    from training.demo.vae import comfyui_vae_tensors

    _save(comfyui_vae_tensors(), path)


def write_clip_folder(folder, *, seed=0, dtype=torch.float32, **config):
    """Write a seeded CLIP vision tower with projection, by default a tiny one, as a Hugging Face folder; return it."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {**tiny, "patch_size": 32, "projection_dim": EMBEDDING_DIM, **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).to(dtype)
    model.save_pretrained(folder)
    return model


def write_vit_l(path, folder):
    """Write a random CLIP ViT-L/14 in float16: as OpenAI's whole CLIP file (600 MB), and as a folder of the tower.

    The host's CLIPVisionLoader knows a tower by its number of layers, so there is no smaller one for it.
    """
    vit_l = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    model = write_clip_folder(folder, dtype=torch.float16, patch_size=14, **vit_l)
    rest = {  # of the text tower, which the host must leave aside
        "logit_scale": torch.zeros(()),
        "text_projection.weight": torch.zeros(EMBEDDING_DIM, EMBEDDING_DIM),
        "text_model.embeddings.position_embedding.weight": torch.zeros(77, EMBEDDING_DIM),
        "vision_model.embeddings.position_ids": torch.arange(257)[None],
    }
    _save({**model.state_dict(), **rest}, path)


def _save(tensors, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
