"""What the judge is asked: text files with places for pictures.

`prompts/rating.txt` and `prompts/comparison.txt` are in this project's own words. The paper's wording may be put in
their place by a folder of the same two files; only then are scores comparable with the paper's, and records say so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lorweb_core.errors import FileError
from lorweb_core.files import MAX_TEXT_BYTES, read_text

from .errors import EvaluationError

OWN_FOLDER = Path(__file__).parent / "prompts"
_PLACE = re.compile(r"<<(\w+)>>")
_PLACES = {
    "rating": ("a", "a_prime", "b", "result"),
    "comparison": ("a", "a_prime", "b", "result_1", "result_2"),
}


@dataclass(frozen=True)
class Prompt:
    """One question's text.

    Attributes:
        kind: `rating` or `comparison`.
        text: with `<<name>>` where a picture goes.
        source: `own words` or `paper`.
    """

    kind: str
    text: str
    source: str

    @property
    def sha256(self) -> str:
        """Name the wording; the first 16 hex digits."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()[:16]

    @property
    def parts(self) -> list[tuple[str, str]]:
        """The prompt in order: ("text", words) and ("picture", name)."""
        pieces = _PLACE.split(self.text)
        parts = [("picture" if i % 2 else "text", piece.strip()) for i, piece in enumerate(pieces)]
        return [part for part in parts if part[1]]


def read_prompt(kind: str, folder: Path | None = None) -> Prompt:
    """Return the prompt of a kind, from the user's folder (the paper's wording) or our own.

    Raises: EvaluationError: when the file is missing, or its places for pictures are wrong.
    """
    path = (folder or OWN_FOLDER) / f"{kind}.txt"
    try:
        text = read_text(path, MAX_TEXT_BYTES)
    except FileError as error:
        raise EvaluationError(
            f"{error} Put rating.txt and comparison.txt into the folder of prompts, with <<a>>, <<a_prime>>, … for "
            "the images."
        ) from error
    prompt = Prompt(kind, text, "own words" if folder is None else "paper")
    _require_places([name for what, name in prompt.parts if what == "picture"], _PLACES[kind], path)
    return prompt


def _require_places(found: list[str], wanted: Collection[str], path: Path) -> None:
    if sorted(found) != sorted(wanted):
        raise EvaluationError(
            expected=f"each of {', '.join(f'<<{name}>>' for name in wanted)} once in {path}",
            got=", ".join(f"<<{name}>>" for name in found) or "none",
            remedy="Correct the places for the pictures.",
        )
