"""Reading images: orientation, alpha, modes, limits, damage; cutting, fitting and tiling them."""

import numpy as np
import pytest
from PIL import Image

from tests.training.data.pair_images import paint, pair_at
from training.data.buckets import Cell
from training.data.images import cut_strip, fit_cell, load_pair, tile_grid, to_model_range


def test_a_strip_is_cut_in_equal_halves(tmp_path):
    for width in (40, 41):
        strip = Image.new("RGB", (width, 20), "red")
        strip.paste("blue", (width - 20, 0, width, 20))
        strip.save(tmp_path / "x.png")
        record = pair_at("t", 0, before=tmp_path / "x.png", after=tmp_path / "x.png", strip=True)
        before, after = load_pair(record)
        assert before.size == after.size == (20, 20)
        assert set(before.get_flattened_data()) == {(255, 0, 0)}
        assert set(after.get_flattened_data()) == {(0, 0, 255)}
    assert [half.size for half in cut_strip(Image.new("RGB", (1, 5)))] == [(1, 5), (1, 5)]


def test_a_cell_is_the_center_of_the_image():
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    assert fit_cell(image, Cell(32, 32))[:, 1:-1].min() > 250
    wide = fit_cell(image, Cell(96, 32))
    assert wide.shape == (32, 96, 3)
    assert wide[:, :28].max() < 5
    assert wide[:, 36:60].min() > 250


def test_an_image_of_the_cells_size_is_not_changed():
    image = paint(6, size=(48, 32))
    assert np.array_equal(fit_cell(image, Cell(48, 32)), np.asarray(image))


def test_cells_are_tiled_in_reading_order():
    cells = [np.full((4, 6, 3), value, np.uint8) for value in (1, 2, 3, 4)]
    grid = tile_grid(*cells)
    assert grid.shape == (3, 8, 12)
    assert grid[0, ::4, ::6].tolist() == [[1, 2], [3, 4]]
    assert grid.is_contiguous()


def test_the_model_range_is_minus_one_to_one():
    values = to_model_range(tile_grid(*[np.full((2, 2, 3), value, np.uint8) for value in (0, 255, 127, 128)]))
    assert values.min() == -1
    assert values.max() == 1
    assert values[0, 2, 0] == pytest.approx(-1 / 255)
