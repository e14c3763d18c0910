"""A random Kontext of true architecture, 1 MB, and pictures to go with it: the whole trainer on a CPU in a minute.

    python -m training.demo.tiny_kontext runs/tiny-parts          writes model/, encoder/, pictures/
    python -m training.prepare folders runs/tiny-parts/pictures --out runs/tiny-parts/pairs.jsonl
    python -m training.train --config tiny.yaml

The weights are seeded noise, so the edits are too; it shows that everything fits together. A base that has learned
something is built by `training.demo`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

#: Sizes of the tiny transformer; every dimension that the code distinguishes differs.
TRANSFORMER: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 24,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
EMBEDDING_DIM = 12
_SCHEDULER = {
    "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
    "base_image_seq_len": 256, "max_image_seq_len": 4096,
}  # fmt: skip
_EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "invert": ImageOps.invert,
    "mirror": ImageOps.mirror,
    "gray": lambda picture: ImageOps.grayscale(picture).convert("RGB"),
    "posterize": lambda picture: ImageOps.posterize(picture, 2),
}


def write_tiny_kontext(folder: Path, *, seed: int = 0, has_text: bool = True) -> Path:
    """Write a diffusers folder (transformer, vae, scheduler, and text encoders if wished) and return it."""
    import diffusers

    library: Any = diffusers  # its lazy classes look untyped to checkers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = library.FluxTransformer2DModel(**TRANSFORMER)
        vae = library.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=16,
            scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
            mid_block_add_attention=False,
        )  # fmt: skip
        transformer.save_pretrained(folder / "transformer")
        vae.save_pretrained(folder / "vae")
        library.FlowMatchEulerDiscreteScheduler(**_SCHEDULER).save_pretrained(folder / "scheduler")
        if has_text:
            _write_text_encoders(folder)
    return folder


def write_tiny_encoder(folder: Path, *, seed: int = 0) -> Path:
    """Write a CLIP vision tower with projection to 12 numbers, and return its folder."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32,
            patch_size=8, projection_dim=EMBEDDING_DIM,
        )  # fmt: skip
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def write_pictures(folder: Path, *, pairs: int = 4, size_px: int = 48, seed: int = 0) -> Path:
    """Write `<edit>/0001_before.png`, `…_after.png` for a few edits, with captions, and return the folder."""
    generator = np.random.default_rng(seed)
    for name, edit in _EDITS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(1, pairs + 1):
            colors = generator.integers(0, 256, (3, 3, 3), dtype=np.uint8)
            before = Image.fromarray(colors).resize((size_px, size_px), Image.Resampling.BICUBIC)
            before.save(folder / name / f"{number:04d}_before.png")
            edit(before).save(folder / name / f"{number:04d}_after.png")
            (folder / name / f"{number:04d}.txt").write_text(f"{name} the picture", encoding="utf-8")
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


def main() -> None:
    """Write model, encoder and pictures into the folder named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.tiny_kontext", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="gets model/, encoder/ and pictures/")
    folder = parser.parse_args().folder
    write_tiny_kontext(folder / "model")
    write_tiny_encoder(folder / "encoder")
    write_pictures(folder / "pictures")
    print(f"Wrote model, encoder and pictures. Next: python -m training.prepare folders {folder / 'pictures'} "
          f"--out {folder / 'pairs.jsonl'}")  # fmt: skip


if __name__ == "__main__":
    main()
