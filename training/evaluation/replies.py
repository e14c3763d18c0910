"""What a judge wrote → numbers; or what is wrong with it, so that it can be asked again.

The last balanced JSON object of a reply counts: models describe first, wrap it in code fences, and correct themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOWEST, HIGHEST = 1, 10
#: The end of a reply that is searched, since each brace in it may begin the answer.
_MAX_CHARACTERS = 20_000


class ReplyError(ValueError):
    """A reply holds no usable answer; the text says why, in a few words that can be counted."""


@dataclass(frozen=True)
class Rating:
    """Edit Accuracy and Preservation (consistency with b), 1–10 each."""

    accuracy: int
    consistency: int


def last_json_object(text: str) -> dict[str, Any] | None:
    """Return the last balanced JSON object of a text, not counting objects inside it; None without one."""
    decoder = json.JSONDecoder()
    text = text[-_MAX_CHARACTERS:]
    found, place = None, text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):  # ValueError also for a number of more than 4,300 digits
            end = place + 1
        else:
            found = value
        place = text.find("{", end)
    return found


def read_rating(text: str) -> Rating:
    """Return the rating of `{"metrics": {"accuracy": 1–10, "consistency": 1–10}}`, with or without `metrics`.

    Raises: ReplyError: when there is no such object.
    """
    answer = _answer(text)
    metrics = answer.get("metrics", answer)
    if not isinstance(metrics, Mapping):
        raise ReplyError("metrics is no object")
    return Rating(_whole(metrics, "accuracy", LOWEST, HIGHEST), _whole(metrics, "consistency", LOWEST, HIGHEST))


def read_comparison(text: str) -> int:
    """Return 1 or 2 of `{"better": 1 or 2, …}`.

    Raises: ReplyError: when there is no such object.
    """
    return _whole(_answer(text), "better", 1, 2)


def _answer(text: str) -> dict[str, Any]:
    answer = last_json_object(text)
    if answer is None:
        raise ReplyError("no JSON object" if text.strip() else "empty reply")
    return answer


def _whole(values: Mapping[str, Any], name: str, lowest: int, highest: int) -> int:
    if name not in values:
        raise ReplyError(f"{name} is missing")
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ReplyError(f"{name} is no whole number")
    if not lowest <= value <= highest:
        raise ReplyError(f"{name} is outside {lowest}–{highest}")
    return int(value)
