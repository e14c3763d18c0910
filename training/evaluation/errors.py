"""Mistakes in an evaluation, and judges that cannot be asked."""

from __future__ import annotations

from lorweb_core.errors import LoRWeBError


class EvaluationError(LoRWeBError):
    """A test set, a method's folder or an evaluation folder cannot be used as it is."""


class JudgeError(LoRWeBError):
    """The vision-language model cannot be reached, refuses, or is not what was asked for."""


class RefusedQuestionError(JudgeError):
    """The judge refuses this one question (content policy, too long, too large); others may be answered."""
