"""Stage 2, third part: which of two methods' pictures is better (2AFC), with the order drawn, or asked both ways.

The order comes from a hash of sample and methods, so it is random over samples and the same in every run. Asked both
ways, a disagreement counts as half a win for each, and shows how much the judge goes by position; where one of the two
answers cannot be read the sample does not count, since the other alone goes by position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..data.drawing import uniforms
from .folder import EvaluationFolder
from .generation import picture_hash
from .judge import Asking, Question, ask_all
from .prompts import Prompt
from .records import Record
from .samples import Sample

ORDERS = ("drawn", "reversed")


@dataclass(frozen=True)
class PositionBias:
    """How a judge's choices depend on the place of a picture.

    Attributes:
        first_share: share of answers that chose Result 1; 0.5 without bias, since the order is random. None: no answer.
        answers: how many answers that is.
        both_orders: how many couples were asked both ways with two readable answers.
        agreement: share of those with the same winner. None: there are none.
    """

    first_share: float | None
    answers: int
    both_orders: int
    agreement: float | None


def compare_all(
    folder: EvaluationFolder,
    asking: Asking,
    prompt: Prompt,
    couples: Sequence[tuple[str, str]],
    samples: Sequence[Sample],
    *,
    asks_both_orders: bool = False,
) -> None:
    """Have every couple of methods compared on every sample that has no current comparison.

    Raises: JudgeError: see `ask_all`; comparisons until then are kept.
    """
    orders = ORDERS if asks_both_orders else ORDERS[:1]
    questions = []
    for methods in (tuple(sorted(couple)) for couple in couples):
        for sample in samples:
            for order in orders:
                identity = _identity(folder, methods, sample, order)
                if not _is_compared(folder, asking, prompt, sample, identity):
                    questions.append(_question(folder, prompt, sample, identity))

    def file_comparison(question: Question, answer: Record) -> None:
        better = None if answer["answer"] is None else answer["answer"]["better"]
        folder.comparisons.append(
            {
                "model": asking.judge.model, "prompt_sha256": prompt.sha256, "prompt_source": prompt.source,
                **question.identity, "answer_key": answer["key"], "better": better,
                "refused": answer.get("refused"),
            }
        )  # fmt: skip

    ask_all(asking, questions, on_answer=file_comparison)


def couple_key(first: str, second: str) -> str:
    """Name two methods whatever their order."""
    return " | ".join(sorted((first, second)))


def wins_by_sample(records: Iterable[Record], method: str) -> dict[str, float]:
    """Return sample → 1 when the method won, 0 when it lost, 0.5 when the orders disagree.

    A sample with an unreadable answer in either order is left out.

    Args:
        records: comparisons of one couple by one judge.
        method: whose wins.
    """
    of_sample: dict[str, list[Record]] = {}
    for record in records:
        of_sample.setdefault(record["sample"], []).append(record)
    return {
        sample: sum(_winner(record) == method for record in found) / len(found)
        for sample, found in of_sample.items()
        if all(record["better"] is not None for record in found)
    }


def position_bias(records: Sequence[Record]) -> PositionBias:
    """Return how the judge's choices depend on position."""
    read = [record for record in records if record["better"] is not None]
    winners: dict[tuple[str, str], list[str]] = {}
    for record in read:
        winners.setdefault((record["methods"], record["sample"]), []).append(_winner(record))
    both = [names for names in winners.values() if len(names) == len(ORDERS)]
    return PositionBias(
        first_share=sum(record["better"] == 1 for record in read) / len(read) if read else None,
        answers=len(read),
        both_orders=len(both),
        agreement=sum(len(set(names)) == 1 for names in both) / len(both) if both else None,
    )


def is_current_comparison(folder: EvaluationFolder, record: Record, sample: Sample) -> bool:
    """Whether a comparison is about the pictures that are in the folder now."""
    hashes = [picture_hash(folder, method, sample.id) for method in record["shown"]]
    return hashes == record["pictures_sha256"] and record.get("inputs_sha256") == sample.inputs


def _winner(record: Record) -> str:
    return str(record["shown"][record["better"] - 1])


def _identity(folder: EvaluationFolder, methods: tuple[str, ...], sample: Sample, order: str) -> Record:
    key = couple_key(*methods)
    is_swapped = (uniforms("comparison", key, sample.id)[0] < 0.5) != (order == "reversed")
    shown = list(reversed(methods)) if is_swapped else list(methods)
    return {
        "methods": key, "sample": sample.id, "task": sample.task, "order": order, "shown": shown,
        "pictures_sha256": [picture_hash(folder, method, sample.id) for method in shown],
        "inputs_sha256": sample.inputs,
    }  # fmt: skip


def _question(folder: EvaluationFolder, prompt: Prompt, sample: Sample, identity: Record) -> Question:
    pictures = {part: folder.inputs(sample.id) / f"{part}.png" for part in ("a", "a_prime", "b")}
    for number, method in enumerate(identity["shown"], start=1):
        pictures[f"result_{number}"] = folder.picture(method, sample.id)
    return Question(prompt, pictures, identity)


def _is_compared(folder: EvaluationFolder, asking: Asking, prompt: Prompt, sample: Sample, identity: Record) -> bool:
    key = (asking.judge.model, prompt.sha256, identity["methods"], identity["sample"], identity["order"])
    found = folder.comparisons.find(*key)
    if found is None or not is_current_comparison(folder, found, sample):
        return False
    return asking.is_final(found["better"])
