"""What a judge is asked about the images, and its answers.

A rating shows a, a′, b and one result, and gives integers 1-10 for edit accuracy and consistency with b (Preservation).
A comparison shows two results and names the better one. `prompts/` is in this project's own words; a folder with the
paper's wording can replace it. The key of a question identifies the prompt, the model and the content of every image:
a second run repeats no answered question, and a changed image is judged anew. A question without an answer (refused, or
unreadable at every temperature) is recorded, counted and retried by the next run; too many in a row stop the run.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from lorweb_core.errors import FileError
from lorweb_core.files import MAX_TEXT_BYTES, read_json, read_text
from lorweb_core.images import read_image

from ..data.pairing import uniforms
from .folder import EvaluationError, EvaluationFolder, Record, fingerprint, write_json
from .judge import Judge, JudgeError, QuestionError
from .test_set import Sample

OWN_PROMPTS = Path(__file__).parent / "prompts"
#: Of the first try, and of the retries after unreadable replies.
TEMPERATURES = (0.0, 0.4, 0.8)
#: Longest side a judge sees; Gemma-3 resizes to 896 px.
MAX_SIDE_PX = 896
#: A longer reply is not read: models that repeat themselves without end, or servers that ignore max_tokens.
MAX_REPLY_CHARACTERS = 20_000
MAX_FAILURES_IN_A_ROW = 5
NO_REPLY, UNREADABLE = "no reply (refused)", "unreadable reply"
ORDERS = ("drawn", "reversed")
_IMAGES = {"rating": ("a", "a_prime", "b", "result"), "comparison": ("a", "a_prime", "b", "result_1", "result_2")}


class ReplyError(ValueError):
    """A reply without a readable answer."""


@dataclass(frozen=True)
class Judging:
    """The judge's model and prompts, with `<<name>>` for an image; `is_papers` if the wording is the paper's."""

    model: str
    rating: str
    comparison: str
    is_papers: bool

    def save(self, folder: EvaluationFolder) -> None:
        """Make it the latest judging of an evaluation, which `aggregate` uses."""
        write_json(folder.root / "judge.json", asdict(self))

    @classmethod
    def latest(cls, folder: EvaluationFolder) -> Judging | None:
        """Return the latest judging of an evaluation; None if there was none."""
        path = folder.root / "judge.json"
        return cls(**read_json(path)) if path.is_file() else None


@dataclass(frozen=True)
class Question:
    """One question: its kind (`rating` or `comparison`), prompt, images by name, and key."""

    kind: str
    prompt: str
    images: dict[str, Path]
    key: str

    def parts(self) -> list[str | Image.Image]:
        """Return text and images in the prompt's order."""
        parts: list[str | Image.Image] = []
        for number, piece in enumerate(re.split(r"<<(\w+)>>", self.prompt)):
            if number % 2 == 0:
                parts += [piece.strip()] if piece.strip() else []
                continue
            image = read_image(self.images[piece])
            if max(image.size) > MAX_SIDE_PX:
                image = ImageOps.contain(image, (MAX_SIDE_PX, MAX_SIDE_PX), method=Image.Resampling.LANCZOS)
            parts.append(image)
        return parts


def read_prompts(model: str, folder: Path | None = None) -> Judging:
    """Return how a model is asked: in our own words, or with rating.txt and comparison.txt of a folder.

    Raises EvaluationError if a file is missing, or does not name every image once.
    """
    texts = {}
    for kind, names in _IMAGES.items():
        path = (folder or OWN_PROMPTS) / f"{kind}.txt"
        try:
            texts[kind] = read_text(path, MAX_TEXT_BYTES)
        except FileError as error:
            raise EvaluationError(f"The prompt {path} cannot be read: {error}") from error
        found = re.findall(r"<<(\w+)>>", texts[kind])
        if sorted(found) != sorted(names):
            raise EvaluationError(
                f"{path} has places for the images {', '.join(found) or 'none'}; it must have each of "
                f"{', '.join(f'<<{name}>>' for name in names)} once."
            )
    return Judging(model, texts["rating"], texts["comparison"], is_papers=folder is not None)


def make_question(folder: EvaluationFolder, judging: Judging, sample: Sample, methods: Sequence[str]) -> Question:
    """Return the question about the result of one method (a rating), or of two in this order (a comparison)."""
    kind = "rating" if len(methods) == 1 else "comparison"
    paths = [*folder.triplet(sample.id), *(folder.image(method, sample.id) for method in methods)]
    prompt = judging.rating if kind == "rating" else judging.comparison
    contents = [folder.sha256(path) for path in paths]
    key = fingerprint(prompt, judging.model, MAX_SIDE_PX, TEMPERATURES, contents)
    return Question(kind, prompt, dict(zip(_IMAGES[kind], paths, strict=True)), key)


def shown_order(first: str, second: str, sample: str, order: str) -> tuple[str, str]:
    """Return two methods as a sample's comparison shows them: in random order ("drawn"), the same in every run, or in
    the other one ("reversed"). Which method is `first` makes no difference.
    """
    one, two = sorted((first, second))
    is_swapped = (uniforms("comparison", f"{one} | {two}", sample)[0] < 0.5) != (order == "reversed")
    return (two, one) if is_swapped else (one, two)


def all_questions(
    folder: EvaluationFolder, judging: Judging, methods: Sequence[str], samples: Sequence[Sample], *,
    reference: str, asks_both_orders: bool,
) -> list[Question]:  # fmt: skip
    """Return a rating for every image, and comparisons of the reference with every other method."""
    questions = [make_question(folder, judging, sample, [method]) for method in methods for sample in samples]
    orders = ORDERS if asks_both_orders else ORDERS[:1]
    return questions + [
        make_question(folder, judging, sample, shown_order(reference, method, sample.id, order))
        for method in methods if method != reference
        for sample in samples
        for order in orders
    ]  # fmt: skip


def ask_all(folder: EvaluationFolder, judge: Judge, questions: Sequence[Question], *, workers: int) -> Counter[str]:
    """Ask all questions that have no answer yet, several at a time; return "answered" or the failure → how many.

    Raises JudgeError if the judge cannot be used; answers so far are kept.
    """
    lock = threading.Lock()

    def ask(question: Question) -> Record:
        record = _ask(judge, question)
        with lock:
            folder.answers.append(record)
        return record

    known = {question.key: folder.answers.get(question.key) for question in questions}
    asked = {question.key: question for question in questions if not (known[question.key] or {}).get("answer")}
    # Earlier failures last: a run that they stop has got further than the one before.
    in_order = sorted(asked.values(), key=lambda question: known[question.key] is not None)
    failures = 0
    with ThreadPoolExecutor(max_workers=workers) as pool:
        futures = [pool.submit(ask, question) for question in in_order]
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="judging", unit="answer", disable=None):
                record = future.result()
                failures = 0 if record["answer"] else failures + 1
                if failures == MAX_FAILURES_IN_A_ROW:
                    raise JudgeError(
                        f"The last {failures} questions to {judge.model} have no answer, the latest because of: "
                        f"{record['failure']}: {record['details']}. The model must take five images in one message "
                        "(vLLM: --limit-mm-per-prompt '{\"image\": 5}') within its context. The answers so far are "
                        "kept; run the same command again to continue."
                    )
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    records = [folder.answers.get(question.key) for question in questions]
    return Counter(record["failure"] or "answered" for record in records if record is not None)


def _ask(judge: Judge, question: Question) -> Record:
    """Ask one question, again at higher temperatures after unreadable replies, and return its record."""
    record: Record = {
        "key": question.key, "kind": question.kind, "model": judge.model, "answer": None, "failure": None,
        "details": None, "replies": [],
    }  # fmt: skip
    parts = question.parts()
    for seed, temperature in enumerate(TEMPERATURES):
        try:
            text = judge.reply(parts, temperature=temperature, seed=seed)
        except QuestionError as error:
            return record | {"failure": NO_REPLY, "details": str(error)}
        record["replies"].append({"temperature": temperature, "text": text[:MAX_REPLY_CHARACTERS]})
        try:
            return record | {"answer": read_reply(question.kind, text), "failure": None, "details": None}
        except ReplyError as error:
            record |= {"failure": UNREADABLE, "details": str(error)}
    return record


def read_reply(kind: str, text: str) -> dict[str, int]:
    """Return {"accuracy": 1-10, "consistency": 1-10} or {"better": 1 or 2} from a judge's reply.

    The last JSON object counts: models describe first, use code fences, and correct themselves.

    Raises ReplyError if there is none, or its numbers are missing or out of range.
    """
    if len(text) > MAX_REPLY_CHARACTERS:
        raise ReplyError(f"the reply has more than {MAX_REPLY_CHARACTERS} characters")
    decoder = json.JSONDecoder()
    answer: dict[str, Any] = {}
    start = text.find("{")
    while start >= 0:
        try:
            answer, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # not only JSONDecodeError: also numbers of too many digits
            end = start + 1
        start = text.find("{", end)
    names, highest = (("better",), 2) if kind == "comparison" else (("accuracy", "consistency"), 10)
    values = answer if kind == "comparison" else answer.get("metrics", answer)
    if not isinstance(values, dict):
        raise ReplyError("metrics is not an object")
    for name in names:
        if name not in values:
            raise ReplyError(f"there is no {name} in the reply")
        if isinstance(values[name], bool) or values[name] not in range(1, highest + 1):
            raise ReplyError(f"{name} is not a whole number from 1 to {highest}")
    return {name: int(values[name]) for name in names}
