"""Errors for bad input: what is wrong, with the value, and what to do about it.

Everything that a user can get wrong is raised as a `LoRWeBError`; the subclasses say where it happened. Programming
errors stay ordinary Python exceptions.
"""

from __future__ import annotations


class LoRWeBError(ValueError):
    """A user-facing error.

    Args:
        message: whole sentences: what is wrong, with the value, and what to do.
        expected, got, remedy: the former three-part form, until all messages are rewritten.
    """

    def __init__(self, message: str = "", *, expected: str = "", got: str = "", remedy: str = "") -> None:
        super().__init__(message or f"Expected {expected}; got {got}. {remedy}")
        self.expected = expected
        self.got = got
        self.remedy = remedy


class CheckpointError(LoRWeBError):
    """A basis or coefficients file is unreadable, incomplete or inconsistent."""


class SettingsError(LoRWeBError):
    """Settings are unknown, contradict each other, or contradict the tensors."""


class ShapeError(LoRWeBError):
    """Tensors do not fit each other: widths, batches, basis sizes."""


class ImageError(LoRWeBError):
    """A picture has an unusable shape, channel count, value range or file."""


class ModelError(LoRWeBError):
    """The connected model or image encoder is not one this basis can act on."""


class FileError(LoRWeBError):
    """A file is missing, is no regular file, is too large, or is not text of its format."""


class OutputError(LoRWeBError):
    """A result cannot be written where it was asked for."""


class RangeError(OutputError):
    """Numbers do not fit into the dtype that a file was asked to have."""
