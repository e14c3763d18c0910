"""Embeddings and latents that are computed once and kept on disk, each under everything that it depends on.

What comes from a file is kept under that file's size and time of change, of images also content or path: an image or
model that is replaced under its name is a new one.

With `data.cache` unset, prompts live in memory (1 MB each at 128 tokens, 4 MB at 512) and nothing else is kept. With it
the processes of a run share the work: each makes its part, and then what it still misses, as on another machine's disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lorweb_core.encoder import ENCODER_FILES, ImageEncoder, find_encoder_folder
from lorweb_core.errors import ModelError

from ..base.source import ModelSource, read_transformer_config
from ..base.text import encode_captions, has_text_encoders
from ..base.transformer import DTYPES
from ..config.schema import TrainConfig
from ..data.index import PairRecord
from ..data.quadruplets import EncoderImages, collate_quadruplets
from ..data.tensor_cache import TensorCache, file_facts, text_key
from .distributed import Item, Processes

logger = logging.getLogger(__name__)
_PICTURES_AT_A_TIME = 32


def cached_captions(
    config: TrainConfig, source: ModelSource, prompts: Sequence[str], processes: Processes
) -> Callable[[str], tuple[Tensor, Tensor]]:
    """Return prompt → (prompt_embeds, pooled), made now for all prompts; kept on disk when `data.cache` is set."""
    options: dict[str, Any] = {
        "max_tokens": config.text.max_tokens, "dtype": DTYPES[config.base.dtype], "device": processes.device,
    }  # fmt: skip
    transformer_config = read_transformer_config(source)
    if config.data.cache is None or not has_text_encoders(source.components):
        return dict(encode_captions(prompts, source.components, transformer_config, **options)).__getitem__
    fingerprint = {
        "kind": "text",
        "model": file_facts(source.components, "text_encoder*/*", "tokenizer*/*"),
        "max_tokens": config.text.max_tokens,
        "dtype": config.base.dtype,
    }
    cache = TensorCache(config.data.cache, fingerprint)

    def make(wanted: Sequence[str]) -> None:
        missing = [prompt for prompt in wanted if cache.missing([text_key(prompt), f"{text_key(prompt)}.pooled"])]
        if not missing:
            return
        for prompt, pair in encode_captions(missing, source.components, transformer_config, **options):
            cache.put(text_key(prompt), pair[0])
            cache.put(f"{text_key(prompt)}.pooled", pair[1])
        cache.flush()

    _make_together(make, prompts, cache, processes)
    return lambda prompt: (_held(cache, text_key(prompt)), _held(cache, f"{text_key(prompt)}.pooled"))


def cached_embeddings(
    config: TrainConfig, encoder: ImageEncoder, records: Sequence[PairRecord], processes: Processes
) -> Callable[[str], Tensor]:
    """Return picture key → [P] for every picture of these pairs, made now where missing."""
    model_folder = find_encoder_folder(config.encoder.model, local_files_only=True)
    fingerprint = {
        "kind": "image",
        "model": file_facts(model_folder, *ENCODER_FILES),
        "preprocessing": vars(encoder.preprocessing),
    }
    assert config.data.cache is not None
    cache = TensorCache(config.data.cache, fingerprint)

    def make(wanted: Sequence[PairRecord]) -> None:
        for key, embedding in _embed_pictures(config, encoder, wanted, known=cache.keys()):
            cache.put(key, embedding)
        cache.flush()

    _make_together(make, records, cache, processes)
    return lambda key: _held(cache, key)


def _make_together(
    make: Callable[[Sequence[Item]], None], items: Sequence[Item], cache: TensorCache, processes: Processes
) -> None:
    """Have each process make its share of what is missing, then whatever no other has left where it can be seen."""
    make(processes.share(items))
    if processes.world_size == 1:
        return
    processes.wait()
    cache.refresh()
    make(items)


def _embed_pictures(
    config: TrainConfig, encoder: ImageEncoder, records: Sequence[PairRecord], known: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """Give picture key and embedding [P] of every picture of these pairs that is not known."""
    pictures = EncoderImages(records, encoder.preprocessing, known=known)
    logger.info("embedding the images of %d pairs", len(pictures))
    loader: DataLoader[Any] = DataLoader(
        pictures, batch_size=_PICTURES_AT_A_TIME, collate_fn=collate_quadruplets, num_workers=config.data.workers
    )
    for batch in tqdm(loader, desc="image embeddings", disable=None if len(pictures) else True):
        if not batch:
            continue
        embeddings = encoder.embed(batch["images"].flatten(0, 1).float() / 255)
        yield from zip([key for pair in batch["keys"] for key in pair], embeddings, strict=True)


def _held(cache: TensorCache, key: str) -> Tensor:
    tensor = cache.get(key)
    if tensor is None:
        raise ModelError(
            f"{cache.folder} has no embedding {key} any more: the image was replaced during the run, or the entry was "
            "damaged. Start again with --resume latest: what is missing is made before training goes on."
        )
    return tensor
