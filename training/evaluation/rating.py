"""Stage 2, second half: Preservation and Edit Accuracy of every picture by a judge."""

from __future__ import annotations

from collections.abc import Sequence

from .folder import EvaluationFolder
from .generation import picture_hash
from .judge import Asking, Question, ask_all
from .prompts import Prompt
from .records import Record
from .samples import Sample


def rate_all(
    folder: EvaluationFolder, asking: Asking, prompt: Prompt, methods: Sequence[str], samples: Sequence[Sample]
) -> None:
    """Have every picture rated that has no current rating by this judge and wording.

    Raises: JudgeError: see `ask_all`; ratings until then are kept.
    """
    questions = [
        _question(folder, prompt, method, sample)
        for method in methods
        for sample in samples
        if not _is_rated(folder, asking, prompt, method, sample)
    ]

    def file_rating(question: Question, answer: Record) -> None:
        folder.ratings.append(
            {
                "model": asking.judge.model, "prompt_sha256": prompt.sha256, "prompt_source": prompt.source,
                **question.identity, "answer_key": answer["key"], "rating": answer["answer"],
                "refused": answer.get("refused"),
            }
        )  # fmt: skip

    ask_all(asking, questions, on_answer=file_rating)


def is_current_rating(folder: EvaluationFolder, record: Record, sample: Sample) -> bool:
    """Whether a rating is about the pictures that are in the folder now."""
    digest = picture_hash(folder, record["method"], sample.id)
    return record["picture_sha256"] == digest and record.get("inputs_sha256") == sample.inputs


def _question(folder: EvaluationFolder, prompt: Prompt, method: str, sample: Sample) -> Question:
    inputs = folder.inputs(sample.id)
    pictures = {part: inputs / f"{part}.png" for part in ("a", "a_prime", "b")}
    pictures["result"] = folder.picture(method, sample.id)
    identity = {
        "method": method, "sample": sample.id, "task": sample.task,
        "picture_sha256": picture_hash(folder, method, sample.id), "inputs_sha256": sample.inputs,
    }  # fmt: skip
    return Question(prompt, pictures, identity)


def _is_rated(folder: EvaluationFolder, asking: Asking, prompt: Prompt, method: str, sample: Sample) -> bool:
    found = folder.ratings.find(asking.judge.model, prompt.sha256, method, sample.id)
    if found is None or not is_current_rating(folder, found, sample):
        return False
    return asking.is_final(found["rating"])
