"""Cell sizes and which of them an image gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.buckets import Cell, aspects_match, cell_buckets, is_odd_aspect, nearest_bucket
from training.data.index import DataError


def test_the_buckets_of_256_are_the_measured_ones():
    landscape = {(256, 256), (288, 224), (304, 208), (336, 192)}
    sizes = {(cell.width, cell.height) for cell in cell_buckets(256)}
    assert sizes == landscape | {(height, width) for width, height in landscape}


@given(st.integers(1, 64).map(lambda n: 16 * n))
def test_cells_are_multiples_of_16_within_the_area_and_come_in_both_orientations(resolution):
    cells = cell_buckets(resolution)
    assert Cell(resolution, resolution) in cells
    for cell in cells:
        assert cell.width % 16 == cell.height % 16 == 0
        assert cell.width * cell.height <= resolution**2
        assert cell.width * cell.height > 0.6 * resolution**2
        assert Cell(cell.height, cell.width) in cells
    assert [cell.aspect for cell in cells] == sorted(cell.aspect for cell in cells)


@pytest.mark.parametrize("resolution", [0, -16, 8, 100, 255])
def test_other_resolutions_are_refused(resolution):
    with pytest.raises(DataError, match="multiple of 16"):
        cell_buckets(resolution)


@pytest.mark.parametrize(
    ("size", "cell"),
    [((1000, 1000), (256, 256)), ((4000, 3000), (288, 224)), ((3000, 4000), (224, 288)), ((1500, 1000), (304, 208)),
     ((1920, 1080), (336, 192)), ((1080, 1920), (192, 336)), ((1100, 1000), (256, 256)), ((5000, 1000), (336, 192))],
)  # fmt: skip
def test_an_image_gets_the_nearest_cell(size, cell):
    buckets = cell_buckets(256)
    assert buckets[nearest_bucket(buckets, size[0] / size[1])] == Cell(*cell)


@given(st.floats(0.05, 20))
def test_an_image_and_its_transpose_get_transposed_cells(aspect):
    buckets = cell_buckets(256)
    cell, transposed = buckets[nearest_bucket(buckets, aspect)], buckets[nearest_bucket(buckets, 1 / aspect)]
    assert transposed == Cell(cell.height, cell.width)


def test_the_limits_of_cropping_are_15_percent_and_those_of_the_longest_bucket():
    assert aspects_match(1.0, 1.149) and aspects_match(1.149, 1.0)
    assert not aspects_match(1.0, 1.15) and not aspects_match(1.15, 1.0)
    assert not any(is_odd_aspect(aspect) for aspect in (1.0, 1920 / 1080, 2.0, 0.5))
    assert is_odd_aspect(2.1) and is_odd_aspect(1 / 2.1)
