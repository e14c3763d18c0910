"""Test sets: which analogies come out of every kind of source, and what lies in an evaluation folder."""

from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from tests.training.data.pair_images import paint, write_pair
from tests.training.evaluation.example_sets import write_index
from training.data.index import read_pairs, write_pairs
from training.evaluation.folder import EvaluationError, EvaluationFolder
from training.evaluation.sets import SetOptions, read_set
from training.evaluation.test_set import ImagePart, read_samples, write_samples

ALL = SetOptions(split="all")


def pixels(image):
    return image.convert("RGB").tobytes()


def test_every_pair_of_an_index_gets_its_b_and_the_true_answer(tmp_path):
    index = write_index(tmp_path, tasks=("dark", "light"), pairs=3)
    analogies = read_set(str(index), ALL).analogies
    assert len(analogies) == 2 * 3 * 2
    for analogy in analogies:
        assert analogy.pair != analogy.b
        assert analogy.pair.split("/")[0] == analogy.b.split("/")[0] == analogy.task
        assert analogy.prompt == f"make it {analogy.task}, please {int(analogy.pair[-4:])}"
        assert analogy.image_b_prime.path.name == f"{analogy.b[-4:]}_after.png"
    assert read_set(str(index), ALL).analogies == analogies
    fewer = read_set(str(index), SetOptions("all", per_task=1)).analogies
    assert {a.sample for a in fewer} <= {a.sample for a in analogies}
    assert Counter(a.task for a in fewer) == {"dark": 1, "light": 1}


def test_pairs_and_tasks_that_cannot_be_used_are_counted(tmp_path):
    write_index(tmp_path, tasks=("dark",), pairs=2)
    write_pair(tmp_path / "dark", "0009", 7, size=(40, 90))
    write_pair(tmp_path / "lonely", "0000", 5)
    index = write_index(tmp_path, tasks=("dark",), pairs=2)
    assert read_set(str(index), SetOptions("all", b_per_pair=1)).not_used() == [
        "2 pairs without a fitting b (first dark/0009, lonely/0000)",
        "1 tasks without analogies (first lonely)",
    ]
    found = read_set(str(index), ALL)
    assert len(found.unused["pairs with fewer than 2 b"]) == 2
    assert {analogy.b for analogy in found.analogies} == {"dark/0000", "dark/0001"}
    assert read_set(str(write_index(tmp_path / "whole", pairs=3)), ALL).not_used() == []


def test_unknown_tasks_and_empty_splits_are_errors(tmp_path):
    index = write_index(tmp_path, tasks=("dark",))
    with pytest.raises(EvaluationError, match="Did you mean 'dark'"):
        read_set(str(index), SetOptions("all", tasks=("darc",)))
    with pytest.raises(EvaluationError, match=r"no analogies in split 'test'.*prepare split"):
        read_set(str(index), SetOptions())


def test_strips_are_cut_in_halves(tmp_path):
    index = write_index(tmp_path, tasks=("strips",), pairs=2, size=(32, 30))
    records = []
    for record in read_pairs(index):
        strip, path = Image.new("RGB", (64, 30)), record.before.with_name(f"strip-{record.before.name}")
        for half, source in enumerate((record.before, record.after)):
            strip.paste(Image.open(source), (32 * half, 0))
        strip.save(path)
        records.append(replace(record, before=path, after=path, strip=True))
    write_pairs(tmp_path / "strips.jsonl", records)
    cut, whole = (read_set(str(tmp_path / name), ALL).analogies for name in ("strips.jsonl", "pairs.jsonl"))
    for part in ("image_a", "image_a_prime", "image_b", "image_b_prime"):
        assert [pixels(getattr(a, part).read()) for a in cut] == [pixels(getattr(a, part).read()) for a in whole]
    assert cut[0].image_a == ImagePart(records[int(cut[0].pair[-1])].before, 0)


@pytest.fixture
def evalset(tmp_path):
    """A fixture of LoRWeB_evalset's shape: three animals of nearly one shape, one tall, one edit of the first."""
    root = tmp_path / "LoRWeB_evalset"
    sizes = {"cat": (60, 40), "dog": (63, 40), "owl": (60, 43), "eel": (40, 90)}
    (root / "original" / "unsplash_animals").mkdir(parents=True)
    for number, (name, size) in enumerate(sizes.items()):
        paint(number, size=size).save(root / "original" / "unsplash_animals" / f"{name}.png")
    edited = root / "decoded_random_inference_set" / "db_not_in_trainset" / "animals" / "Make_it_snow"
    edited.mkdir(parents=True)
    paint(50, size=(60, 40)).save(edited / "cat_2.png")
    return root


def test_the_papers_set_pairs_an_edit_with_two_photos_of_its_category(evalset, tmp_path):
    analogies = read_set(f"evalset:{evalset}", SetOptions()).analogies
    assert {a.b for a in analogies} == {"dog", "owl"}
    assert {(a.task, a.prompt) for a in analogies} == {("db_not_in_trainset/Make it snow", "Make it snow")}
    assert all(a.image_b_prime is None for a in analogies)

    folder = EvaluationFolder(tmp_path / "evaluation")
    write_samples(folder, analogies, max_side_px=30)
    for sample in read_samples(folder):
        assert sample.truth is None
        a, b = (Image.open(folder.inputs(sample.id) / f"{part}.png") for part in ("a", "b"))
        assert max(b.size) == 30
        assert b.width / b.height == pytest.approx(a.width / a.height, rel=0.05), "b is cropped to a's aspect"


def test_what_of_the_papers_set_cannot_be_used_is_counted(evalset):
    part = evalset / "decoded_random_inference_set" / "db_not_in_trainset"
    for category, name in (("animals", "eel_0"), ("animals", "gnu_1"), ("anmials", "cat_1")):
        (part / category / "Make_it_rain").mkdir(parents=True, exist_ok=True)
        paint(3, size=(40, 90)).save(part / category / "Make_it_rain" / f"{name}.png")
    found = read_set(f"evalset:{evalset}", SetOptions())
    place = "decoded_random_inference_set/db_not_in_trainset"
    assert found.not_used() == [
        f"1 pairs without a fitting b (first {place}/animals/Make_it_rain/eel_0.png)",
        f"2 edited images without an original (first {place}/animals/Make_it_rain/gnu_1.png, "
        f"{place}/anmials/Make_it_rain/cat_1.png)",
        "1 tasks without analogies (first db_not_in_trainset/Make it rain)",
    ]
    assert read_set(f"evalset:{evalset}", SetOptions(tasks=("db_not_in_trainset/Make it snow",))).not_used() == []
    with pytest.raises(EvaluationError, match="Did you mean"):
        read_set(f"evalset:{evalset}", SetOptions(tasks=("db_not_in_trainset/Make it snows",)))
    with pytest.raises(EvaluationError, match=r"has no analogies: 1 pairs without.*within 15 %\.$"):
        read_set(f"evalset:{evalset}", SetOptions(tasks=("db_not_in_trainset/Make it rain",)))


def test_an_evaluation_folder_holds_one_set_and_is_filled_once(tmp_path):
    index = write_index(tmp_path / "data", tasks=("dark",))
    folder = EvaluationFolder(tmp_path / "evaluation")
    analogies = read_set(str(index), ALL).analogies
    write_samples(folder, analogies[:2], max_side_px=64)
    first = (folder.inputs(analogies[0].sample) / "b.png").stat().st_mtime_ns
    folder = EvaluationFolder(folder.root)
    write_samples(folder, analogies, max_side_px=64)
    assert [sample.id for sample in read_samples(folder)] == [analogy.sample for analogy in analogies]
    assert (folder.inputs(analogies[0].sample) / "b.png").stat().st_mtime_ns == first
    assert (folder.inputs(analogies[0].sample) / "prompt.txt").read_text(encoding="utf-8").startswith("make it dark")

    with pytest.raises(EvaluationError, match="another test set: 6 samples"):
        write_samples(folder, analogies, max_side_px=32)
    with pytest.raises(EvaluationError, match="Choose another --out"):
        write_samples(folder, analogies[:1], max_side_px=64)
