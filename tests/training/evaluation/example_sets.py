"""Small evaluation folders for the tests: soft gradients, edits that darken or invert, everything as real files."""

import numpy as np
from PIL import Image

from tests.training.data.pair_images import index_folder, write_pair
from training.evaluation.folder import EvaluationFolder
from training.evaluation.methods import baseline, generate, images_method
from training.evaluation.sets import SetOptions, read_set
from training.evaluation.test_set import read_samples, write_samples


def write_index(root, *, tasks=("dark", "light"), pairs=3, size=(48, 40)):
    """A pair index of `tasks` with `pairs` pairs each."""
    for number, task in enumerate(tasks):
        for pair in range(pairs):
            write_pair(root / task, f"{pair:04d}", 100 * number + pair, size=size)
            (root / task / f"{pair:04d}.txt").write_text(f"make it {task}, please {pair}", encoding="utf-8")
    return index_folder(root, root / "pairs.jsonl")


def write_evaluation(root, *methods, **index):
    """An evaluation folder with samples, both baselines, and methods (name, gray); returns (folder, samples)."""
    folder = EvaluationFolder(root / "evaluation")
    spec = str(write_index(root / "data", **index))
    write_samples(folder, read_set(spec, SetOptions("all", b_per_pair=1)).analogies, max_side_px=256)
    samples = read_samples(folder)
    for name in ("copy-b", "copy-a-prime"):
        generate(folder, baseline(name, folder), samples)
    for name, gray in methods:
        add_method(root, folder, samples, name, gray=gray)
    return folder, samples


def write_results(place, folder, samples, *, gray, size=None):
    """One image per sample below `place`: b pulled towards a gray value; `size` differs from b's if given."""
    place.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        b = Image.open(folder.inputs(sample.id) / "b.png")
        mixed = Image.blend(b, Image.new("RGB", b.size, (gray, gray, gray)), 0.5)
        mixed.resize(size or b.size).save(place / f"{sample.id}.png")
    return place


def add_method(root, folder, samples, name, **how):
    """Write results and bring them in as a method."""
    method = images_method(f"{name}={write_results(root / 'results' / name, folder, samples, **how)}")
    generate(folder, method, samples)
    return method


def mean_color(path):
    """Mean value of an image file, 0-255."""
    return float(np.asarray(Image.open(path).convert("RGB")).mean())
