"""The paper's LoRWeB_evalset: an edit of one photograph is to be repeated on others of its category.

    original/unsplash_<category>/x.jpg
    decoded…/<part>/<category>/<Prompt_with_underscores>/<x>_<k>.png        b′ is not known

b is cropped to a's aspect, as in the paper; for pair sensitivity it is not, so that all pairs get the very same b.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorweb_core.images import ImageFileError, read_image_size

from ..data.buckets import aspects_match
from ..data.drawing import task_caption_from_name, uniforms
from ..data.importers.building import picture_files, require_folder, subfolders
from .samples import Analogy, PicturePart
from .set_choice import AnalogySet, Losses, SetOptions, of_tasks, short_name

_DEPTH = 4  # part / category / prompt / file


@dataclass(frozen=True)
class _Edited:
    """One edited picture, <root>/<anything>/<part>/<category>/<prompt>/<file>."""

    path: Path
    root: Path

    @property
    def part(self) -> str:
        return self.path.parts[-_DEPTH]

    @property
    def category(self) -> str:
        return self.path.parts[-3]

    @property
    def prompt_folder(self) -> str:
        return self.path.parts[-2]

    @property
    def prompt(self) -> str:
        return task_caption_from_name(self.prompt_folder)

    @property
    def task(self) -> str:
        return f"{self.part}/{self.prompt}"

    @property
    def place(self) -> str:
        return self.path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class _Originals:
    """The photographs by category, with their aspects."""

    by_category: Mapping[str, Sequence[Path]]
    aspects: Mapping[Path, float]

    def find(self, edited: _Edited) -> Path | None:
        """The photograph that was edited."""
        stems = (re.sub(r"_\d+$", "", edited.path.stem), edited.path.stem)
        return next((path for path in self.by_category.get(edited.category, ()) if path.stem in stems), None)

    def fitting(self, before: Path, category: str) -> list[Path]:
        """The other photographs of a category with about the same aspect."""
        aspects = self.aspects
        others = (path for path in self.by_category[category] if path != before)
        return [path for path in others if aspects_match(aspects[path], aspects[before])]


def read_evalset(root: Path, options: SetOptions) -> AnalogySet:
    """Return the set's analogies.

    Args:
        root: folder with `original/` and `decoded…`.
        options: which; a task is `<part>/<prompt in words>`.
    Raises: LoRWeBError: when there is no such folder or task.
    """
    require_folder(root, "original/ and decoded… of LoRWeB_evalset")
    folders = subfolders(root / "original") if (root / "original").is_dir() else []
    by_category = {folder.name.removeprefix("unsplash_"): picture_files(folder) for folder in folders}
    originals = _Originals(by_category, {path: _aspect(path) for paths in by_category.values() for path in paths})
    edits, losses = of_tasks(_edited_files(root), options.tasks), Losses()
    pairs = []
    for edited in edits:
        before = originals.find(edited)
        if before is None:
            losses.add("edited pictures without an original", edited.place)
        else:
            pairs.append((before, edited))
    make = _with_several_pairs if options.pairs_per_b else _with_several_b
    analogies = _limited(list(make(pairs, originals, options, losses)), options)
    return AnalogySet(analogies, losses.told([edited.task for edited in edits], analogies))


def _with_several_b(
    pairs: Sequence[tuple[Path, _Edited]], originals: _Originals, options: SetOptions, losses: Losses
) -> Iterator[Analogy]:
    """Every pair with some b of its category."""
    for before, edited in pairs:
        others = originals.fitting(before, edited.category)
        others.sort(key=lambda path: uniforms(options.seed, *edited.path.relative_to(edited.root).parts, path.stem))
        if not others:
            losses.add("pairs without a fitting b", edited.place)
        elif len(others) < options.b_per_pair:
            losses.add(f"pairs with fewer than {options.b_per_pair} b", edited.place)
        for b in others[: options.b_per_pair]:
            yield _analogy(before, edited, b, options, crops_b=True)


def _with_several_pairs(
    pairs: Sequence[tuple[Path, _Edited]], originals: _Originals, options: SetOptions, losses: Losses
) -> Iterator[Analogy]:
    """Every b with several pairs of one prompt and of its category."""
    groups: dict[tuple[str, str], list[tuple[Path, _Edited]]] = defaultdict(list)
    for before, edited in pairs:
        groups[edited.task, edited.category].append((before, edited))
    for (task, category), group in groups.items():
        for b in sorted(originals.by_category[category], key=lambda path: uniforms(options.seed, task, path.stem)):
            fitting = [pair for pair in group if b in originals.fitting(pair[0], category)]
            fitting.sort(key=lambda pair: uniforms(options.seed, task, b.stem, pair[1].path.stem))
            if len(fitting) < options.pairs_per_b:
                losses.add(f"b with fewer than {options.pairs_per_b} fitting pairs", f"{task}: {category}/{b.stem}")
                continue
            for before, edited in fitting[: options.pairs_per_b]:
                yield _analogy(before, edited, b, options, crops_b=False)


def _analogy(before: Path, edited: _Edited, b: Path, options: SetOptions, *, crops_b: bool) -> Analogy:
    sample = f"{short_name(edited.prompt_folder, 40)}--{short_name(edited.path.stem)}--{short_name(b.stem)}"
    pair = f"{edited.prompt_folder}/{edited.path.stem}"
    return Analogy(
        sample, edited.task, "" if options.caption_source == "none" else edited.prompt, pair,
        b.stem if crops_b else f"{edited.category}/{b.stem}",
        PicturePart(before), PicturePart(edited.path), PicturePart(b), crops_b=crops_b,
    )  # fmt: skip


def _edited_files(root: Path) -> list[_Edited]:
    """Pictures at <anything>/<part>/<category>/<prompt>/<file> outside `original/`."""
    folders = sorted({path.parent for path in root.rglob("*") if path.is_file()})
    inside = [(folder, folder.relative_to(root).parts) for folder in folders]
    deep = [folder for folder, parts in inside if len(parts) >= _DEPTH and "original" not in parts]
    return [_Edited(path, root) for folder in deep for path in picture_files(folder)]


def _aspect(path: Path) -> float:
    try:
        width, height = read_image_size(path)
    except ImageFileError:
        return 1.0  # reading it as a sample will tell what is wrong
    return width / height


def _limited(analogies: Sequence[Analogy], options: SetOptions) -> list[Analogy]:
    """At most so many analogies of a task; for pair sensitivity so many b."""
    counts: Counter[str] = Counter()
    kept, seen = [], set()
    for analogy in analogies:
        unit = (analogy.task, analogy.b if options.pairs_per_b else analogy.sample)
        if unit not in seen:
            seen.add(unit)
            counts[analogy.task] += 1
        if not options.per_task or counts[analogy.task] <= options.per_task:
            kept.append(analogy)
    return kept
