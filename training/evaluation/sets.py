"""Which analogies are tested: from a pair or triplet index, Relation252K, or the paper's LoRWeB_evalset.

    mydata/pairs.jsonl         an index of `training.prepare` (pairs: the true b′ is known)
    relation252k:FOLDER        the data set as downloaded, every pair whatever its split
    evalset:FOLDER             original/unsplash_<category>/x.jpg and
                               decoded…/<part>/<category>/<Prompt_with_underscores>/<x>_<k>.png; b′ is not known

Choices depend on names and the seed only. b differs from a by less than 15 % in aspect, as in the paper.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..data.buckets import aspects_match
from ..data.drawing import caption_of, positions_by_task, task_caption, uniforms
from ..data.importers.building import build_pairs
from ..data.importers.relation252k import find_pairs
from ..data.index import PairRecord, TripletIndex, TripletRecord, open_index
from .errors import EvaluationError
from .evalset import read_evalset
from .samples import Analogy, PicturePart
from .set_choice import AnalogySet, Losses, SetOptions, of_tasks, short_name


def read_set(spec: str, options: SetOptions) -> AnalogySet:
    """Return the analogies of a set.

    Args:
        spec: an index file, `relation252k:FOLDER` or `evalset:FOLDER`.
        options: which of them.
    Raises: LoRWeBError: when there is no such set, task or split, or nothing fits.
    """
    kind, _, place = spec.partition(":")
    if kind == "evalset" and place:
        found = read_evalset(Path(place), options)
    elif kind == "relation252k" and place:
        found = _relation252k(Path(place), replace(options, split="all"))
    else:
        index = open_index(spec)
        if isinstance(index, TripletIndex):
            found = _from_triplets(index.records, options)
        else:
            found = _from_pairs(index.records, options, Losses())
    if not found.analogies:
        losses = f", and {'; '.join(found.losses)}" if found.losses else ""
        raise EvaluationError(
            expected=f"analogies in {spec}: two pairs of one task with aspects within 15 %",
            got=f"none in split {options.split!r}{losses}",
            remedy="Choose --split all, or hold pairs out with `python -m training.prepare split --split test`.",
        )
    return replace(found, analogies=_with_unique_names(found.analogies))


def _relation252k(root: Path, options: SetOptions) -> AnalogySet:
    found, losses = find_pairs(root), Losses()
    records, unusable = build_pairs(found.candidates)
    tasks = [candidate.task for candidate in found.candidates]
    for problem in (*found.problems, *unusable):
        path = Path(problem.file)
        place = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        if problem.kind == "few-pairs":
            tasks.append(path.name)  # a folder without any labels
        if not options.tasks or set(place.parts) & set(options.tasks):
            losses.add("entries or tasks without usable pictures", f"{place.as_posix()}: {problem.reason}")
    wanted = [task for task in tasks if not options.tasks or task in options.tasks]
    return _from_pairs(records, options, losses, more_tasks=wanted)


def _from_pairs(
    records: Sequence[PairRecord], options: SetOptions, losses: Losses, *, more_tasks: Sequence[str] = ()
) -> AnalogySet:
    chosen = [record for record in records if options.split in ("all", record.split)]
    chosen = of_tasks(chosen, options.tasks)
    analogies: list[Analogy] = []
    make = _couples_by_b if options.pairs_per_b else _couples_by_pair
    for positions in positions_by_task(chosen).values():
        pairs = _shuffled([chosen[int(i)] for i in positions], options.seed)
        analogies += [_analogy_of_pairs(a, b, prompt) for a, b, prompt in make(pairs, options, losses)]
    return AnalogySet(analogies, losses.told([*(record.task for record in chosen), *more_tasks], analogies))


def _couples_by_pair(
    pairs: Sequence[PairRecord], options: SetOptions, losses: Losses
) -> list[tuple[PairRecord, PairRecord, str]]:
    """Every pair with the next b after it that fit."""
    couples = []
    for place, a in enumerate(pairs):
        fitting = _next_fitting(pairs, place, options.b_per_pair)
        couples += [(a, b, caption_of(a, b, options.caption_source)) for b in fitting]
        if not fitting:
            losses.add("pairs without a fitting b", a.id)
        elif len(fitting) < options.b_per_pair:
            losses.add(f"pairs with fewer than {options.b_per_pair} b", a.id)
    return couples[: options.per_task or None]


def _couples_by_b(
    pairs: Sequence[PairRecord], options: SetOptions, losses: Losses
) -> list[tuple[PairRecord, PairRecord, str]]:
    """Every b with several pairs and one prompt: the task's, since pair a changes."""
    couples, b_count = [], 0
    for place, b in enumerate(pairs):
        prompt = "" if options.caption_source == "none" else task_caption(b)
        fitting = _next_fitting(pairs, place, options.pairs_per_b)
        if len(fitting) < options.pairs_per_b:
            losses.add(f"b with fewer than {options.pairs_per_b} fitting pairs", b.id)
        elif not options.per_task or b_count < options.per_task:
            couples += [(a, b, prompt) for a in fitting]
            b_count += 1
    return couples


def _next_fitting(pairs: Sequence[PairRecord], place: int, count: int) -> list[PairRecord]:
    others = [*pairs[place + 1 :], *pairs[:place]]
    return [other for other in others if aspects_match(other.aspect, pairs[place].aspect)][:count]


def _analogy_of_pairs(a: PairRecord, b: PairRecord, prompt: str) -> Analogy:
    (image_a, image_a_prime), (image_b, image_b_prime) = (_sides(record) for record in (a, b))
    name = f"{short_name(a.task, 40)}--{short_name(a.id)}--{short_name(b.id)}"
    return Analogy(name, a.task, prompt, a.id, b.id, image_a, image_a_prime, image_b, image_b_prime)


def _sides(record: PairRecord) -> tuple[PicturePart, PicturePart]:
    if record.strip:
        return PicturePart(record.before, 0, 2), PicturePart(record.before, 1, 2)
    return PicturePart(record.before), PicturePart(record.after)


def _from_triplets(records: Iterable[TripletRecord], options: SetOptions) -> AnalogySet:
    if options.pairs_per_b:
        raise EvaluationError(
            expected="a set whose b can be combined with several pairs: pairs.jsonl, relation252k: or evalset:",
            got="--pairs-per-b with ready-made triplets, whose b belong to one pair each",
            remedy="Leave --pairs-per-b out, or make the set from pairs.",
        )
    chosen = [record for record in records if options.split in ("all", record.split)]
    counts: Counter[str] = Counter()
    analogies = []
    for record in of_tasks(chosen, options.tasks):
        counts[record.task] += 1
        if options.per_task and counts[record.task] > options.per_task:
            continue
        a, a_prime, b = (PicturePart(record.control, column, 3) for column in range(3))
        name = f"{short_name(record.task, 40)}--{short_name(record.id, 50)}"
        prompt = "" if options.caption_source == "none" else record.caption
        truth = PicturePart(record.target)
        analogies.append(Analogy(name, record.task, prompt, record.id, record.id, a, a_prime, b, truth))
    return AnalogySet(analogies, [])


def _shuffled(pairs: Sequence[PairRecord], seed: int) -> list[PairRecord]:
    return sorted(pairs, key=lambda record: uniforms(seed, "evaluation", record.id))


def _with_unique_names(analogies: Sequence[Analogy]) -> list[Analogy]:
    counts = Counter(analogy.sample for analogy in analogies)

    def named(analogy: Analogy) -> Analogy:
        if counts[analogy.sample] == 1:
            return analogy
        digest = hashlib.sha256(repr((analogy.task, analogy.pair, analogy.b)).encode()).hexdigest()[:8]
        return replace(analogy, sample=f"{analogy.sample}--{digest}")

    return [named(analogy) for analogy in analogies]
