"""Questions that the judge refuses: one is left out and counted, a row of them ends the run.

A refusal (content policy, too long a message) is kept as an invalid answer once the judge is known to answer others.
Until then it may as well be the server's setting, so it waits; MAX_IN_A_ROW without any reply between them end the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import RefusedQuestionError
from .records import Record

MAX_IN_A_ROW = 3


@dataclass
class Refusals:
    """Refusals since the last reply.

    Attributes:
        keep: keeps a refusal's record as an invalid answer.
        has_replied: the judge has answered something, now or in an earlier run.
    """

    keep: Callable[[Record], None]
    has_replied: bool
    _waiting: list[tuple[Record, RefusedQuestionError]] = field(default_factory=list, repr=False)

    def note_reply(self) -> None:
        """The judge answered: what it refused before was about those questions."""
        self.has_replied = True
        self._keep_waiting()

    def note_refusal(self, record: Record, error: RefusedQuestionError) -> None:
        """The judge refused a question.

        Raises: RefusedQuestionError: when it is the last of too many in a row.
        """
        self._waiting.append((record, error))
        if len(self._waiting) >= MAX_IN_A_ROW:
            self._stop()

    def finish(self) -> None:
        """All questions were asked.

        Raises: RefusedQuestionError: when the judge has refused them all.
        """
        if self._waiting and not self.has_replied:
            self._stop()
        self._keep_waiting()

    def _keep_waiting(self) -> None:
        for record, _ in self._waiting:
            self.keep(record)
        self._waiting.clear()

    def _stop(self) -> None:
        count, (_, last) = len(self._waiting), self._waiting[-1]
        kept = " The refused questions are left out from now on; --retry-invalid asks them again."
        has_replied = self.has_replied
        if has_replied:
            self._keep_waiting()  # else every later run would end at the same questions
        raise RefusedQuestionError(
            expected=last.expected,
            got=f"{count} refusal(s) in a row, the last: {last.got}",
            remedy=last.remedy + (kept if has_replied else ""),
        ) from last
