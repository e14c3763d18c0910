"""Asking a judge: questions with pictures, answers kept by content, unreadable replies asked again.

A question's key covers wording, model, and every picture's pixels, so a second run costs nothing and a changed picture
is asked anew. Every raw reply is kept. A reply that cannot be read is asked for again, warmer (TEMPERATURES); after the
last try the answer is recorded as invalid: it is counted, never scored. So is a question that the judge refuses.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, ImageOps
from tqdm import tqdm

from lorweb_core.images import read_image

from .errors import RefusedQuestionError
from .folder import fingerprint, pixel_hash
from .prompts import Prompt
from .records import Record, RecordFile
from .refusals import Refusals
from .replies import ReplyError, read_comparison, read_rating

logger = logging.getLogger(__name__)
#: Of the first question and of the repetitions after unreadable replies.
TEMPERATURES = (0.0, 0.4, 0.8)
#: Longest side a judge sees; Gemma-3's tower takes 896 px.
MAX_SIDE_PX = 896

#: A message: words and pictures in order.
Part = str | Image.Image


class Judge(Protocol):
    """A vision-language model."""

    @property
    def model(self) -> str:
        """Its id, kept with every answer."""

    def reply(self, parts: Sequence[Part], *, temperature: float, seed: int) -> str:
        """Return its raw reply; JudgeError when there is none. Called from several threads."""


@dataclass(frozen=True)
class Question:
    """One question, not yet asked.

    Attributes:
        prompt: the wording.
        pictures: place in the prompt → picture file.
        identity: what the asker needs to file the answer; not part of the key.
    """

    prompt: Prompt
    pictures: Mapping[str, Path]
    identity: Mapping[str, Any]

    def parts(self) -> list[Part]:
        """Return words and pictures in the prompt's order."""
        return [text if what == "text" else _shown(self.pictures[text]) for what, text in self.prompt.parts]


def open_answers(path: Path) -> RecordFile:
    """Return the answers kept in a file, by key; the file may be shared by evaluations."""
    return RecordFile(path, ("key",), ("answer", "model", "kind"))


@dataclass(frozen=True)
class Asking:
    """A judge, and how it is asked.

    Attributes:
        judge: who is asked.
        answers: kept answers; grows as they come, so that stopping loses at most the questions under way.
        workers: questions under way at once.
        retries_invalid: ask again where a kept answer is invalid.
    """

    judge: Judge
    answers: RecordFile
    workers: int = 4
    retries_invalid: bool = False

    def is_final(self, value: object) -> bool:
        """Whether an answer of this value (None: invalid) is not to be asked for again."""
        return value is not None or not self.retries_invalid


def ask_all(asking: Asking, questions: Sequence[Question], *, on_answer: Callable[[Question, Record], None]) -> None:
    """Ask every question that has no kept answer, several at a time, and hand each answer over.

    Args:
        asking: the judge and its kept answers.
        questions: of one kind, in any order.
        on_answer: called in this thread with the question and its answer record (see `_ask`).
    Raises: JudgeError: when the judge cannot be asked any more; answers until then are kept.
    """
    judge, answers = asking.judge, asking.answers
    to_ask = _hand_over_known(asking, questions, on_answer)

    def file_answer(record: Record) -> None:
        answers.append(record)
        for question in to_ask[record["key"]]:
            on_answer(question, record)

    kinds = {question.prompt.kind for question in questions}
    refusals = Refusals(file_answer, has_replied=any(_is_reply(record, judge.model, kinds) for record in answers))
    pool = ThreadPoolExecutor(max_workers=asking.workers)
    futures = {pool.submit(_ask, judge, same[0], key): key for key, same in to_ask.items()}
    try:
        for future in tqdm(as_completed(futures), total=len(futures), desc="judging", unit="answer", disable=None):
            try:
                record = future.result()
            except RefusedQuestionError as error:
                key = futures[future]
                refusals.note_refusal(_refused(judge, to_ask[key][0], key, error), error)
                continue
            file_answer(record)
            refusals.note_reply()
        refusals.finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _keep_finished(futures, answers)


def read_answer(kind: str, text: str) -> dict[str, Any]:
    """Return the scores in a raw reply; ReplyError when they cannot be read."""
    return asdict(read_rating(text)) if kind == "rating" else {"better": read_comparison(text)}


def _hand_over_known(
    asking: Asking, questions: Sequence[Question], on_answer: Callable[[Question, Record], None]
) -> dict[str, list[Question]]:
    """Return key → questions that have no final answer yet: equal pictures of two methods are one question."""
    hashes: dict[Path, str] = {}
    to_ask: dict[str, list[Question]] = {}
    for question in questions:
        key = _key(asking.judge, question, hashes)
        known = asking.answers.find(key)
        if known is None or not asking.is_final(known["answer"]):
            to_ask.setdefault(key, []).append(question)
        else:
            on_answer(question, known)
    return to_ask


def _is_reply(record: Record, model: str, kinds: Collection[str]) -> bool:
    """Whether an answer record holds this model's words, readable or not, to a question of these kinds."""
    return record["model"] == model and record["kind"] in kinds and record.get("refused") is None


def _keep_finished(futures: Iterable[Future[Record]], answers: RecordFile) -> None:
    """After an error: the answers that arrived meanwhile cost money too."""
    for future in futures:
        if future.done() and not future.cancelled() and future.exception() is None:
            record = future.result()
            if answers.find(record["key"]) != record:
                answers.append(record)


def _ask(judge: Judge, question: Question, key: str) -> Record:
    """Return the answer record: raw attempts in order, and the scores of the first readable one (None: invalid).

    Raises: JudgeError: when there is no reply.
    """
    parts = question.parts()
    attempts: list[dict[str, Any]] = []
    answer = None
    for seed, temperature in enumerate(TEMPERATURES):
        raw = judge.reply(parts, temperature=temperature, seed=seed)
        attempt: dict[str, Any] = {"temperature": temperature, "seed": seed, "raw": raw}
        attempts.append(attempt)
        try:
            answer = read_answer(question.prompt.kind, raw)
            break
        except ReplyError as error:
            attempt["problem"] = str(error)
    return _record(judge, question, key, attempts) | {"answer": answer}


def _refused(judge: Judge, question: Question, key: str, error: RefusedQuestionError) -> Record:
    """An invalid answer with the server's words."""
    return _record(judge, question, key, []) | {"answer": None, "refused": error.got}


def _record(judge: Judge, question: Question, key: str, attempts: list[dict[str, Any]]) -> Record:
    return {
        "key": key, "kind": question.prompt.kind, "model": judge.model, "prompt_sha256": question.prompt.sha256,
        "prompt_source": question.prompt.source, "attempts": attempts,
    }  # fmt: skip


def _key(judge: Judge, question: Question, hashes: dict[Path, str]) -> str:
    """Name wording, model and pixels; `hashes` remembers pictures that many questions share."""
    for path in question.pictures.values():
        if path not in hashes:
            hashes[path] = pixel_hash(read_image(path))
    pictures = [(name, hashes[path]) for name, path in sorted(question.pictures.items())]
    text = fingerprint(question.prompt.text, judge.model, MAX_SIDE_PX, TEMPERATURES, pictures)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _shown(path: Path) -> Image.Image:
    picture = read_image(path)
    if max(picture.size) <= MAX_SIDE_PX:
        return picture
    return ImageOps.contain(picture, (MAX_SIDE_PX, MAX_SIDE_PX), method=Image.Resampling.LANCZOS)
