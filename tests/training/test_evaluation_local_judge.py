"""A judge in this process: a tiny random Gemma-3 of the true architecture, built in code, read as a real one is."""

import re

import pytest
import torch
from PIL import Image

from training.evaluation.errors import JudgeError
from training.evaluation.local_judge import LocalJudge

_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
_IMAGE = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_PICTURE_TOKENS = 4


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Folder of a Gemma-3 with 32-px pictures of four tokens and a vocabulary of characters."""
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
        GemmaTokenizer,
    )

    folder = tmp_path_factory.mktemp("gemma") / "tiny-gemma"
    pieces = [*_SPECIAL, *_IMAGE, *(chr(code) for code in range(32, 127)), "▁", "\n"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    names = {"boi_token": _IMAGE[0], "eoi_token": _IMAGE[1], "image_token": _IMAGE[2]}
    Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=GemmaTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=names),
        chat_template=_TEMPLATE,
        image_seq_length=_PICTURE_TOKENS,
    ).save_pretrained(folder)
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Gemma3Config(
            text_config={
                **shared, "vocab_size": len(vocabulary), "num_hidden_layers": 2, "num_key_value_heads": 1,
                "head_dim": 16, "sliding_window": 64, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
            },
            vision_config={**shared, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8},
            mm_tokens_per_image=_PICTURE_TOKENS,
            boi_token_index=vocabulary[_IMAGE[0]],
            eoi_token_index=vocabulary[_IMAGE[1]],
            image_token_index=vocabulary[_IMAGE[2]],
        )  # fmt: skip
        Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_transformers_model_answers_with_new_words_only_and_repeatably(gemma):
    judge = LocalJudge(str(gemma), dtype=torch.float32, max_reply_tokens=12)
    parts = ["Look:", Image.new("RGB", (40, 30), "red"), "and", Image.new("RGB", (40, 50), "blue")]
    assert re.fullmatch("tiny-gemma@[0-9a-f]{8}", judge.model)
    cold, again = (judge.reply(parts, temperature=0.0, seed=seed) for seed in (0, 1))
    assert cold == again, "temperature 0 takes no chances"
    assert "Look" not in cold
    warm, same, other = (judge.reply(parts, temperature=0.8, seed=seed) for seed in (1, 1, 2))
    assert warm == same != other


def test_a_folder_without_such_a_model_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(JudgeError, match="image-text-to-text model"):
        LocalJudge(str(tmp_path))
