"""Grids: the reference's pixel by pixel, ours by its laws."""

import json
import math

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lorweb_core.errors import ImageError, SettingsError, ShapeError
from lorweb_core.grid import CROP_TOLERANCE, FITS, build_grid, reference_grid, undo_grid
from lorweb_core.images import from_pil, to_pil
from tests.images import GOLDEN, golden_image, noise, smooth

GRIDS = [case for case in json.loads((GOLDEN / "grid.json").read_text()) if case["max_size"] is None]

#: The reference run resized with Pillow 13; 12 gives up to 3 of 255 levels more or less in 0.7 % of the values.
PILLOW_LEVELS = 0 if int(PIL.__version__.split(".")[0]) >= 13 else 3
sides = st.integers(2, 260)
sizes = st.tuples(sides, sides).filter(lambda size: max(size) <= 100 * min(size))
ordinary_sizes = sizes.filter(lambda size: min(size) >= 16 and max(size) <= 8 * min(size))
megapixels = st.floats(0.05, 0.3)


def build(size_a, size_a_prime, size_b, **options):
    images = [noise(*size, seed=seed) for seed, size in enumerate((size_a, size_a_prime, size_b))]
    return images, *build_grid(*images, **options)


@pytest.mark.parametrize("case", GRIDS, ids=lambda case: case["grid"])
def test_reference_grid_equals_the_reference_run(case):
    images = (golden_image(case[name]) for name in ("a", "a_prime", "b"))
    grid = reference_grid(*images)
    assert list(grid.size) == case["grid_wh"]
    difference = np.abs(np.asarray(grid).astype(int) - np.asarray(golden_image(case["grid"])))
    assert difference.max() <= PILLOW_LEVELS


def test_a_square_b_fills_the_grid_of_one_megapixel_without_padding_or_resampling():
    (a, a_prime, b), grid, layout = build((512, 512), (512, 512), (512, 512))
    assert grid.shape == (1, 1024, 1024, 3)
    assert torch.equal(grid, torch.cat([torch.cat([a, a_prime], 2), torch.cat([b, b], 2)], 1))
    assert torch.equal(undo_grid(grid, layout), b)


def test_a_b_near_the_wanted_size_is_not_resampled():
    (_, _, b), grid, layout = build((500, 520), (500, 520), (500, 520))
    assert (layout.quadrant_height, layout.quadrant_width) == (512, 528)
    assert torch.equal(grid[:, 512:1012, 528:1048], b)
    assert torch.equal(undo_grid(grid, layout, restore_size=False), b)


@given(size_a=sizes, size_a_prime=sizes, size_b=sizes, megapixels=megapixels, fit=st.sampled_from(FITS))
@settings(max_examples=60, deadline=None)
def test_every_grid_has_token_sized_quadrants_of_bs_aspect(size_a, size_a_prime, size_b, megapixels, fit):
    _, grid, layout = build(size_a, size_a_prime, size_b, megapixels=megapixels, fit=fit)
    height, width = layout.content_height, layout.content_width
    assert grid.shape == (1, layout.grid_height, layout.grid_width, 3)
    assert layout.quadrant_height % 16 == layout.quadrant_width % 16 == 0
    assert 0 <= layout.quadrant_height - height < 16
    assert 0 <= layout.quadrant_width - width < 16
    factor = max(height, width) / max(size_b)
    assert abs(height - size_b[0] * factor) <= 1 and abs(width - size_b[1] * factor) <= 1
    wanted = math.sqrt(megapixels * 1024 * 1024 / 4 / (size_b[0] * size_b[1])) * max(size_b)
    assert abs(max(height, width) - wanted) <= 8.01
    assert grid.isfinite().all() and grid.min() >= 0 and grid.max() <= 1


@given(size_b=sizes.filter(lambda size: min(size) >= 8), megapixels=megapixels)
@settings(max_examples=40, deadline=None)
def test_undo_gives_back_b_at_its_size_with_resampling_error_only(size_b, megapixels):
    b = smooth(*size_b)
    grid, layout = build_grid(b, b, b, megapixels=megapixels)
    restored = undo_grid(grid, layout)
    assert restored.shape == b.shape
    is_untouched = (layout.content_height, layout.content_width) == size_b
    assert torch.equal(restored, b) if is_untouched else (restored - b).abs().max() < 0.06


@given(size_b=sizes, megapixels=megapixels, fit=st.sampled_from(FITS))
@settings(max_examples=30, deadline=None)
def test_padding_is_the_repeated_edge_and_is_removed_exactly(size_b, megapixels, fit):
    _, grid, layout = build((40, 70), (33, 33), size_b, megapixels=megapixels, fit=fit)
    height, width = layout.content_height, layout.content_width
    content = undo_grid(grid, layout, restore_size=False)
    quadrant = grid[:, layout.quadrant_height :, layout.quadrant_width :]
    assert content.shape == (1, height, width, 3)
    assert torch.equal(quadrant[:, :height, :width], content)
    assert torch.equal(quadrant[:, height:, :width], content[:, -1:].expand_as(quadrant[:, height:, :width]))
    assert torch.equal(quadrant[:, :, width:], quadrant[:, :, width - 1 : width].expand_as(quadrant[:, :, width:]))


@given(size_a=sizes, size_a_prime=sizes, size_b=sizes, fit=st.sampled_from(FITS))
@settings(max_examples=60, deadline=None)
def test_a_layout_lies_inside_its_images_and_places_a_and_a_prime_of_one_size_alike(size_a, size_a_prime, size_b, fit):
    _, _, layout = build(size_a, size_a_prime, size_b, megapixels=0.05, fit=fit)
    content = (layout.content_height, layout.content_width)
    for placement, size in ((layout.image_a, size_a), (layout.image_a_prime, size_a_prime)):
        for box, frame in ((placement.source, size), (placement.target, content)):
            assert min(box.top, box.left) >= 0 and min(box.height, box.width) >= 1
            assert box.top + box.height <= frame[0] and box.left + box.width <= frame[1]
    _, _, layout = build(size_a, size_a, size_b, megapixels=0.05, fit=fit)
    assert layout.image_a == layout.image_a_prime


@given(size_a=ordinary_sizes, size_b=ordinary_sizes)
@settings(max_examples=60, deadline=None)
def test_pad_and_crop_keep_the_aspect_of_a(size_a, size_b):
    for fit in ("pad", "crop"):
        _, _, layout = build(size_a, size_a, size_b, megapixels=0.05, fit=fit)
        source, target = layout.image_a
        # one factor for both sides, up to the rounding of all four lengths to whole pixels
        slack = (0.51 / source.height + 0.51 / source.width + 0.51 / target.height + 0.51 / target.width) * 1.1
        assert abs(math.log(target.height / source.height * source.width / target.width)) <= slack
        whole = source[2:] == size_a if fit == "pad" else target[2:] == (layout.content_height, layout.content_width)
        aspect = size_a[0] / size_a[1] * layout.content_width / layout.content_height
        assert whole or max(aspect, 1 / aspect) < 1 + CROP_TOLERANCE


@pytest.mark.parametrize("width, is_cropped", [(114, True), (116, False), (88, True), (86, False)])
def test_aspects_less_than_15_percent_apart_are_cropped_and_others_padded(width, is_cropped):
    _, _, layout = build((100, width), (100, width), (256, 256), megapixels=0.25)
    source, target = layout.image_a
    assert (target == (0, 0, 256, 256)) == is_cropped
    assert (source == (0, 0, 100, width)) != is_cropped


def test_padding_of_a_wide_a_repeats_its_upper_and_lower_rows():
    a, b = noise(64, 128), noise(128, 128, seed=1)
    grid, layout = build_grid(a, a, b, megapixels=0.0625, fit="pad")
    assert layout.image_a.target == (32, 0, 64, 128)
    quadrant = grid[:, :128, :128]
    assert torch.equal(quadrant[:, 32:96], a)
    assert torch.equal(quadrant[:, :32], a[:, :1].expand(1, 32, 128, 3))
    assert torch.equal(quadrant[:, 96:], a[:, -1:].expand(1, 32, 128, 3))


def test_crop_takes_the_centre_of_a_and_stretch_takes_all_of_it():
    a, b = noise(64, 128), noise(64, 64, seed=1)
    cropped, layout = build_grid(a, a, b, megapixels=0.05, fit="crop")
    assert layout.image_a.source == (0, 32, 64, 64)
    stretched, layout = build_grid(a, a, b, megapixels=0.05, fit="stretch")
    assert layout.image_a.source == (0, 0, 64, 128)
    assert layout.image_a.target == (0, 0, layout.content_height, layout.content_width)
    assert not torch.equal(cropped, stretched)


def test_an_a_prime_of_another_size_lies_where_the_same_image_in_as_size_would():
    a = smooth(96, 144)
    grid, layout = build_grid(a, smooth(48, 72), smooth(120, 120), megapixels=0.2)
    half = layout.quadrant_width
    assert layout.image_a.target == layout.image_a_prime.target
    difference = grid[:, : layout.quadrant_height, :half] - grid[:, : layout.quadrant_height, half:]
    assert difference.abs().max() < 0.02


def test_an_a_prime_of_another_aspect_is_fitted_to_a_first():
    _, _, layout = build((100, 100), (100, 200), (100, 100), megapixels=0.05, fit="pad")
    assert layout.image_a.target.height == layout.content_height
    assert layout.image_a_prime.target.height == round(layout.content_height / 2)
    assert layout.image_a_prime.target.width == layout.content_width


@pytest.mark.parametrize("pairs", [1, 3])
def test_one_pair_for_all_b_or_one_per_b_gives_the_grids_of_single_calls(pairs):
    a, a_prime = noise(50, 40, batch=pairs), noise(50, 40, batch=pairs, seed=1)
    b = noise(60, 44, batch=3, seed=2)
    grids, layout = build_grid(a, a_prime, b, megapixels=0.05)
    for index in range(3):
        pair = (images[index % pairs][None] for images in (a, a_prime))
        grid, single = build_grid(*pair, b[index : index + 1], megapixels=0.05)
        assert single == layout
        assert torch.equal(grids[index : index + 1], grid)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_grid_has_the_dtype_of_b(dtype):
    images = [noise(40, 56, seed=seed).to(dtype) for seed in range(3)]
    grid, layout = build_grid(*images, megapixels=0.05)
    assert grid.dtype == dtype
    assert undo_grid(grid, layout).dtype == dtype


@pytest.mark.parametrize("size", [(300, 200), (61, 90)])
def test_resampling_is_pils_bicubic_without_its_8_bit_rounding(size):
    b = noise(*size) * 0.5 + 0.25  # no overshoot beyond 0–1, which PIL would cut between its two passes
    b = torch.round(b * 255) / 255
    grid, layout = build_grid(b, b, b, megapixels=0.1)
    width, height = layout.content_width, layout.content_height
    resized = from_pil(to_pil(b[0]).resize((width, height), Image.Resampling.BICUBIC))
    assert (height, width) != size
    assert (grid[0, :height, :width] - resized).abs().max() < 1.6 / 255  # PIL rounds after each pass


def test_the_inputs_are_left_as_they_were():
    images = [noise(40, 56, seed=seed) for seed in range(3)]
    copies = [image.clone() for image in images]
    grid, layout = build_grid(*images, megapixels=0.05)
    undo_grid(grid, layout)
    assert all(torch.equal(image, copy) for image, copy in zip(images, copies, strict=True))


@pytest.mark.parametrize("factor", [2, 3])
def test_a_grid_that_was_enlarged_by_a_whole_factor_is_undone_exactly(factor):
    _, grid, layout = build((40, 70), (40, 70), (90, 61), megapixels=0.05)
    enlarged = grid.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    content = undo_grid(grid, layout, restore_size=False)
    expected = content.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    assert torch.equal(undo_grid(enlarged, layout, restore_size=False), expected)
    assert undo_grid(enlarged, layout).shape == (1, 90, 61, 3)


@given(size_b=sizes.filter(lambda size: min(size) >= 8), scale=st.floats(0.3, 2.5))
@settings(max_examples=40, deadline=None)
def test_a_grid_that_the_host_rescaled_is_still_undone_to_bs_size(size_b, scale):
    b = smooth(*size_b)
    grid, layout = build_grid(b, b, b, megapixels=0.06)
    size = tuple(round(side * scale) for side in grid.shape[1:3])
    if abs(size[0] / grid.shape[1] * grid.shape[2] / size[1] - 1) > 0.0099:
        return  # a strip so thin that rounding its sides changes the aspect
    rescaled = torch.nn.functional.interpolate(grid.movedim(-1, 1), size, mode="area").movedim(1, -1)
    restored = undo_grid(rescaled, layout)
    assert restored.shape == b.shape
    # rounding may shift the content's edges by a pixel of b or of the rescaled grid; the other quadrants stay out
    steepest = 0.8 / (min(min(size_b), layout.content_height * scale, layout.content_width * scale) - 1)
    assert (restored - b).abs().max() < 0.02 + steepest


@pytest.mark.parametrize("size", [(100, 103), (512, 1024), (1024, 1000)])
def test_an_image_of_another_aspect_is_no_grid_of_this_layout(size):
    _, _, layout = build((64, 64), (64, 64), (512, 512))
    with pytest.raises(ShapeError, match=r"is \d+×\d+ px, but .* 1024×1024 px or a multiple. Connect"):
        undo_grid(noise(*size), layout)


def test_bad_options_are_refused():
    image = noise(16, 16)
    for value in (0.009, 4.1, float("nan"), -1.0):
        with pytest.raises(SettingsError, match=rf"megapixels is {value}, but must be between 0.01 and 4.0"):
            build_grid(image, image, image, megapixels=value)
    with pytest.raises(SettingsError, match=r"fit is 'fill'. Known are pad, crop, stretch"):
        build_grid(image, image, image, fit="fill")


def test_bad_images_are_refused_by_name():
    image = noise(16, 16)
    with pytest.raises(ImageError, match="image_a_prime has 2 channels"):
        build_grid(image, noise(16, 16, channels=2), image)
    _, layout = build_grid(image, image, image)
    with pytest.raises(ImageError, match="image holds NaN"):
        undo_grid(image * float("nan"), layout)
