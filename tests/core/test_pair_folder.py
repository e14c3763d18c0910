"""Example pairs in a folder."""

import numpy as np
import pytest
from PIL import Image

from lorweb_core.errors import ImageError
from lorweb_core.pair_folder import find_pairs

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_pairs_are_found_whatever_ending_and_folder_they_have(tmp_path):
    for name in ("x_a.png", "x_a_prime.jpg", "a/1.png", "a_prime/1.webp", "other.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(RAMP).save(tmp_path / name)
    assert [(pair.name, pair.after.name) for pair in find_pairs(tmp_path)] == [
        ("a/1", "1.webp"),
        ("x_a", "x_a_prime.jpg"),
    ]


def test_capital_letters_pair_with_capital_letters(tmp_path):
    for name in ("X_A.PNG", "X_A_PRIME.PNG"):
        Image.fromarray(RAMP).save(tmp_path / name)
    assert [(pair.name, pair.before.name) for pair in find_pairs(tmp_path)] == [("X_A", "X_A.PNG")]


def test_hidden_files_are_no_pictures(tmp_path):
    for name in ("x_a.png", "x_a_prime.png"):
        Image.fromarray(RAMP).save(tmp_path / name)
        (tmp_path / f"._{name}").write_bytes(b"what macOS leaves on foreign disks")
    assert [pair.name for pair in find_pairs(tmp_path)] == ["x_a"]


def test_an_after_without_a_before_is_refused(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "x_a_prime.png")
    with pytest.raises(ImageError, match=r"Expected one picture .*; got 1 without exactly one \(such as x_a_prime\)"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(("name", "told"), [("x" * 300, r"x… \(300 characters\)"), ("a\0b", r"'a\\x00b'")])
def test_names_that_no_folder_can_have_are_refused_like_missing_folders(tmp_path, name, told):
    with pytest.raises(
        ImageError, match=f"Expected a folder with example pairs; got .*{told}, which is no folder. Put"
    ):
        find_pairs(tmp_path / name)
