"""Errors for bad input: what is wrong, with the value, and what to do about it.

Everything that a user can get wrong is raised as a `LoRWeBError`; the subclasses say where it happened. Programming
errors stay ordinary Python exceptions.
"""

from __future__ import annotations

import re

#: What a terminal obeys or shows as a new line, what reverses the text around it, and unpaired surrogates.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, keep: str = "") -> str:
    """Return foreign text for terminals and logs: control characters are written out as `\\x1b`.

    One line comes out, so no name can forge a line of a log; `keep="\\n"` is for texts that may have several.
    """
    return _CONTROLS.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


def quote(text: str, limit: int = 80) -> str:
    """Return quoted text for messages, printable and cut to a limit."""
    quoted = repr(text[:limit])
    return quoted if len(text) <= limit else f"{quoted}… ({len(text):,} characters)"


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return the message of another library's error on one line, cut to a limit; its type when it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


class LoRWeBError(ValueError):
    """A user-facing error: whole sentences, printed as one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))  # messages of libraries may span lines


class CheckpointError(LoRWeBError):
    """A basis or coefficients file is unreadable, incomplete or inconsistent."""


class SettingsError(LoRWeBError):
    """Settings are unknown, contradict each other, or contradict the tensors."""


class ShapeError(LoRWeBError):
    """Tensors do not fit each other: widths, batches, basis sizes."""


class ImageError(LoRWeBError):
    """An image has an unusable shape, channel count, value range or file."""


class ModelError(LoRWeBError):
    """The connected model or image encoder is not one this basis can act on."""


class FileError(LoRWeBError):
    """A file is missing, not a regular file, is too large, or not text of its format."""


class OutputError(LoRWeBError):
    """A result cannot be written where it was asked for."""


class RangeError(OutputError):
    """Numbers do not fit into the dtype that a file was asked to have."""
