"""Asking a judge about all images, and keeping its answers.

Answers are kept by the key of the question, so a second run asks nothing twice and a changed image is judged anew. A
question without an answer (refused, or unreadable at every temperature) is recorded, counted and asked again by the
next run; too many in a row stop the run.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm import tqdm

from .folder import EvaluationFolder, Record
from .judges import Judge, JudgeError, QuestionError
from .questions import (
    MAX_REPLY_CHARACTERS,
    ORDERS,
    TEMPERATURES,
    Judging,
    Question,
    ReplyError,
    make_question,
    read_reply,
    shown_order,
)
from .test_set import Sample

MAX_FAILURES_IN_A_ROW = 5
NO_REPLY, UNREADABLE = "no reply (refused)", "unreadable reply"


def all_questions(
    folder: EvaluationFolder,
    judging: Judging,
    methods: Sequence[str],
    samples: Sequence[Sample],
    *,
    reference: str,
    asks_both_orders: bool,
) -> list[Question]:
    """Return a rating for every image, and comparisons of the reference with every other method."""
    questions = [make_question(folder, judging, sample, [method]) for method in methods for sample in samples]
    for method in methods:
        if method != reference:
            for sample in samples:
                for order in ORDERS if asks_both_orders else ORDERS[:1]:
                    shown = shown_order(reference, method, sample.id, order)
                    questions.append(make_question(folder, judging, sample, shown))
    return questions


def ask_all(folder: EvaluationFolder, judge: Judge, questions: Sequence[Question], *, workers: int) -> Counter[str]:
    """Ask all questions that have no answer yet, several at a time, and count how all of them stand.

    Returns "answered", NO_REPLY or UNREADABLE → number of questions.
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
