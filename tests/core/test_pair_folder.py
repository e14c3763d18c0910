"""Example pairs in a folder."""

import numpy as np
import pytest
from PIL import Image

from lorweb_core.errors import ImageError
from lorweb_core.pair_folder import find_pairs

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def write_images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RAMP).save(folder / name, "PNG")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "There are no pairs among the 0 images"),
        (["x.png", "cat_a_primed.png"], "There are no pairs among the 2 images"),
        (["x_a.png", "x_a_prime.png", "y_a_prime.png"], "1 of the pairs .* such as 'y': no image before. Name the two"),
        (["x_a.png", "x_a.jpg", "x_a_prime.png"], "such as 'x': 2 images before and 1 after. Name the two"),
        (["x_before.png", "x_edited.png"], "'x': no image after .if it is x_edited.png, rename that to x_after.png"),
        (
            ["cup1_before.png", "cpu1 after.png"],
            "'cpu1': no image before .if it is cup1_before.png, rename that to cpu1_b",
        ),
    ],
)
def test_folders_without_clear_pairs_are_refused(tmp_path, files, message):
    write_images(tmp_path, *files)
    with pytest.raises(ImageError, match=message):
        find_pairs(tmp_path)


@pytest.mark.parametrize(("name", "shown"), [("x" * 300, r"x'… \(300 characters\)"), ("a\0b", r"'a\\x00b'")])
def test_names_that_no_folder_can_have_are_refused_like_missing_folders(tmp_path, name, shown):
    with pytest.raises(ImageError, match=f"There is no folder .*{shown} with example pairs. Put"):
        find_pairs(tmp_path / name)
