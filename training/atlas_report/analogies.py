"""Known analogies of a pair index, and their query embeddings kept on disk.

Every pair a, a′ asks for one analogy; its b is the before picture of the next pair of the same task (of itself when
the task has no other), so that b is new to a as it is when a basis is used. Query embeddings depend on pictures,
encoder and query mode and not on the basis: atlases of several bases share them.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lorweb_core.basis import Basis
from lorweb_core.encoder import ENCODER_FILES, ImageEncoder, find_encoder_folder
from lorweb_core.images import ImageFileError, from_pil
from lorweb_core.query import embed_analogy
from lorweb_core.router import join_query_embedding

from ..data.cache import TensorCache, file_facts, text_key
from ..data.index import PairRecord
from ..data.pictures import load_pair
from ..data.problems import DataError

logger = logging.getLogger(__name__)

#: Analogies per file of the cache: what an interruption may cost at most.
SHARD_ENTRIES = 64
#: A plane needs three points.
FEWEST_ANALOGIES = 3


@dataclass(frozen=True)
class Analogy:
    """One known analogy a : a′ :: b : ?, with both pairs of one task."""

    pair: PairRecord
    b: PairRecord

    @property
    def key(self) -> str:
        """Names the three pictures, see `PairRecord.content_key`."""
        return text_key(f"{self.pair.content_key} {self.b.content_key}")


def choose_analogies(
    records: Sequence[PairRecord], *, split: str = "all", tasks: Collection[str] = (), per_task: int = 0
) -> list[Analogy]:
    """Return the analogies of an index in its order, grouped by task.

    Args:
        records: pairs.
        split: only pairs of this one; `all` for every split.
        tasks: only these; all when empty.
        per_task: at most this many of each task, the first ones; 0 for all.
    Raises: DataError: for unknown tasks, or fewer than three analogies.
    """
    by_task: dict[str, list[PairRecord]] = defaultdict(list)
    for record in records:
        if split in ("all", record.split):
            by_task[record.task].append(record)
    unknown = sorted(set(tasks) - set(by_task))
    if unknown:
        raise DataError(
            expected=f"tasks of the index (split {split}), such as {', '.join(sorted(by_task)[:5]) or 'none'}",
            got=", ".join(unknown),
            remedy="Correct --tasks or --split.",
        )
    chosen: list[Analogy] = []
    for task, pairs in by_task.items():
        if not tasks or task in tasks:
            kept = pairs[: per_task or None]
            chosen += [Analogy(pair, kept[(place + 1) % len(kept)]) for place, pair in enumerate(kept)]
    _require_enough(len(chosen), f"{len(chosen)} of {len(records)} pairs (split {split})")
    return chosen


def open_embeddings(folder: Path, basis: Basis, encoder: ImageEncoder, encoder_source: str) -> TensorCache:
    """Return the cache of query embeddings [Q] under this encoder and query mode.

    Raises: OutputError: when the folder cannot be written.
    """
    fingerprint: dict[str, Any] = {
        "kind": "analogies",
        "encoder": file_facts(find_encoder_folder(encoder_source, local_files_only=True), *ENCODER_FILES),
        "preprocessing": vars(encoder.preprocessing),
        "query_mode": basis.settings.query_mode,
    }
    return TensorCache(folder, fingerprint, shard_entries=SHARD_ENTRIES)


def embed_analogies(
    analogies: Sequence[Analogy], basis: Basis, encoder: ImageEncoder, cache: TensorCache
) -> tuple[list[Analogy], Tensor]:
    """Return the analogies whose pictures can be read, and their query embeddings [A, Q]; made now where missing.

    Raises: DataError: when fewer than three can be read. ShapeError: when encoder and basis do not fit.
    """
    missing = [analogy for analogy in analogies if analogy.key not in cache]
    told: set[Path] = set()  # a broken pair is missed twice: as an analogy, and as the b of another
    try:
        for analogy in tqdm(missing, desc="analogies", disable=not missing):
            try:
                embedding = embed_pictures(basis, encoder, *_load(analogy))
            except ImageFileError as error:
                if error.path not in told:
                    logger.warning("left out %s: %s: %s", error.path, error.kind, error.reason)
                told.add(error.path)
                continue
            cache.put(analogy.key, embedding[0])
    finally:
        cache.flush()
    found = [(analogy, held) for analogy in analogies if (held := cache.get(analogy.key)) is not None]
    _require_enough(len(found), f"{len(found)} with usable pictures, of {len(analogies)}")
    return [analogy for analogy, _ in found], torch.stack([held for _, held in found])


def embed_pictures(basis: Basis, encoder: ImageEncoder, a: Image.Image, a_prime: Image.Image, b: Image.Image) -> Tensor:
    """Return the query embedding [1, Q] of three RGB pictures.

    Raises: ShapeError: when the encoder is not the one that the basis was trained with.
    """
    pictures = (from_pil(picture)[None] for picture in (a, a_prime, b))
    query = embed_analogy(basis.settings, encoder.embed, *pictures, preprocessing=encoder.preprocessing)
    return join_query_embedding(query, basis.query_dim)


def _load(analogy: Analogy) -> tuple[Image.Image, Image.Image, Image.Image]:
    return (*load_pair(analogy.pair), load_pair(analogy.b)[0])


def _require_enough(count: int, got: str) -> None:
    if count < FEWEST_ANALOGIES:
        raise DataError(
            expected=f"at least {FEWEST_ANALOGIES} analogies to draw a map of",
            got=got,
            remedy="Name an index with more pairs, or widen --split, --tasks and --per-task.",
        )
