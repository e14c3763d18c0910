"""Stage 2, first half: the numbers of every picture, one record each; what is measured already stays.

Each measure has a key of its own: the pictures it is of, and the weights it is made by. A measure whose weights are
missing is null with the reason, in the record and in the tables; a number that an earlier run made stays.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lorweb_core.encoder import ImageEncoder, load_image_encoder
from lorweb_core.errors import LoRWeBError
from lorweb_core.images import from_pil, read_image

from .folder import EvaluationFolder, fingerprint
from .generation import picture_hash
from .lpips import MIN_SIDE_PX, Lpips, load_lpips
from .metrics import NoNumber, clip_direction, psnr, ssim, to_size
from .model_files import tensors_key
from .records import Record
from .samples import Sample

logger = logging.getLogger(__name__)
MEASURES = ("lpips", "clip_direction", "psnr", "ssim")
NOT_MEASURED = "not measured; run judge"
_NEEDS_TRUTH = ("psnr", "ssim")
Number = float | NoNumber


@dataclass
class Meter:
    """What measures pictures.

    Attributes:
        lpips: the network, or why there is none.
        encoder: the image encoder of the CLIP direction, or why there is none.
        made_by: measure → name of its weights with a hash of their content; "" without weights.
    """

    lpips: Lpips | NoNumber
    encoder: ImageEncoder | NoNumber
    made_by: dict[str, str]
    _embeddings: dict[Path, Tensor] = field(default_factory=dict, repr=False)

    def measure(
        self, folder: EvaluationFolder, sample: Sample, picture: Image.Image, measures: Collection[str]
    ) -> dict[str, Number]:
        """Return the wanted measures of one b̂′."""
        b = read_image(folder.inputs(sample.id) / "b.png")
        result = from_pil(to_size(picture, b.size))
        numbers: dict[str, Number] = {}
        if "lpips" in measures:
            numbers["lpips"] = self.distance(from_pil(b), result)
        if "clip_direction" in measures:
            numbers["clip_direction"] = self._direction(folder, sample, from_pil(picture))
        with_truth = [name for name in _NEEDS_TRUTH if name in measures]
        if not sample.has_truth:
            return numbers | dict.fromkeys(with_truth, NoNumber("the set has no true b′"))
        truth = from_pil(to_size(read_image(folder.truth(sample.id)), b.size)) if with_truth else result
        return numbers | {name: psnr(truth, result) if name == "psnr" else ssim(truth, result) for name in with_truth}

    def missing_weights(self, measure: str) -> NoNumber | None:
        """Return why a measure cannot be made at all; None when it can."""
        part = {"lpips": self.lpips, "clip_direction": self.encoder}.get(measure)
        return part if isinstance(part, NoNumber) else None

    def distance(self, first: Tensor, second: Tensor) -> Number:
        """Return LPIPS of two pictures [H, W, 3] of one size."""
        if isinstance(self.lpips, NoNumber):
            return self.lpips
        if min(first.shape[:2]) < MIN_SIDE_PX:
            return NoNumber(f"LPIPS needs sides of at least {MIN_SIDE_PX} px")
        return float(self.lpips.distance(first[None], second[None])[0])

    def _direction(self, folder: EvaluationFolder, sample: Sample, result: Tensor) -> Number:
        if isinstance(self.encoder, NoNumber):
            return self.encoder
        paths = [folder.inputs(sample.id) / f"{part}.png" for part in ("a", "a_prime", "b")]
        a, a_prime, b = (self._embed_file(self.encoder, path) for path in paths)
        return clip_direction(a, a_prime, b, self.encoder.embed(result[None])[0])

    def _embed_file(self, encoder: ImageEncoder, path: Path) -> Tensor:
        """Embed a picture that every method shares; once."""
        if path not in self._embeddings:
            self._embeddings[path] = encoder.embed(from_pil(read_image(path))[None])[0]
        return self._embeddings[path]


def load_meter(
    *,
    lpips_backbone: Path | None,
    lpips_heads: Path | None,
    clip_encoder: str | None,
    device: str = "cpu",
    requires_encoder: bool = False,
) -> Meter:
    """Return a meter; a measure without weights is told in the log, and that becomes the reason of its nulls.

    Args:
        lpips_backbone: see `load_lpips`; None: no LPIPS.
        lpips_heads: see `load_lpips`.
        clip_encoder: folder or id of the image encoder; None: no CLIP direction.
        device: of the encoder.
        requires_encoder: an encoder that cannot be loaded is an error, as the user named it.
    Raises: LoRWeBError: when weights that were named cannot be loaded.
    """
    network: Lpips | NoNumber = NoNumber("LPIPS has no weights: give --lpips-backbone")
    if lpips_backbone is not None:
        network = load_lpips(lpips_backbone, lpips_heads)
    tower: ImageEncoder | NoNumber = NoNumber("CLIP direction is switched off")
    if clip_encoder is not None:
        try:
            tower = load_image_encoder(clip_encoder, device=device)
        except LoRWeBError as error:
            if requires_encoder:
                raise
            tower = NoNumber(f"CLIP direction: {error}")
    for name, part in (("LPIPS", network), ("CLIP direction", tower)):
        if isinstance(part, NoNumber):
            logger.warning("%s is not measured; earlier numbers stay, others are null: %s", name, part.reason)
    return Meter(network, tower, {"lpips": _name_lpips(network), "clip_direction": _name_encoder(tower)})


def measure_all(folder: EvaluationFolder, meter: Meter, methods: Sequence[str], samples: Sequence[Sample]) -> None:
    """Make every number that is missing, or is of other pictures or by other weights."""
    for method in methods:
        for sample in tqdm(samples, desc=f"measuring {method}", unit="picture", disable=None):
            digest = picture_hash(folder, method, sample.id)
            if digest is None:
                continue
            found = folder.measurements.find(method, sample.id)
            kept = {name: _kept(found, meter, name, digest, sample) for name in MEASURES}
            wanted = [name for name, entry in kept.items() if entry is None]
            if wanted:
                picture = read_image(folder.picture(method, sample.id))
                entries = kept | _entries(meter, meter.measure(folder, sample, picture, wanted), digest, sample)
                folder.measurements.append(_record(method, sample, digest, entries))


def read_number(record: Record | None, measure: str, digest: str | None, sample: Sample) -> float | str:
    """Return a measure of a method's picture from its record, or the reason why there is none.

    Args:
        record: of method and sample.
        measure: one of MEASURES.
        digest: hash of the method's picture as it is now.
        sample: with the inputs as they are now.
    """
    entry = _entry(record, measure, digest, sample)
    if entry is None:
        return NOT_MEASURED
    return entry["reason"] if entry["number"] is None else float(entry["number"])


def made_by(folder: EvaluationFolder, methods: Sequence[str], samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Return measure → the weights that made its numbers."""
    found: dict[str, set[str]] = {}
    for method in methods:
        for sample in samples:
            record, digest = folder.measurements.find(method, sample.id), picture_hash(folder, method, sample.id)
            for measure in MEASURES:
                entry = _entry(record, measure, digest, sample)
                if entry is not None and entry["number"] is not None and entry["by"]:
                    found.setdefault(measure, set()).add(entry["by"])
    return {measure: sorted(names) for measure, names in found.items()}


def _entry(record: Record | None, measure: str, digest: str | None, sample: Sample) -> Record | None:
    """A measure in a record, when it is of the present pictures: its number, reason and source."""
    source = None if record is None else record.get("sources", {}).get(measure)
    if record is None or source is None or source["of"] != _of(measure, digest, sample):
        return None
    return {"number": record["numbers"].get(measure), "reason": record["reasons"].get(measure), **source}


def _kept(record: Record | None, meter: Meter, measure: str, digest: str, sample: Sample) -> Record | None:
    """The entry that need not be made again: it is by the meter's weights, or the meter has none for it."""
    entry, lacking = _entry(record, measure, digest, sample), meter.missing_weights(measure)
    if entry is None:
        return None
    if lacking is not None:
        return entry if entry["number"] is not None or entry["reason"] == lacking.reason else None
    return entry if entry["by"] == meter.made_by.get(measure, "") else None


def _entries(meter: Meter, numbers: dict[str, Number], digest: str, sample: Sample) -> dict[str, Record]:
    return {
        name: {
            "number": None if isinstance(number, NoNumber) else number,
            "reason": number.reason if isinstance(number, NoNumber) else None,
            "of": _of(name, digest, sample),
            "by": meter.made_by.get(name, ""),
        }
        for name, number in numbers.items()
    }


def _record(method: str, sample: Sample, digest: str, entries: Mapping[str, Record | None]) -> Record:
    made = {name: entry for name, entry in entries.items() if entry is not None}
    sources = {name: {"of": entry["of"], "by": entry["by"]} for name, entry in made.items()}
    return {
        "method": method, "sample": sample.id, "task": sample.task, "source": fingerprint(sources),
        "picture_sha256": digest,
        "numbers": {name: entry["number"] for name, entry in made.items()},
        "reasons": {name: entry["reason"] for name, entry in made.items() if entry["number"] is None},
        "sources": sources,
    }  # fmt: skip


def _of(measure: str, digest: str | None, sample: Sample) -> str:
    """Names the pictures that a measure is of."""
    return fingerprint(digest, sample.inputs, sample.truth if measure in _NEEDS_TRUTH else "")


def _name_lpips(network: Lpips | NoNumber) -> str:
    if isinstance(network, NoNumber):
        return ""
    weights = [tensor for layer in network.layers for tensor in layer.state_dict().values()]
    return f"{network.name}-{tensors_key([*weights, *network.heads])}"


def _name_encoder(encoder: ImageEncoder | NoNumber) -> str:
    if isinstance(encoder, NoNumber):
        return ""
    key = tensors_key(encoder.model.state_dict().values(), encoder.output_name, repr(encoder.preprocessing))
    return f"{encoder.encoder_id}-{key}"
