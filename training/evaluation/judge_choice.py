"""Whose answers count in a table: one judge, and of each kind of question one wording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .errors import EvaluationError
from .folder import EvaluationFolder
from .records import Record

#: word of the command line → `prompt_source` of the records.
SOURCES = {"own": "own words", "paper": "paper"}


@dataclass(frozen=True)
class JudgeChoice:
    """Whose answers count.

    Attributes:
        model: id of the judge.
        prompts: kind → hash of the wording.
        source: `paper` when all wordings are the paper's, else `own words`.
        others: kind → hashes of further wordings that this judge was asked with.
    """

    model: str
    prompts: dict[str, str]
    source: str
    others: dict[str, list[str]]


@dataclass(frozen=True)
class _Wording:
    kind: str
    sha256: str
    source: str
    asked: frozenset[tuple[str, ...]]
    newest: int


def choose_judge(
    folder: EvaluationFolder,
    model: str | None = None,
    wording: str | None = None,
    *,
    needed: Mapping[str, set[tuple[str, ...]]],
) -> JudgeChoice | None:
    """Return whose answers count; None when nobody was asked.

    Args:
        folder: with ratings and comparisons.
        model: id of the judge; may be None when only one was asked.
        wording: `own`, `paper` or the start of a hash; None takes of each kind the newest that was asked everything,
            or, when none was, the newest of those asked most.
        needed: kind → what was to be asked: (method, sample) or (couple, sample).
    Raises: EvaluationError: when several judges answered and none is named, or there is no such judge or wording.
    """
    records = {"rating": list(folder.ratings), "comparison": list(folder.comparisons)}
    chosen = _choose_model(records, model)
    wordings = [w for kind, found in records.items() for w in _wordings(kind, found, chosen)]
    allowed = wordings if wording is None else _named(wordings, wording)
    if chosen is None:
        return None
    prompts = {}
    for kind in records:
        of_kind = [w for w in allowed if w.kind == kind]
        if of_kind:
            prompts[kind] = max(of_kind, key=lambda w: (len(w.asked & needed[w.kind]), w.newest))
    others = {
        kind: [w.sha256 for w in wordings if w.kind == kind and w.sha256 != best.sha256]
        for kind, best in prompts.items()
    }
    is_paper = {best.source for best in prompts.values()} == {SOURCES["paper"]}
    return JudgeChoice(
        chosen, {kind: best.sha256 for kind, best in prompts.items()}, SOURCES["paper" if is_paper else "own"],
        {kind: hashes for kind, hashes in others.items() if hashes},
    )  # fmt: skip


def _choose_model(records: Mapping[str, Sequence[Record]], wanted: str | None) -> str | None:
    models = list(dict.fromkeys(record["model"] for found in records.values() for record in found))
    if not models and wanted is None:
        return None
    if (wanted is None and len(models) > 1) or (wanted is not None and wanted not in models):
        raise EvaluationError(
            expected=f"the name of one judge that was asked: {', '.join(models) or 'none was'}",
            got=wanted or f"{len(models)} of them",
            remedy="Name it with --judge; answers of different judges are never mixed.",
        )
    return wanted or models[0]


def _wordings(kind: str, records: Sequence[Record], model: str | None) -> list[_Wording]:
    """The wordings of one judge and kind, each with what it was asked and when last."""
    names = ("method", "sample") if kind == "rating" else ("methods", "sample")
    by_hash: dict[str, list[tuple[int, Record]]] = {}
    for place, record in enumerate(records):
        if record["model"] == model:
            by_hash.setdefault(record["prompt_sha256"], []).append((place, record))
    return [
        _Wording(
            kind, sha256, found[-1][1]["prompt_source"],
            frozenset(tuple(record[name] for name in names) for _, record in found), found[-1][0],
        )
        for sha256, found in by_hash.items()
    ]  # fmt: skip


def _named(wordings: Sequence[_Wording], wanted: str) -> list[_Wording]:
    """The wordings of a source; or the one of a hash, and those of the same source for the other kind."""
    if wanted in SOURCES:
        found = [w for w in wordings if w.source == SOURCES[wanted]]
    else:
        of_hash = [w for w in wordings if w.sha256.startswith(wanted)]
        fitting = [w for w in wordings if of_hash and w.source == of_hash[0].source and w.kind != of_hash[0].kind]
        found = [*of_hash, *fitting] if len(of_hash) == 1 else []
    if not found:
        asked = ", ".join(f"{w.sha256} ({w.kind}, {w.source})" for w in wordings) or "none"
        raise EvaluationError(
            expected=f"--wording own, paper or one hash of those that this judge was asked with: {asked}",
            got=repr(wanted),
            remedy="Correct it, or leave it out to take the newest complete one.",
        )
    return found
