"""Tiny FLUX.1-Kontext models of the true architecture, as diffusers folders and files.

`CONFIG` is the demo's trained base (2.1 M parameters). Its file has the names of Black Forest Labs' code, which
ComfyUI's UNETLoader reads directly; `load_base` maps them to diffusers' names. It has no text encoders: the prompt is
one zero token and a zero pooled vector (`analogies.null_prompt`).

`TRANSFORMER` is the size of the random parts (1 MB) on which the whole trainer runs on a CPU in a minute:

    python -m training.demo tiny-parts runs/tiny-parts          writes model/, encoder/, images/
    python -m training.prepare folders runs/tiny-parts/images --out runs/tiny-parts/pairs.jsonl
    python -m training.train --config tiny.yaml
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from lorweb_core.files import write_text_atomically

from ..base.flow import SigmaSchedule
from ..base.single_file import BLOCKS, OUTSIDE, from_bfl
from .vae import build_vae

CODE_DIM = 32
#: The demo's base.
CONFIG: dict[str, Any] = {
    "patch_size": 1, "in_channels": 64, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 128,
    "num_attention_heads": 1, "joint_attention_dim": CODE_DIM, "pooled_projection_dim": CODE_DIM,
    "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
#: The random base; pooled width, channels and embedding width differ from the others.
TRANSFORMER: dict[str, Any] = {
    "in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 32, "pooled_projection_dim": 24, "guidance_embeds": True, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
EMBEDDING_DIM = 12
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "invert": ImageOps.invert,
    "mirror": ImageOps.mirror,
    "gray": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "posterize": lambda image: ImageOps.posterize(image, 2),
}


def build_flux(config: dict[str, Any]) -> Any:  # noqa: ANN401 (diffusers has no types)
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(**config)


@torch.no_grad()
def build_base(seed: int) -> nn.Module:
    """An untrained base, initialized so that the edit code enters linearly and steers through modulation.

    The pooled vector passes the flat part of SiLU (large bias, undone behind it), and the time embedding sits at +2:
    so the input of every modulation Linear is nearly constant plus a linear function of the code. A low-rank change of
    these Linears can therefore do what the code does.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_flux(CONFIG)
        text, time = model.time_text_embed.text_embedder, model.time_text_embed.timestep_embedder
        nn.init.orthogonal_(text.linear_1.weight)
        text.linear_1.bias.fill_(3.0)
        text.linear_2.weight.normal_(std=0.1)
        text.linear_2.bias.copy_(-text.linear_2.weight @ nn.functional.silu(text.linear_1.bias))
        time.linear_2.bias.fill_(2.0)
        model.time_text_embed.guidance_embedder.linear_2.weight.zero_()
        model.time_text_embed.guidance_embedder.linear_2.bias.zero_()
        for name, module in model.named_modules():
            if name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear")):
                module.weight.normal_(std=0.02)
                module.bias.zero_()
                for gate in module.bias.chunk(module.bias.shape[0] // 128)[2::3]:
                    gate.fill_(0.5)
        model.proj_out.weight.zero_()
        model.proj_out.bias.zero_()
    return model


def load_base(path: Path) -> nn.Module:
    """The shipped base (BFL names) as a diffusers model, float32, eval mode."""
    from safetensors.torch import load_file

    model = build_flux(CONFIG)
    model.load_state_dict(from_bfl(load_file(path), path.name))
    return model.eval()


def to_bfl(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a diffusers state dict under BFL names, fused Linears stacked; `from_bfl` undoes it."""
    modules: dict[str, tuple[str, ...]] = {name: (part,) for name, part in OUTSIDE.items()}
    for file_list, count in (("double_blocks", CONFIG["num_layers"]), ("single_blocks", CONFIG["num_single_layers"])):
        block_list, table = BLOCKS[file_list]
        for index in range(count):
            for name, parts in table.items():
                modules[f"{file_list}.{index}.{name}"] = tuple(f"{block_list}.{index}.{part}" for part in parts)
    result = {}
    for name, parts in modules.items():
        for kind in ("weight", "bias"):
            if f"{parts[0]}.{kind}" not in state:
                continue
            stacked = torch.cat([state[f"{part}.{kind}"] for part in parts])
            if parts == ("norm_out.linear",):  # FLUX gives (shift, scale); diffusers keeps (scale, shift)
                stacked = torch.cat(stacked.chunk(2)[::-1])
            result[f"{name}.{'scale' if name.endswith('_norm') else kind}"] = stacked.contiguous()
    return result


def write_diffusers_folder(base: Path, folder: Path) -> Path:
    """Write the demo's base as a diffusers folder (transformer, vae, scheduler), 14 MB, and return it."""
    parts = {"transformer": load_base(base), "vae": build_vae(), "scheduler": kontext_scheduler()}
    index: dict[str, Any] = {"_class_name": "FluxKontextPipeline"} | {name: [None, None] for name in _TEXT_PARTS}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = ["diffusers", type(part).__name__]
    write_text_atomically(folder / "model_index.json", json.dumps(index, indent=2) + "\n")
    return folder


def kontext_scheduler() -> Any:  # noqa: ANN401 (diffusers has no types)
    """Kontext's scheduler, for diffusers."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**asdict(SigmaSchedule(shift=3.0)))


def write_tiny_kontext(folder: Path, *, seed: int = 0, has_text: bool = True) -> Path:
    """Write the random base as a diffusers folder (transformer, vae, scheduler, optional text encoders); return it."""
    from diffusers import AutoencoderKL

    library_vae: Any = AutoencoderKL  # its lazy classes look untyped to mypy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = build_flux(TRANSFORMER)
        vae = library_vae(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=16,
            scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
            mid_block_add_attention=False,
        )  # fmt: skip
        transformer.save_pretrained(folder / "transformer")
        vae.save_pretrained(folder / "vae")
        kontext_scheduler().save_pretrained(folder / "scheduler")
        if has_text:
            _write_text_encoders(folder)
    return folder


def write_tiny_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Write a random CLIP vision tower with embeddings of 12 numbers, and return its folder."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32,
            patch_size=8, projection_dim=EMBEDDING_DIM,
        )  # fmt: skip
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def write_image_pairs(folder: Path, *, pairs: int = 4, size_px: int = 48, seed: int = 0) -> Path:
    """Write `<edit>/0001_before.png`, `…_after.png` for a few edits, with captions, and return the folder."""
    generator = np.random.default_rng(seed)
    for name, edit in _EDITS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(1, pairs + 1):
            colors = generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)
            before = Image.fromarray(colors).resize((size_px, size_px), Image.Resampling.BICUBIC)
            before.save(folder / name / f"{number:04d}_before.png")
            edit(before).save(folder / name / f"{number:04d}_after.png")
            (folder / name / f"{number:04d}.txt").write_text(f"{name} the image", encoding="utf-8")
    return folder


def _write_text_encoders(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

    characters = [chr(code) for code in range(33, 127)]
    clip_vocabulary = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    clip_tokenizer = CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(clip_vocabulary)}, merges=[], model_max_length=77
    )
    start, end = clip_tokenizer.bos_token_id, clip_tokenizer.eos_token_id
    clip_config = CLIPTextConfig(
        vocab_size=len(clip_vocabulary), hidden_size=TRANSFORMER["pooled_projection_dim"], intermediate_size=32,
        num_hidden_layers=1, num_attention_heads=2, bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    t5_vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((c, -2.0) for c in characters)]
    t5_tokenizer = T5Tokenizer(vocab=t5_vocabulary, extra_ids=0, additional_special_tokens=[])
    t5_config = T5Config(
        vocab_size=len(t5_vocabulary), d_model=TRANSFORMER["joint_attention_dim"], d_kv=16, d_ff=64, num_layers=1,
        num_heads=2, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    CLIPTextModel(clip_config).save_pretrained(folder / "text_encoder")
    clip_tokenizer.save_pretrained(folder / "tokenizer")
    T5EncoderModel(t5_config).save_pretrained(folder / "text_encoder_2")
    t5_tokenizer.save_pretrained(folder / "tokenizer_2")
