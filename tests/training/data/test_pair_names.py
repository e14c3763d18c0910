"""Names of pairs: Encode Many Analogies and `prepare folders` go by one rule."""

import pytest
from PIL import Image

from lorweb_core.pair_folder import find_pairs
from training.data.importers.folders import find_pairs as import_pairs


def draw(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16)).save(folder / name, "PNG")


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [
        ("x_a.png", "x_a_prime.jpg", "x"),
        ("X_A.PNG", "X_A_PRIME.PNG", "X"),
        ("lorweb_a_cup.jpg", "lorweb_a_prime_cup.jpg", "lorweb_cup"),
        ("a_cup.png", "a_prime_cup.png", "cup"),
        ("a/1.png", "a_prime/1.webp", "1"),
        ("0001_before.png", "0001_after.png", "0001"),
        ("img0 before.png", "img0 After.png", "img0"),
        ("img0 (before).png", "img0 (after).png", "img0 ()"),
        ("before cats.png", "after cats.png", "cats"),
        ("the day after rain_before.png", "the day after rain_after.png", "the day after rain"),
        ("before.png", "after.png", "pair"),
        ("sub/Before/1.png", "sub/AFTER/1_after.png", "sub/1"),
        ("control/1.png", "target/1.png", "1"),
        ("x-control.png", "x-target.png", "x"),
        ("a/cafe\u0301.png", "a_prime/caf\u00e9.png", "caf\u00e9"),
    ],
)
def test_both_readers_of_pairs_know_the_same_names(tmp_path, before, after, name):
    draw(tmp_path / "t", before, after, "other.png", "vitamin a.png", "cat_a_primed.png")
    (tmp_path / "t" / "._x_after.png").write_bytes(b"what macOS leaves on foreign disks")
    (pair,) = find_pairs(tmp_path / "t")
    assert (pair.name, pair.before, pair.after) == (name, tmp_path / "t" / before, tmp_path / "t" / after)
    found = import_pairs(tmp_path)
    assert [(pair.before, pair.after) for pair in found.candidates] == [(pair.before, pair.after)]
    assert [problem for problem in found.problems if problem.severity == "error"] == []


def test_folders_called_a_or_target_alone_hold_no_side(tmp_path):
    draw(tmp_path, "a/1_before.png", "a/1_after.png", "target/2_before.png", "target/2_after.png")
    assert [pair.name for pair in find_pairs(tmp_path)] == ["a/1", "target/2"]
    assert [pair.id for pair in import_pairs(tmp_path).candidates] == ["a/1", "target/2"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["t/x_before.png", "t/x_aftr.png"],
            "no after image named x (if it is x_aftr.png, rename that to x_after.png)",
        ),
        (["t/x_orig.png", "t/x_edit.png"], "names end in `edit` and `orig`: rename these to `before` and `after`"),
        (["t/input/1.png", "t/output/1.png"], "output/ has images of the same names: rename the two folders"),
        (["t/0001_before.png", "t/0002_after.png"], "there is no after image named 0001\n"),
    ],
)
def test_the_importer_names_the_renaming_that_would_help(tmp_path, files, message):
    draw(tmp_path, *files)
    assert message in f"{import_pairs(tmp_path).problems[0].reason}\n"
