"""Test sets: which analogies come out of every kind of source, and what lies in an evaluation folder."""

import json

import pytest
from PIL import Image

from tests.training.data_pictures import paint, write_pair
from tests.training.evaluation_sets import write_index
from training.data.importers.building import build_triplets
from training.data.importers.reference import find_triplets
from training.data.index import TripletIndex
from training.evaluation.errors import EvaluationError
from training.evaluation.folder import EvaluationFolder
from training.evaluation.samples import PicturePart, read_samples, write_samples
from training.evaluation.set_choice import SetOptions
from training.evaluation.sets import read_set

ALL = SetOptions(split="all")


def pixels(picture):
    return picture.convert("RGB").tobytes()


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


def test_pairs_and_tasks_that_cannot_be_used_are_counted(tmp_path):
    write_index(tmp_path, tasks=("dark",), pairs=2)
    for stem, size in (("0009_before", (40, 90)), ("0009_after", (40, 90))):
        paint(7, size=size).save(tmp_path / "dark" / f"{stem}.png")
    write_pair(tmp_path / "lonely", "0000", 5)
    index = write_index(tmp_path, tasks=("dark",), pairs=2)
    assert read_set(str(index), SetOptions("all", b_per_pair=1)).losses == [
        "2 pairs without a fitting b (first dark/0009, lonely/0000)",
        "tasks without samples: lonely",
    ]
    (fewer,) = [loss for loss in read_set(str(index), ALL).losses if "fewer" in loss]
    assert fewer.startswith("2 pairs with fewer than 2 b (first dark/000")
    assert read_set(str(index), SetOptions("all", pairs_per_b=1, tasks=("dark",))).losses == [
        "1 b with fewer than 1 fitting pairs (first dark/0009)"
    ]
    assert read_set(str(write_index(tmp_path / "whole", pairs=3)), ALL).losses == []


def test_pairs_of_other_shape_never_meet(tmp_path):
    index = write_index(tmp_path, tasks=("dark",), pairs=2)
    paint(7, size=(40, 90)).save(tmp_path / "dark" / "0009_before.png")
    paint(8, size=(40, 90)).save(tmp_path / "dark" / "0009_after.png")
    write_index(tmp_path, tasks=("dark",), pairs=2)
    assert {analogy.b for analogy in read_set(str(index), ALL).analogies} == {"dark/0000", "dark/0001"}


def test_a_set_for_sensitivity_has_one_b_and_prompt_under_several_pairs(tmp_path):
    index = write_index(tmp_path, tasks=("dark",), pairs=4)
    analogies = read_set(str(index), SetOptions("all", pairs_per_b=3, per_task=2)).analogies
    assert len(analogies) == 2 * 3
    for b in {analogy.b for analogy in analogies}:
        of_b = [analogy for analogy in analogies if analogy.b == b]
        assert len({analogy.pair for analogy in of_b}) == 3
        assert {analogy.prompt for analogy in of_b} == {"dark"}


def test_unknown_tasks_and_empty_splits_are_told(tmp_path):
    index = write_index(tmp_path, tasks=("dark",))
    with pytest.raises(EvaluationError, match="Did you mean 'dark'"):
        read_set(str(index), SetOptions("all", tasks=("darc",)))
    with pytest.raises(EvaluationError, match=r"none in split 'test'.*prepare split"):
        read_set(str(index), SetOptions())


def test_relation252k_strips_are_cut_in_halves(tmp_path):
    group = tmp_path / "115-Colored Pencil Filter" / "Group1"
    group.mkdir(parents=True)
    labels = []
    for number in range(2):
        strip = Image.new("RGB", (64, 30))
        strip.paste(paint(number, size=(32, 30)), (0, 0))
        strip.paste(paint(10 + number, size=(32, 30)), (32, 0))
        strip.save(group / f"{number}.png")
        labels.append({"img_name": f"{number}.png", "edit_instruction": "turn it into a drawing"})
    labels.append({"img_name": "gone.png", "edit_instruction": "turn it into a drawing"})
    (group / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    (tmp_path / "116-Nothing").mkdir()

    found = read_set(f"relation252k:{tmp_path}", SetOptions())
    assert [loss.partition(" (")[0] for loss in found.losses] == [
        "2 entries or tasks without usable pictures",
        "2 pairs with fewer than 2 b",
        "tasks without samples: 116-Nothing",
    ]
    assert "gone.png" in found.losses[0]
    assert str(tmp_path) not in " ".join(found.losses)
    analogies = found.analogies
    assert [a.task for a in analogies] == ["115-Colored Pencil Filter"] * 2
    first = next(a for a in analogies if a.pair.endswith("0"))
    assert pixels(first.image_a.read()) == pixels(paint(0, size=(32, 30)))
    assert pixels(first.image_a_prime.read()) == pixels(paint(10, size=(32, 30)))
    assert pixels(first.image_b_prime.read()) == pixels(paint(11, size=(32, 30)))


def test_ready_made_triplets_are_cut_in_thirds(tmp_path):
    for folder in ("control", "target"):
        (tmp_path / folder).mkdir()
    control = Image.new("RGB", (90, 30))
    for column in range(3):
        control.paste(paint(column, size=(30, 30)), (30 * column, 0))
    control.save(tmp_path / "control" / "x.png")
    paint(9, size=(30, 30)).save(tmp_path / "target" / "x.png")
    (tmp_path / "target" / "x.txt").write_text("do it", encoding="utf-8")
    records, _ = build_triplets(find_triplets(tmp_path)[0])
    TripletIndex(records).write_index(tmp_path / "triplets.jsonl")

    (analogy,) = read_set(str(tmp_path / "triplets.jsonl"), ALL).analogies
    parts = (analogy.image_a, analogy.image_a_prime, analogy.image_b)
    assert [pixels(part.read()) for part in parts] == [pixels(paint(seed, size=(30, 30))) for seed in range(3)]
    assert pixels(analogy.image_b_prime.read()) == pixels(paint(9, size=(30, 30)))
    assert analogy.prompt == "do it"
    with pytest.raises(EvaluationError, match="--pairs-per-b with ready-made triplets"):
        read_set(str(tmp_path / "triplets.jsonl"), SetOptions("all", pairs_per_b=2))


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


def test_the_papers_set_pairs_an_edit_with_two_pictures_of_its_category(evalset, tmp_path):
    analogies = read_set(f"evalset:{evalset}", SetOptions()).analogies
    assert {a.b for a in analogies} == {"dog", "owl"}
    assert {(a.task, a.prompt) for a in analogies} == {("db_not_in_trainset/Make it snow", "Make it snow")}
    assert all(a.image_b_prime is None for a in analogies)

    folder = EvaluationFolder(tmp_path / "evaluation")
    write_samples(folder, analogies, max_side_px=30)
    for sample in read_samples(folder):
        assert not sample.has_truth
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
    assert found.losses == [
        f"2 edited pictures without an original (first {place}/animals/Make_it_rain/gnu_1.png, "
        f"{place}/anmials/Make_it_rain/cat_1.png)",
        f"1 pairs without a fitting b (first {place}/animals/Make_it_rain/eel_0.png)",
        "tasks without samples: db_not_in_trainset/Make it rain",
    ]
    assert read_set(f"evalset:{evalset}", SetOptions(tasks=("db_not_in_trainset/Make it snow",))).losses == []
    with pytest.raises(EvaluationError, match="Did you mean"):
        read_set(f"evalset:{evalset}", SetOptions(tasks=("db_not_in_trainset/Make it snows",)))


def test_the_papers_set_gives_one_b_several_pairs_for_sensitivity(evalset, tmp_path):
    edited = next(evalset.rglob("cat_2.png")).parent
    paint(51, size=(63, 40)).save(edited / "dog_1.png")
    paint(52, size=(63, 40)).save(edited / "dog_2.png")
    found = read_set(f"evalset:{evalset}", SetOptions(pairs_per_b=3))
    assert {analogy.b for analogy in found.analogies} == {"animals/owl"}
    assert {analogy.pair for analogy in found.analogies} == {
        f"Make_it_snow/{name}" for name in ("cat_2", "dog_1", "dog_2")
    }
    assert found.losses[0].startswith("3 b with fewer than 3 fitting pairs (first ")
    folder = EvaluationFolder(tmp_path / "evaluation")
    write_samples(folder, found.analogies, max_side_px=64)
    pictures = {(folder.inputs(sample.id) / "b.png").read_bytes() for sample in read_samples(folder)}
    assert len(pictures) == 1, "b is the very same under every pair"
    fewer = read_set(f"evalset:{evalset}", SetOptions(pairs_per_b=2, per_task=1)).analogies
    assert len(fewer) == 2
    assert len({analogy.b for analogy in fewer}) == 1


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

    with pytest.raises(EvaluationError, match="6 other test analogies"):
        write_samples(folder, analogies, max_side_px=32)
    with pytest.raises(EvaluationError, match="Choose another --out folder"):
        write_samples(folder, analogies[:1], max_side_px=64)


def test_broken_pictures_are_left_out_by_name(tmp_path, caplog):
    index = write_index(tmp_path / "data", tasks=("dark",))
    (tmp_path / "data" / "dark" / "0001_after.png").write_bytes(b"no picture")
    folder = EvaluationFolder(tmp_path / "evaluation")
    write_samples(folder, read_set(str(index), SetOptions("all", b_per_pair=1)).analogies, max_side_px=64)
    assert all("0001" not in (sample.pair, sample.b) for sample in read_samples(folder))
    assert "unusable pictures" in caplog.text
    assert "0001_after.png" in caplog.text


def test_columns_of_a_picture_are_equal(tmp_path):
    paint(1, size=(31, 10)).save(tmp_path / "strip.png")
    assert {PicturePart(tmp_path / "strip.png", i, 3).read().size for i in range(3)} == {(10, 10)}
