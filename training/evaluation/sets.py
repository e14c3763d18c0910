"""Which analogies are tested: from a pair or triplet index, Relation252K, or the paper's LoRWeB_evalset.

    mydata/pairs.jsonl         an index of `training.prepare` (pairs: the true b′ is known)
    relation252k:FOLDER        the data set as downloaded, every pair whatever its split
    evalset:FOLDER             original/unsplash_<category>/x.jpg and
                               decoded…/<part>/<category>/<Prompt_with_underscores>/<x>_<k>.png; b′ is not known

Choices depend on names and the seed only. b differs from a by less than 15 % in aspect, as in the paper.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ..data.buckets import aspects_match
from ..data.drawing import caption_of, positions_by_task, task_caption, task_caption_from_name, uniforms
from ..data.importers.building import build_pairs, picture_files, require_folder, subfolders
from ..data.importers.extraction import safe_name
from ..data.importers.relation252k import find_pairs
from ..data.index import PairRecord, TripletIndex, TripletRecord, open_index
from ..data.pictures import PictureError, read_facts
from .errors import EvaluationError
from .samples import Analogy, PicturePart

ItemT = TypeVar("ItemT", PairRecord, TripletRecord, Analogy)
_EVALSET_DEPTH = 4  # part / category / prompt / file


@dataclass(frozen=True)
class SetOptions:
    """Which analogies of a set are taken.

    Attributes:
        split: `train`, `val`, `test` or `all`; ignored where a set has no splits.
        tasks: names; () for all.
        b_per_pair: how many b every pair a, a′ gets.
        pairs_per_b: for pair sensitivity: how many pairs every b gets instead, under one prompt; 0 is off.
        per_task: at most so many analogies of a task (with `pairs_per_b`: so many b); 0 for all.
        caption_source: see `DrawSettings.caption_source`.
        seed: of the choice.
    """

    split: str = "test"
    tasks: tuple[str, ...] = ()
    b_per_pair: int = 2
    pairs_per_b: int = 0
    per_task: int = 0
    caption_source: str = "a"
    seed: int = 0


def read_set(spec: str, options: SetOptions) -> list[Analogy]:
    """Return the analogies of a set.

    Args:
        spec: an index file, `relation252k:FOLDER` or `evalset:FOLDER`.
        options: which of them.
    Raises: LoRWeBError: when there is no such set, task or split, or nothing fits.
    """
    kind, _, place = spec.partition(":")
    if kind == "evalset" and place:
        analogies = _evalset(Path(place), options)
    elif kind == "relation252k" and place:
        records, _ = build_pairs(find_pairs(Path(place)).candidates)
        analogies = _from_pairs(records, replace(options, split="all"))
    else:
        index = open_index(spec)
        if isinstance(index, TripletIndex):
            analogies = _from_triplets(index.records, options)
        else:
            analogies = _from_pairs(index.records, options)
    if not analogies:
        raise EvaluationError(
            expected=f"analogies in {spec}: two pairs of one task with aspects within 15 %",
            got=f"none in split {options.split!r}",
            remedy="Choose --split all, or hold pairs out with `python -m training.prepare split --split test`.",
        )
    return _with_unique_names(analogies)


def _from_pairs(records: Sequence[PairRecord], options: SetOptions) -> list[Analogy]:
    chosen = [record for record in records if options.split in ("all", record.split)]
    chosen = _of_tasks(chosen, options.tasks)
    analogies: list[Analogy] = []
    for positions in positions_by_task(chosen).values():
        pairs = _shuffled([chosen[int(i)] for i in positions], options.seed)
        couples = _couples_by_b(pairs, options) if options.pairs_per_b else _couples_by_pair(pairs, options)
        analogies += [_analogy_of_pairs(a, b, prompt) for a, b, prompt in couples]
    return analogies


def _couples_by_pair(pairs: Sequence[PairRecord], options: SetOptions) -> list[tuple[PairRecord, PairRecord, str]]:
    """Every pair with the next b after it that fit."""
    couples = [(a, b) for place, a in enumerate(pairs) for b in _next_fitting(pairs, place, options.b_per_pair)]
    couples = couples[: options.per_task or None]
    return [(a, b, caption_of(a, b, options.caption_source)) for a, b in couples]


def _couples_by_b(pairs: Sequence[PairRecord], options: SetOptions) -> list[tuple[PairRecord, PairRecord, str]]:
    """Every b with several pairs and one prompt: the task's, since pair a changes."""
    couples = []
    for place, b in list(enumerate(pairs))[: options.per_task or None]:
        prompt = "" if options.caption_source == "none" else task_caption(b)
        fitting = _next_fitting(pairs, place, options.pairs_per_b)
        couples += [(a, b, prompt) for a in fitting if len(fitting) == options.pairs_per_b]
    return couples


def _next_fitting(pairs: Sequence[PairRecord], place: int, count: int) -> list[PairRecord]:
    others = [*pairs[place + 1 :], *pairs[:place]]
    return [other for other in others if aspects_match(other.aspect, pairs[place].aspect)][:count]


def _analogy_of_pairs(a: PairRecord, b: PairRecord, prompt: str) -> Analogy:
    (image_a, image_a_prime), (image_b, image_b_prime) = (_sides(record) for record in (a, b))
    name = f"{_short(a.task, 40)}--{_short(a.id)}--{_short(b.id)}"
    return Analogy(name, a.task, prompt, a.id, b.id, image_a, image_a_prime, image_b, image_b_prime)


def _sides(record: PairRecord) -> tuple[PicturePart, PicturePart]:
    if record.strip:
        return PicturePart(record.before, 0, 2), PicturePart(record.before, 1, 2)
    return PicturePart(record.before), PicturePart(record.after)


def _from_triplets(records: Iterable[TripletRecord], options: SetOptions) -> list[Analogy]:
    chosen = [record for record in records if options.split in ("all", record.split)]
    counts: Counter[str] = Counter()
    analogies = []
    for record in _of_tasks(chosen, options.tasks):
        counts[record.task] += 1
        if options.per_task and counts[record.task] > options.per_task:
            continue
        a, a_prime, b = (PicturePart(record.control, column, 3) for column in range(3))
        name = f"{_short(record.task, 40)}--{_short(record.id, 50)}"
        prompt = "" if options.caption_source == "none" else record.caption
        truth = PicturePart(record.target)
        analogies.append(Analogy(name, record.task, prompt, record.id, record.id, a, a_prime, b, truth))
    return analogies


def _evalset(root: Path, options: SetOptions) -> list[Analogy]:
    require_folder(root, "original/ and decoded… of LoRWeB_evalset")
    originals = {
        folder.name.removeprefix("unsplash_"): picture_files(folder) for folder in subfolders(root / "original")
    }
    aspects = {path: _aspect(path) for paths in originals.values() for path in paths}
    analogies = []
    for edited in _edited_files(root):
        part, category, prompt_folder = edited.parts[-_EVALSET_DEPTH:-1]
        name = re.sub(r"_\d+$", "", edited.stem)
        before = next((path for path in originals.get(category, []) if path.stem in (name, edited.stem)), None)
        if before is None:
            continue
        others = [
            path for path in originals[category] if path != before and aspects_match(aspects[path], aspects[before])
        ]
        others.sort(key=lambda path: uniforms(options.seed, *edited.relative_to(root).parts, path.stem))
        prompt = task_caption_from_name(prompt_folder)
        shown_prompt = "" if options.caption_source == "none" else prompt
        for b in others[: options.b_per_pair]:
            sample = f"{_short(prompt_folder, 40)}--{_short(edited.stem)}--{_short(b.stem)}"
            pictures = (PicturePart(before), PicturePart(edited), PicturePart(b))
            task, pair = f"{part}/{prompt}", f"{prompt_folder}/{edited.stem}"
            analogies.append(Analogy(sample, task, shown_prompt, pair, b.stem, *pictures, crops_b=True))
    return _limited(_of_tasks(analogies, options.tasks), options.per_task)


def _edited_files(root: Path) -> list[Path]:
    """Pictures at <anything>/<part>/<category>/<prompt>/<file> outside `original/`."""
    folders = sorted({path.parent for path in root.rglob("*") if path.is_file()})
    deep = [f for f in folders if len(f.relative_to(root).parts) >= _EVALSET_DEPTH and "original" not in f.parts]
    return [path for folder in deep for path in picture_files(folder)]


def _aspect(path: Path) -> float:
    try:
        facts = read_facts(path)
    except PictureError:
        return 1.0  # reading it as a sample will tell what is wrong
    return facts.width / facts.height


def _limited(analogies: Sequence[Analogy], per_task: int) -> list[Analogy]:
    counts: Counter[str] = Counter()
    kept = []
    for analogy in analogies:
        counts[analogy.task] += 1
        if not per_task or counts[analogy.task] <= per_task:
            kept.append(analogy)
    return kept


def _of_tasks(items: Sequence[ItemT], wanted: Sequence[str]) -> list[ItemT]:
    """The items of the wanted tasks (anything with a `task`); all without names."""
    if not wanted:
        return list(items)
    names = {item.task for item in items}
    unknown = [name for name in wanted if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        raise EvaluationError(
            expected="names of tasks that the set has in this split",
            got=", ".join(map(repr, unknown)),
            remedy=f"Did you mean {near[0]!r}?" if near else f"The first are {', '.join(sorted(names)[:3])}.",
        )
    return [item for item in items if item.task in wanted]


def _shuffled(pairs: Sequence[PairRecord], seed: int) -> list[PairRecord]:
    return sorted(pairs, key=lambda record: uniforms(seed, "evaluation", record.id))


def _short(name: str, length: int = 30) -> str:
    return safe_name(PurePosixPath(name).name)[:length].strip(". ").replace(" ", "_") or "x"


def _with_unique_names(analogies: Sequence[Analogy]) -> list[Analogy]:
    counts = Counter(analogy.sample for analogy in analogies)

    def named(analogy: Analogy) -> Analogy:
        if counts[analogy.sample] == 1:
            return analogy
        digest = hashlib.sha256(repr((analogy.task, analogy.pair, analogy.b)).encode()).hexdigest()[:8]
        return replace(analogy, sample=f"{analogy.sample}--{digest}")

    return [named(analogy) for analogy in analogies]
