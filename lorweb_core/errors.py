"""The one shape of a message about bad input: what was expected, what came, what to do.

Every mistake that a user can make is raised as a `LoRWeBError`; the subclasses say which border was crossed.
Programming mistakes stay ordinary Python exceptions.
"""

from __future__ import annotations


class LoRWeBError(ValueError):
    """A user's mistake, told in three parts.

    Args:
        expected: what the code needs, as a noun phrase without a full stop.
        got: what came instead, with its value.
        remedy: one or two whole sentences that say what to do.
    """

    def __init__(self, *, expected: str, got: str, remedy: str) -> None:
        super().__init__(f"Expected {expected}; got {got}. {remedy}")
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


class OutputError(LoRWeBError):
    """A result cannot be written where it was asked for."""


class RangeError(OutputError):
    """Numbers do not fit into the dtype that a file was asked to have."""
