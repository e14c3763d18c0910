"""What a judge is asked, and how its replies are read.

A rating shows a, a′, b and one result, and gives integers 1-10 for edit accuracy and consistency with b (Preservation).
A comparison shows two results and names the better one. `prompts/` is in this project's own words; a folder with the
paper's wording can replace it. The key of a question identifies the prompt, the model and the content of every image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from lorweb_core.errors import FileError
from lorweb_core.files import MAX_TEXT_BYTES, read_json, read_text
from lorweb_core.images import read_image

from ..data.pairing import uniforms
from .folder import EvaluationError, EvaluationFolder, fingerprint, write_file
from .test_set import Sample

OWN_PROMPTS = Path(__file__).parent / "prompts"
#: Of the first try, and of the repetitions after unreadable replies.
TEMPERATURES = (0.0, 0.4, 0.8)
#: Longest side a judge sees; Gemma-3 resizes to 896 px.
MAX_SIDE_PX = 896
#: A longer reply is not read: models that repeat themselves without end, or servers that ignore max_tokens.
MAX_REPLY_CHARACTERS = 20_000
ORDERS = ("drawn", "reversed")
_IMAGES = {"rating": ("a", "a_prime", "b", "result"), "comparison": ("a", "a_prime", "b", "result_1", "result_2")}


class ReplyError(ValueError):
    """A reply without a readable answer."""


@dataclass(frozen=True)
class Judging:
    """Who is asked and how; `aggregate` uses the latest one.

    Attributes:
        model: the judge.
        rating, comparison: prompts, with `<<name>>` for an image.
        is_papers: the prompts are the paper's wording, so that its numbers can be compared.
    """

    model: str
    rating: str
    comparison: str
    is_papers: bool

    def save(self, folder: EvaluationFolder) -> None:
        """Make it the latest judging of an evaluation."""
        write_file(folder.root / "judge.json", json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def latest(cls, folder: EvaluationFolder) -> Judging | None:
        """Return the latest judging of an evaluation; None if there was none."""
        path = folder.root / "judge.json"
        return cls(**read_json(path)) if path.is_file() else None


@dataclass(frozen=True)
class Question:
    """One question: its kind (`rating` or `comparison`), prompt, images by name, and key."""

    kind: str
    prompt: str
    images: dict[str, Path]
    key: str

    def parts(self) -> list[str | Image.Image]:
        """Return text and images in the prompt's order."""
        parts: list[str | Image.Image] = []
        for number, piece in enumerate(re.split(r"<<(\w+)>>", self.prompt)):
            if number % 2 == 0:
                parts += [piece.strip()] if piece.strip() else []
                continue
            image = read_image(self.images[piece])
            if max(image.size) > MAX_SIDE_PX:
                image = ImageOps.contain(image, (MAX_SIDE_PX, MAX_SIDE_PX), method=Image.Resampling.LANCZOS)
            parts.append(image)
        return parts


def read_prompts(model: str, folder: Path | None = None) -> Judging:
    """Return how a model is asked: in our own words, or with rating.txt and comparison.txt of a folder.

    Raises EvaluationError if a file is missing, or does not name every image once.
    """
    texts = {}
    for kind, names in _IMAGES.items():
        path = (folder or OWN_PROMPTS) / f"{kind}.txt"
        try:
            texts[kind] = read_text(path, MAX_TEXT_BYTES)
        except FileError as error:
            raise EvaluationError(f"The prompt {path} cannot be read: {error}") from error
        found = re.findall(r"<<(\w+)>>", texts[kind])
        if sorted(found) != sorted(names):
            raise EvaluationError(
                f"{path} has places for the images {', '.join(found) or 'none'}; it must have each of "
                f"{', '.join(f'<<{name}>>' for name in names)} once."
            )
    return Judging(model, texts["rating"], texts["comparison"], is_papers=folder is not None)


def make_question(folder: EvaluationFolder, judging: Judging, sample: Sample, methods: Sequence[str]) -> Question:
    """Return the question about the result of one method (a rating), or of two in this order (a comparison)."""
    kind = "rating" if len(methods) == 1 else "comparison"
    paths = [folder.inputs(sample.id) / f"{part}.png" for part in ("a", "a_prime", "b")]
    paths += [folder.image(method, sample.id) for method in methods]
    images = dict(zip(_IMAGES[kind], paths, strict=True))
    prompt = judging.rating if kind == "rating" else judging.comparison
    contents = [folder.sha256(path) for path in images.values()]
    return Question(kind, prompt, images, fingerprint(prompt, judging.model, MAX_SIDE_PX, TEMPERATURES, contents))


def shown_order(first: str, second: str, sample: str, order: str) -> tuple[str, str]:
    """Return two methods in the order that they are shown: random over samples, the same in every run.

    Args:
        first, second: methods; which is first makes no difference.
        sample: id.
        order: one of ORDERS.
    """
    one, two = sorted((first, second))
    is_swapped = (uniforms("comparison", f"{one} | {two}", sample)[0] < 0.5) != (order == "reversed")
    return (two, one) if is_swapped else (one, two)


def read_reply(kind: str, text: str) -> dict[str, int]:
    """Return {"accuracy": 1-10, "consistency": 1-10} or {"better": 1 or 2} from a judge's reply.

    The last JSON object counts: models describe first, use code fences, and correct themselves.

    Raises ReplyError if there is none, or its numbers are missing or out of range.
    """
    if len(text) > MAX_REPLY_CHARACTERS:
        raise ReplyError(f"the reply has more than {MAX_REPLY_CHARACTERS} characters")
    decoder = json.JSONDecoder()
    answer: dict[str, Any] = {}
    place = text.find("{")
    while place >= 0:
        try:
            answer, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):  # not only JSONDecodeError: also numbers of too many digits
            end = place + 1
        place = text.find("{", end)
    if kind == "comparison":
        return {"better": _whole_number(answer, "better", 1, 2)}
    metrics = answer.get("metrics", answer)
    if not isinstance(metrics, dict):
        raise ReplyError("metrics is no object")
    return {name: _whole_number(metrics, name, 1, 10) for name in ("accuracy", "consistency")}


def _whole_number(values: dict[str, Any], name: str, lowest: int, highest: int) -> int:
    if name not in values:
        raise ReplyError(f"there is no {name} in the reply")
    value = values[name]
    if isinstance(value, bool) or value not in range(lowest, highest + 1):
        raise ReplyError(f"{name} is not a whole number from {lowest} to {highest}")
    return int(value)
