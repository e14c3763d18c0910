"""The analogies of a test set: from an index of `training.prepare`, or the paper's LoRWeB_evalset.

    mydata/pairs.jsonl   pairs of the index; the true b′ is known
    evalset:FOLDER       original/unsplash_<category>/<name>.jpg and
                         decoded.../<part>/<category>/<Prompt_with_underscores>/<name>_<k>.png; b′ is not known

The choice depends only on names and the seed. The aspects of a and b differ by less than 15 %, as in the paper.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from lorweb_core.images import ImageFileError, read_image_size

from ..data.buckets import aspects_match
from ..data.importers.building import image_files, require_folder, subfolders
from ..data.importers.extraction import safe_name
from ..data.index import read_pairs
from ..data.pairing import caption_of, task_caption_from_name, uniforms
from .folder import EvaluationError
from .test_set import Analogy, ImagePart

_SHOWN = 5
_DEPTH = 4  # folders above an edited image of the evalset: decoded… / part / category / prompt


@dataclass(frozen=True)
class SetOptions:
    """Which analogies of a set are used."""

    split: str = "test"  # of an index: train, val, test or all
    tasks: tuple[str, ...] = ()  # names; () for all
    b_per_pair: int = 2  # how many b every pair a, a′ gets
    per_task: int = 0  # at most this many analogies of a task; 0 for all
    caption_source: str = "a"  # whose edit instruction is the prompt; see `caption_of`
    seed: int = 0  # of the choice


@dataclass
class AnalogySet:
    """The analogies of a set, and what could not be used: reason → names."""

    analogies: list[Analogy] = field(default_factory=list)
    unused: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def not_used(self) -> list[str]:
        """Return a line with the count for every reason."""
        return [
            f"{len(names)} {reason} (first {', '.join(names[:_SHOWN])})"
            for reason, names in self.unused.items() if names
        ]  # fmt: skip

    def note_missing_b(self, count: int, wanted: int, name: str) -> None:
        """Count a pair that has fewer b than wanted."""
        if count < wanted:
            self.unused[f"pairs with fewer than {wanted} b" if count else "pairs without a fitting b"].append(name)


def read_set(spec: str, options: SetOptions) -> AnalogySet:
    """Return the analogies of an index file or `evalset:FOLDER`.

    Raises LoRWeBError if there is no such set or task, or no analogy fits.
    """
    kind, _, root = spec.partition(":")
    read, name = (_read_evalset, root) if kind == "evalset" and root else (_read_index, spec)
    found, tasks = read(name, options)
    kept = []
    counts: Counter[str] = Counter()
    for analogy in found.analogies:
        counts[analogy.task] += 1
        if not options.per_task or counts[analogy.task] <= options.per_task:
            kept.append(analogy)
    found.unused["tasks without analogies"] = [task for task in dict.fromkeys(tasks) if task not in counts]
    if not kept:
        where, advice = "", ""
        if read is _read_index:
            where = f" in split {options.split!r}"
            advice = " Use --split all, or hold pairs out with `python -m training.prepare split --split test`."
        raise EvaluationError(
            f"{spec} has no analogies{where}: {'; '.join(found.not_used()) or 'no pairs'}. A task needs two pairs with "
            f"aspects within 15 %.{advice}"
        )
    names = Counter(analogy.sample for analogy in kept)
    found.analogies = []
    for analogy in kept:
        if names[analogy.sample] > 1:
            digest = hashlib.sha256(repr((analogy.task, analogy.pair, analogy.b)).encode()).hexdigest()[:8]
            analogy = replace(analogy, sample=f"{analogy.sample}--{digest}")
        found.analogies.append(analogy)
    return found


def _read_index(path: str, options: SetOptions) -> tuple[AnalogySet, list[str]]:
    """Every pair as a, a′ with the next b of its task that fit, in shuffled order."""
    records = [record for record in read_pairs(path) if options.split in ("all", record.split)]
    by_task = defaultdict(list)
    for record in sorted(records, key=lambda record: uniforms(options.seed, "evaluation", record.id)):
        by_task[record.task].append(record)
    tasks = _choose_tasks(dict.fromkeys(record.task for record in records), options.tasks)
    found = AnalogySet()
    for task in tasks:
        pairs = by_task[task]
        for place, a in enumerate(pairs):
            others = [b for b in pairs[place + 1 :] + pairs[:place] if aspects_match(b.aspect, a.aspect)]
            found.note_missing_b(len(others), options.b_per_pair, a.id)
            for b in others[: options.b_per_pair]:
                image_a, image_a_prime, image_b, image_b_prime = (
                    ImagePart(record.before, half) if record.strip else ImagePart((record.before, record.after)[half])
                    for record in (a, b)
                    for half in (0, 1)
                )
                sample = f"{_short(task, 40)}--{_short(a.id)}--{_short(b.id)}"
                prompt = caption_of(a, b, options.caption_source)
                found.analogies.append(
                    Analogy(sample, task, prompt, a.id, b.id, image_a, image_a_prime, image_b, image_b_prime)
                )
    return found, tasks


def _read_evalset(folder_name: str, options: SetOptions) -> tuple[AnalogySet, list[str]]:
    """Every edited photo as a′ with some b of its category, which are cropped to a's aspect."""
    root = Path(folder_name)
    require_folder(root, "original/ and decoded... of LoRWeB_evalset")
    folders = subfolders(root / "original") if (root / "original").is_dir() else []
    originals = {folder.name.removeprefix("unsplash_"): image_files(folder) for folder in folders}
    aspects = {path: _aspect(path) for paths in originals.values() for path in paths}
    edited: dict[str, list[tuple[Path, str, str]]] = defaultdict(list)
    for folder in sorted({path.parent for path in root.rglob("*") if path.is_file()}):
        names = folder.relative_to(root).parts
        if len(names) >= _DEPTH and "original" not in names:
            prompt = task_caption_from_name(folder.name)
            edited[f"{names[-3]}/{prompt}"] += [(path, names[-2], prompt) for path in image_files(folder)]
    tasks = _choose_tasks(edited, options.tasks)
    found = AnalogySet()
    for task, path, category, prompt in ((name, *item) for name in tasks for item in edited[name]):
        place = path.relative_to(root).as_posix()
        stems = (re.sub(r"_\d+$", "", path.stem), path.stem)
        a = next((original for original in originals.get(category, ()) if original.stem in stems), None)
        if a is None:
            found.unused["edited images without an original"].append(place)
            continue
        others = [b for b in originals[category] if b != a and aspects_match(aspects[b], aspects[a])]
        others.sort(key=lambda b: uniforms(options.seed, place, b.stem))
        found.note_missing_b(len(others), options.b_per_pair, place)
        for b in others[: options.b_per_pair]:
            found.analogies.append(
                Analogy(
                    f"{_short(path.parent.name, 40)}--{_short(path.stem)}--{_short(b.stem)}", task,
                    "" if options.caption_source == "none" else prompt, f"{path.parent.name}/{path.stem}", b.stem,
                    ImagePart(a), ImagePart(path), ImagePart(b), crops_b=True,
                )
            )  # fmt: skip
    return found, tasks


def _choose_tasks(known: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """The wanted tasks, or all if none are named."""
    known = list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"The first tasks are {', '.join(sorted(known)[:3])}."
        raise EvaluationError(f"The set has no task {', '.join(map(repr, unknown))} in this split. {hint}")
    return [name for name in known if not wanted or name in wanted]


def _short(name: str, length: int = 30) -> str:
    """The last part of a name, as a short part of a file name."""
    return safe_name(PurePosixPath(name).name)[:length].strip(". ").replace(" ", "_") or "x"


def _aspect(path: Path) -> float:
    try:
        width, height = read_image_size(path)
    except ImageFileError:
        return 1.0  # reported when the sample is written
    return width / height
