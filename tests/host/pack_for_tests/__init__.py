"""Test-only nodes: a text encoder without weights, in place of 10 GB of T5, and names that come over links.

Everything downstream is the host's own: T5TokenizerOptions sets options on it and CLIPTextEncode encodes with it.
"""

import hashlib

import torch

TOKENS = 8
CONTEXT_DIM, POOLED_DIM = 4096, 768


class SeededTextEncoder:
    """Answers what the host's nodes ask of a CLIP; every text gives its own seeded numbers."""

    def __init__(self, options=()):
        self.options = dict(options)

    def clone(self):
        """Return a copy whose options can be changed."""
        return SeededTextEncoder(self.options)

    def set_tokenizer_option(self, name, value):
        """Remember an option; it takes part in the seed, so that a test sees that it arrived."""
        self.options[name] = value

    def tokenize(self, text, **_options):
        """Return what stands for tokens: text and options."""
        return repr((text, sorted(self.options.items())))

    def encode_from_tokens_scheduled(self, tokens):
        """Return a CONDITIONING of FLUX's widths."""
        seed = int.from_bytes(hashlib.sha256(tokens.encode()).digest()[:4], "big")
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, TOKENS, CONTEXT_DIM, generator=generator)
        return [[context, {"pooled_output": torch.randn(1, POOLED_DIM, generator=generator)}]]


class LoadSeededTextEncoder:
    """Stands in for DualCLIPLoader."""

    CATEGORY, FUNCTION, RETURN_TYPES = "LoRWeB tests", "load", ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        return (SeededTextEncoder(),)


class AnyType(str):
    """A socket type that fits every other, as several packs have one."""

    def __ne__(self, other):
        return False


class NameOnALink:
    """Gives a text to a widget that was made an input, whatever the list behind it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "LoRWeB tests", "give", (AnyType("*"),)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": ""})}}

    def give(self, text):
        return (text,)


NODE_CLASS_MAPPINGS = {"LoRWeBTestTextEncoder": LoadSeededTextEncoder, "LoRWeBTestNameOnALink": NameOnALink}
