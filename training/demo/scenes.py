"""Procedural images of the demo: pixel-art scenes and mosaics of photographs, the edits, and which are held out.

An image is 12 × 12 art pixels; `to_image` makes each a block of 8 px (96 px a side), which the demo's VAE carries
exactly. Scenes are muted (low saturation, ground lighter than the shape) and edits vivid, so that an edit can be seen
in a' itself, as with real photographs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lorweb_core.images import read_image

from ..data.index import PairRecord, write_pairs

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

ART_SIZE = 12
BLOCK_PX = 8
IMAGE_PX = ART_SIZE * BLOCK_PX
PHOTOS = Path(__file__).parent / "photos"
#: The shipped files: base.safetensors, encoder/, basis.safetensors, README.md.
MODEL_FOLDER = Path(__file__).parent / "model"
TRAINING_PHOTOS = ("astronaut", "coffee", "rocket", "raccoon")
TEST_PHOTOS = ("chelsea", "hopper")

#: Twelve vivid colors, 30 degrees apart on the color circle.
HUES = ("red", "orange", "yellow", "lime", "green", "mint", "cyan", "azure", "blue", "violet", "magenta", "rose")
HUE_KINDS = ("frame", "stripes", "corner", "ground", "shape", "outline", "tint", "columns", "bar")
AMOUNT_KINDS = ("darker", "lighter")
PLAIN_KINDS = ("gray", "invert")
KINDS = HUE_KINDS + AMOUNT_KINDS + PLAIN_KINDS
SCENE_ONLY_KINDS = ("ground", "shape", "outline")
AMOUNTS = (0.35, 0.5, 0.65)

#: Whole edits that neither the encoder nor the basis sees in training.
HELD_OUT_KINDS = ("columns", "bar")
HELD_OUT_AMOUNT = 0.5
TRAINED_KINDS = tuple(kind for kind in KINDS if kind not in HELD_OUT_KINDS)

_SPRITES = (
    ".####. ###### ###### ###### ###### .####.",  # disc
    "###### ###### ###### ###### ######",  # block
    "..##.. .####. ###### ###### .####. ..##..",  # diamond
    "..#.. .###. .###. ##### #####",  # triangle
    "..##.. ..##.. ###### ###### ..##.. ..##..",  # plus
    ".#.#. ##### ##### .###. ..#..",  # heart
    "..##.. .####. ###### .####. .####. .####.",  # house
    "..##.. .####. ###### .####. ...#.. ...#..",  # tree
    ".####. ##..## #....# #....# ##..## .####.",  # ring
    "#...# ##.## ##### .###. ##### #.#.#",  # creature
    "###... ####.. ..#### ...### ..####",  # boot
    ".####. ###### ###### ..##.. ..##..",  # mushroom
)


@dataclass(frozen=True)
class Edit:
    """A kind of `KINDS` with its parameter."""

    kind: str
    hue: int | None = None  # index into `HUES`, for `HUE_KINDS` only
    amount: float | None = None  # factor on the light (darker), or on the distance to white (lighter)

    @property
    def name(self) -> str:
        """For tables and file names, such as `frame-azure` or `darker-0.5`."""
        parameter = HUES[self.hue] if self.hue is not None else self.amount
        return self.kind if parameter is None else f"{self.kind}-{parameter}"

    @property
    def is_held_out(self) -> bool:
        """True if basis and encoder never train on it: a held-out kind, hue of its kind, or amount."""
        if self.kind in HELD_OUT_KINDS or self.amount == HELD_OUT_AMOUNT:
            return True
        return self.hue is not None and self.hue in held_out_hues(self.kind)


@dataclass(frozen=True)
class Scene:
    """An image before any edit; photographs have no masks."""

    pixels: Pixels  # [12, 12, 3] in 0–1 on the 8-bit grid, RGB
    shape_mask: Mask | None = None  # [12, 12], of the main shape
    ground_mask: Mask | None = None  # [12, 12], of the plain ground

    def takes(self, edit: Edit) -> bool:
        """False for an edit that needs a ground or shape, on a photograph."""
        return self.shape_mask is not None or edit.kind not in SCENE_ONLY_KINDS


def held_out_hues(kind: str) -> tuple[int, ...]:
    """The three hues of a kind that are kept for testing; each hue is seen with most other kinds."""
    start = HUE_KINDS.index(kind)
    return tuple(sorted((start + step) % len(HUES) for step in (0, 4, 7)))


@cache
def all_edits() -> tuple[Edit, ...]:
    """Every edit of the demo, in a fixed order."""
    hues = [Edit(kind, hue=hue) for kind in HUE_KINDS for hue in range(len(HUES))]
    amounts = [Edit(kind, amount=amount) for kind in AMOUNT_KINDS for amount in AMOUNTS]
    return (*hues, *amounts, *(Edit(kind) for kind in PLAIN_KINDS))


def edits_of(*, kinds: Sequence[str] = KINDS, is_held_out: bool | None = None) -> tuple[Edit, ...]:
    """The edits of some kinds: seen ones, held-out ones, or (None) both."""
    chosen = (edit for edit in all_edits() if edit.kind in kinds)
    return tuple(edit for edit in chosen if is_held_out is None or edit.is_held_out == is_held_out)


def validation_edits() -> tuple[Edit, ...]:
    """The held-out edits on which learning rates are chosen: one hue of every trained kind. Never part of a test."""
    kinds = [kind for kind in HUE_KINDS if kind in TRAINED_KINDS]
    return tuple(Edit(kind, hue=held_out_hues(kind)[0]) for kind in kinds)


def held_out_parameters() -> tuple[Edit, ...]:
    """The test's edits of trained kinds with a held-out hue or amount, without those of `validation_edits`."""
    chosen_on = validation_edits()
    return tuple(edit for edit in edits_of(kinds=TRAINED_KINDS, is_held_out=True) if edit not in chosen_on)


def hue_color(hue: int) -> Pixels:
    """The vivid color [3] of a hue index."""
    return _from_hsv(hue / len(HUES), 1.0, 1.0)


def draw_scene(rng: np.random.Generator) -> Scene:
    """A random scene: plain light ground, one darker shape of a dozen, often a small dot."""
    ground = _from_hsv(rng.random(), rng.uniform(0.05, 0.35), rng.uniform(0.55, 0.95))
    shape = _from_hsv(rng.random(), rng.uniform(0.15, 0.6), rng.uniform(0.1, 0.45))
    pixels = np.broadcast_to(ground, (ART_SIZE, ART_SIZE, 3)).copy()
    rows = _SPRITES[int(rng.integers(len(_SPRITES)))].split()
    sprite = np.array([[character == "#" for character in row] for row in rows])
    sprite = sprite[:, ::-1] if rng.random() < 0.5 else sprite
    height, width = sprite.shape
    mask = np.zeros((ART_SIZE, ART_SIZE), bool)
    top, left = int(rng.integers(1, ART_SIZE - height)), int(rng.integers(1, ART_SIZE - width))
    mask[top : top + height, left : left + width] = sprite
    pixels[mask] = shape
    dot = np.zeros_like(mask)
    if rng.random() < 0.5:
        top, left = (int(value) for value in rng.integers(0, ART_SIZE - 1, 2))
        dot[top : top + 2, left : left + 2] = True
        if (dot & (mask | _neighbors(mask))).any():  # too close to the shape
            dot[:] = False
    pixels[dot] = _from_hsv(rng.random(), rng.uniform(0.1, 0.5), rng.uniform(0.2, 0.9))
    return Scene(_on_8_bits(pixels), mask, ~(mask | dot))


def draw_mosaic(photos: Sequence[str], rng: np.random.Generator) -> Scene:
    """A 12 × 12 mosaic of a random crop of a random photograph, mirrored half of the time."""
    photo = _photo(photos[int(rng.integers(len(photos)))])
    side = int(rng.integers(48, 129))
    left, top = (int(rng.integers(0, 129 - side)) for _ in range(2))
    crop = photo.resize((ART_SIZE, ART_SIZE), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, np.float32) / 255
    return Scene((pixels[:, ::-1] if rng.random() < 0.5 else pixels).astype(np.float32))


def draw(edit: Edit, rng: np.random.Generator, *, photos: Sequence[str] = TRAINING_PHOTOS) -> Scene:
    """A random image that takes the edit: one in three is a mosaic, unless the edit needs a scene."""
    wants_mosaic = rng.random() < 1 / 3
    return draw_mosaic(photos, rng) if wants_mosaic and edit.kind not in SCENE_ONLY_KINDS else draw_scene(rng)


def apply_edit(scene: Scene, edit: Edit) -> Pixels:
    """The edited image [12, 12, 3] on the 8-bit grid."""
    pixels = scene.pixels.copy()
    if edit.hue is not None:
        color = hue_color(edit.hue)
        if edit.kind == "tint":
            pixels = 0.5 * pixels + 0.5 * color
        else:
            pixels[_region(scene, edit.kind)] = color
    elif edit.kind == "darker":
        pixels = pixels * edit.amount
    elif edit.kind == "lighter":
        pixels = 1 - (1 - pixels) * edit.amount
    elif edit.kind == "gray":
        pixels = np.repeat(pixels @ np.array([[0.299], [0.587], [0.114]], np.float32), 3, axis=-1)
    else:
        pixels = 1 - pixels
    return _on_8_bits(pixels)


def to_image(pixels: Pixels) -> Image.Image:
    """The image with each art pixel as an 8-px block, 96 × 96 px."""
    small = Image.fromarray(np.round(pixels * 255).astype(np.uint8), "RGB")
    return small.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.NEAREST)


def _region(scene: Scene, kind: str) -> Mask:
    if kind in SCENE_ONLY_KINDS:
        if scene.shape_mask is None or scene.ground_mask is None:
            raise ValueError(f"The edit {kind} needs a scene with a shape, not a photograph; see `Scene.takes`.")
        if kind == "ground":
            return scene.ground_mask
        return scene.shape_mask if kind == "shape" else _neighbors(scene.shape_mask)
    rows, columns = np.indices((ART_SIZE, ART_SIZE))
    last = ART_SIZE - 1
    regions: dict[str, Mask] = {
        "frame": (rows % last == 0) | (columns % last == 0),
        "stripes": rows % 3 == 1,
        "columns": columns % 3 == 1,
        "bar": rows >= ART_SIZE - 3,
        "corner": (rows < 4) & (columns < 4),
    }
    return regions[kind]


def _neighbors(mask: Mask) -> Mask:
    padded = np.pad(mask, 1)
    return (padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]) & ~mask


@cache
def _photo(name: str) -> Image.Image:
    return read_image(PHOTOS / f"{name}.png")


def _from_hsv(hue: float, saturation: float, value: float) -> Pixels:
    offsets = (np.array([0.0, 4.0, 2.0]) + hue * 6) % 6
    ramp = np.clip(np.abs(offsets - 3) - 1, 0, 1)
    return (value * (1 - saturation + saturation * ramp)).astype(np.float32)


def _on_8_bits(pixels: Pixels) -> Pixels:
    return (np.round(np.clip(pixels, 0, 1) * 255) / 255).astype(np.float32)


#: How often a kind occurs in the basis' pairs, against 1: more where it is learned slowly or faint (gray).
KIND_WEIGHTS = {"outline": 2.5, "shape": 2.0, "gray": 2.0, "ground": 1.5, "invert": 1.5}
INDEX_NAME = "pairs.jsonl"


def write_dataset(folder: Path, *, pairs_per_edit: int, seed: int) -> Path:
    """Write the basis' training pairs as PNG files and a pair index, and return the index file.

    A task is one seen edit with its parameter (frame-azure). Held-out kinds, hues and amounts never occur.
    """
    edits = edits_of(kinds=TRAINED_KINDS, is_held_out=False)
    tasks_of_kind = Counter(edit.kind for edit in edits)
    rng = np.random.default_rng(seed)
    records = []
    for edit in edits:
        (folder / edit.name).mkdir(parents=True, exist_ok=True)
        weight = KIND_WEIGHTS.get(edit.kind, 1.0) / tasks_of_kind[edit.kind]
        for number in range(pairs_per_edit):
            scene = draw(edit, rng)
            before, after = (folder / edit.name / f"{number:03d}_{side}.png" for side in ("before", "after"))
            to_image(scene.pixels).save(before)
            to_image(apply_edit(scene, edit)).save(after)
            digest = hashlib.sha256(before.read_bytes() + after.read_bytes()).hexdigest()
            records.append(
                PairRecord(
                    id=f"{edit.name}/{number:03d}", task=edit.name, before=before, after=after, width=IMAGE_PX,
                    height=IMAGE_PX, sha256=digest, weight=weight,
                )
            )  # fmt: skip
    index = folder / INDEX_NAME
    write_pairs(index, records)
    return index
