"""IMAGE tensors at the border: every unusable one is refused with a remedy, every usable one becomes RGB."""

import pytest
import torch

from lorweb_core.errors import ImageError, ShapeError
from lorweb_core.images import require_analogy, require_images, to_8bit
from tests.images import noise

BAD_IMAGES = {
    "two channels": (noise(8, 8, channels=2), "has 2 channels, not 3.*Convert"),
    "five channels": (noise(8, 8, channels=5), "has 5 channels"),
    "channels first": (noise(8, 3).movedim(-1, 1)[..., :2], "2 channels.*channels come last"),
    "one pixel high": (noise(1, 8), "8×1 px.*at least 2 px"),
    "one pixel wide": (noise(8, 1), "1×8 px.*at least 2 px"),
    "one pixel": (noise(1, 1), "1×1 px"),
    "hair-thin": (noise(2, 300), "300×2 px.*100 times.*Crop"),
    "empty batch": (noise(8, 8)[:0], "empty batch"),
    "no batch": (noise(8, 8)[0], r"shape \[8, 8, 3\], not \[B, H, W, C\].*batch dimension"),
    "a list": ([noise(8, 8)], r"is a list, not \[B, H, W, C\]"),
    "8-bit": ((noise(8, 8) * 255).to(torch.uint8), "torch.uint8.*Divide"),
    "values to 255": (noise(8, 8) * 255, "values .* not 0–1.*Divide"),
    "values from -1": (noise(8, 8) * 2 - 1, "values -"),
    "NaN": (torch.full((1, 8, 8, 3), float("nan")), "NaN"),
    "one NaN among numbers": (torch.where(noise(8, 8) < 0.01, float("nan"), 0.5), "NaN"),
    "infinity": (torch.full((1, 8, 8, 3), float("inf")), "infinite"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_unusable_images_are_refused_with_their_name_and_a_remedy(case):
    images, message = BAD_IMAGES[case]
    with pytest.raises(ImageError, match=f"image_b .*{message}"):
        require_images("image_b", images)


def test_gray_becomes_rgb_by_repeating_its_channel():
    gray = noise(6, 5, channels=1)
    assert torch.equal(require_images("image_a", gray), gray.repeat(1, 1, 1, 3))


def test_alpha_is_composed_on_white_as_in_files():
    rgba = torch.tensor([[0.2, 0.4, 0.6, 1.0], [0.2, 0.4, 0.6, 0.0], [0.0, 0.4, 1.0, 0.5]]).expand(1, 2, 3, 4)
    expected = torch.tensor([[0.2, 0.4, 0.6], [1.0, 1.0, 1.0], [0.5, 0.7, 1.0]])
    torch.testing.assert_close(require_images("image_a", rgba)[0, 1], expected)


def test_a_little_overshoot_of_a_resampler_is_accepted_and_clamped_in_8_bit():
    images = torch.tensor([-0.1, 0.5, 1.2]).expand(1, 2, 2, 3)
    assert to_8bit(require_images("image_a", images)[0])[0, 0].tolist() == [0, 128, 255]


def test_values_on_the_8_bit_grid_survive_the_way_there_and_back():
    values = (torch.arange(256) / 255).reshape(16, 16, 1).expand(16, 16, 3)
    assert to_8bit(values)[..., 0].flatten().tolist() == list(range(256))


@pytest.mark.parametrize("batches", [(2, 1, 1), (1, 2, 1), (2, 2, 3), (1, 2, 3), (3, 3, 1)])
def test_batches_that_do_not_pair_are_refused(batches):
    with pytest.raises(ShapeError, match="batches of {}, {} and {} images. Use one pair".format(*batches)):
        require_analogy(*(noise(4, 4, batch=batch) for batch in batches))


@pytest.mark.parametrize("batches", [(1, 1, 1), (1, 1, 3), (3, 3, 3), (1, 3, 3), (3, 1, 3)])
def test_one_pair_for_all_b_and_one_pair_per_b_are_accepted(batches):
    analogy = require_analogy(*(noise(4, 4, batch=batch) for batch in batches))
    assert tuple(map(len, analogy)) == batches
