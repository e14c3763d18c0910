"""Prompt and image embeddings, computed once before training.

With `data.cache` they are kept on disk, each under everything it depends on (a replaced image or model file is a new
one), and the processes of a run share the work: each computes its part, and then what it still lacks, as on another
machine's disk. Without it prompts are in memory (4 MB each at 512 tokens) and images are embedded in every step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lorweb_core.encoder import ENCODER_FILES, ImageEncoder, find_encoder_folder

from ..base.source import ModelSource, read_transformer_config
from ..base.text import encode_captions, has_text_encoders
from ..base.transformer import DTYPES
from ..config.schema import TrainConfig
from ..data.index import PairRecord
from ..data.quadruplets import EncoderImages, collate_quadruplets
from ..data.tensor_cache import TensorCache, file_facts, text_key
from .data import DataLostError
from .distributed import Item, Processes

logger = logging.getLogger(__name__)
_PAIRS_PER_BATCH = 32


def cached_captions(
    config: TrainConfig, source: ModelSource, prompts: Sequence[str], processes: Processes
) -> Callable[[str], tuple[Tensor, Tensor]]:
    """Return prompt → (prompt_embeds, pooled), computed now for all prompts."""
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

    def compute(wanted: Sequence[str]) -> None:
        missing = [prompt for prompt in wanted if cache.missing([text_key(prompt), f"{text_key(prompt)}.pooled"])]
        if missing:
            for prompt, pair in encode_captions(missing, source.components, transformer_config, **options):
                cache.put(text_key(prompt), pair[0])
                cache.put(f"{text_key(prompt)}.pooled", pair[1])
            cache.flush()

    _share_work(compute, prompts, cache, processes)
    return lambda prompt: (_cached(cache, text_key(prompt)), _cached(cache, f"{text_key(prompt)}.pooled"))


def cached_embeddings(
    config: TrainConfig, encoder: ImageEncoder, records: Sequence[PairRecord], processes: Processes
) -> Callable[[str], Tensor]:
    """Return image key → [P] for every image of these pairs, computed now where missing from `data.cache`."""
    assert config.data.cache is not None
    fingerprint = {
        "kind": "image",
        "model": file_facts(find_encoder_folder(config.encoder.model, local_files_only=True), *ENCODER_FILES),
        "preprocessing": vars(encoder.preprocessing),
    }
    cache = TensorCache(config.data.cache, fingerprint)

    def compute(wanted: Sequence[PairRecord]) -> None:
        images = EncoderImages(wanted, encoder.preprocessing, known=cache.keys())
        if not len(images):
            return
        logger.info("embedding the images of %d pairs", len(images))
        loader: DataLoader[Any] = DataLoader(
            images, batch_size=_PAIRS_PER_BATCH, collate_fn=collate_quadruplets, num_workers=config.data.workers
        )
        for batch in tqdm(loader, desc="image embeddings", disable=None):
            if batch:  # empty when all of its images are unreadable
                embeddings = encoder.embed(batch["images"].flatten(0, 1).float() / 255)
                for key, embedding in zip((key for pair in batch["keys"] for key in pair), embeddings, strict=True):
                    cache.put(key, embedding)
        cache.flush()

    _share_work(compute, records, cache, processes)
    return lambda key: _cached(cache, key)


def _share_work(
    compute: Callable[[Sequence[Item]], None], items: Sequence[Item], cache: TensorCache, processes: Processes
) -> None:
    """Let each process compute its share of what is missing, then whatever no other left on a disk that it sees."""
    compute(processes.share(items))
    if processes.world_size > 1:
        processes.wait()
        cache.refresh()
        compute(items)


def _cached(cache: TensorCache, key: str) -> Tensor:
    tensor = cache.get(key)
    if tensor is None:
        raise DataLostError(
            f"{cache.folder} no longer has the embedding {key}: the image was replaced during the run, or the entry "
            "was damaged. Start again with --resume latest, which computes what is missing before training continues."
        )
    return tensor
