"""Every picture of a pair index once, as the image encoder sees it: what a cache of image embeddings is filled from.

loader = DataLoader(EncoderPictures(records, preprocessing), batch_size=32, collate_fn=collate_quadruplets)
for batch in loader:   # keys: 32 × [before, after]; images uint8 [32, 2, S, S, 3]
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import torch
from torch.utils.data import Dataset

from lorweb_core.images import MAX_PIXELS, ImageFileError
from lorweb_core.preprocessing import Preprocessing

from .index import PairRecord
from .pictures import load_pair
from .problems import OnBadData
from .quadruplets import BrokenPictureError, Item, fit_for_encoder

logger = logging.getLogger(__name__)


class EncoderPictures(Dataset[Item | None]):
    """Per pair `keys` [before, after] and `images` uint8 [2, S, S, 3]; None for a broken picture with `skip`.

    Args:
        records: pairs of every split that is used.
        preprocessing: of the image encoder.
        known: keys that the cache already holds; pairs of which both are known are left out.
        on_bad_data: see `QuadrupletDataset`.
        max_pixels: larger pictures count as broken.
    """

    def __init__(
        self,
        records: Sequence[PairRecord],
        preprocessing: Preprocessing,
        *,
        known: Collection[str] = (),
        on_bad_data: OnBadData = "skip",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        held = set(known)
        wanted = {r.before_key + r.after_key: r for r in records if not {r.before_key, r.after_key} <= held}
        self.records = tuple(wanted.values())
        self.preprocessing, self.on_bad_data, self.max_pixels = preprocessing, on_bad_data, max_pixels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> Item | None:
        record = self.records[position]
        try:
            pictures = load_pair(record, max_pixels=self.max_pixels)
        except ImageFileError as error:
            if self.on_bad_data == "stop":
                raise BrokenPictureError(str(error)) from error
            logger.warning("no embedding for %s: %s: %s", error.path, error.kind, error.reason)
            return None
        images = torch.stack([fit_for_encoder(picture, self.preprocessing) for picture in pictures])
        return {"keys": [record.before_key, record.after_key], "images": images}
