"""Prompts become what diffusers' Kontext pipeline makes of them, and a warning names cut ones."""

import gc

import pytest
import torch

from training.base.text import encode_captions
from training.demo.tiny_kontext import TRANSFORMER
from training.train import train

CAPTIONS = ("", "invert", "one prompt that is longer than all of its tokens")
MAX_TOKENS = 16


def _encode(tiny_parts):
    """The tiny base's embeddings of all captions, as training makes them, one after the other."""
    sizes = {"max_tokens": MAX_TOKENS, "dtype": torch.float32, "device": torch.device("cpu")}
    return encode_captions(CAPTIONS, tiny_parts / "model-with-text", TRANSFORMER, **sizes)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_embeddings_are_those_of_the_stock_pipeline(tiny_parts, caption):
    from diffusers import FluxKontextPipeline
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

    classes = {
        "text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel, "tokenizer": CLIPTokenizer,
        "tokenizer_2": T5Tokenizer,
    }  # fmt: skip
    parts = {
        name: part.from_pretrained(tiny_parts / "model-with-text" / name, local_files_only=True)
        for name, part in classes.items()
    }
    pipeline = FluxKontextPipeline(scheduler=None, vae=None, transformer=None, **parts)
    with torch.no_grad():
        prompt, pooled, _ = pipeline.encode_prompt(
            prompt=caption, prompt_2=None, device=torch.device("cpu"), max_sequence_length=MAX_TOKENS
        )
    encoded = dict(_encode(tiny_parts))[caption]
    assert torch.equal(encoded[0], prompt[0])
    assert torch.equal(encoded[1], pooled[0])


def test_a_warning_counts_only_prompts_that_are_cut(tiny_parts, caplog):
    assert len(dict(_encode(tiny_parts))) == 3
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert line == f"1 of 3 prompts are longer than max_tokens, 16, and are cut; first: {CAPTIONS[2]!r}"


def test_one_text_encoder_is_in_memory_at_a_time(tiny_parts):
    """T5 (9.5 GB) and CLIP together would be the peak of a 16 GB card."""
    from transformers import CLIPTextModel, T5EncoderModel

    gc.collect()
    before = {id(item) for item in gc.get_objects()}
    embeddings = _encode(tiny_parts)
    next(embeddings)
    new = [item for item in gc.get_objects() if id(item) not in before]
    assert [type(item) for item in new if isinstance(item, CLIPTextModel | T5EncoderModel)] == [T5EncoderModel]


def test_tiny_config_cuts_none_of_the_tiny_prompts(tiny_parts, tiny_config, caplog):
    options = ("text.caption_source=a", f"base.model={tiny_parts / 'model-with-text'}", "run.steps=1")
    train(tiny_config(*options))
    assert [message for message in caplog.messages if "are cut" in message] == []
