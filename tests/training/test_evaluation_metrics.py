"""Metrics against slow or known results, and what happens where a number cannot be had."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from training.evaluation.errors import EvaluationError
from training.evaluation.lpips import load_lpips
from training.evaluation.measuring import load_meter
from training.evaluation.metrics import NoNumber, clip_direction, psnr, ssim, to_size


def pictures(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


#: network → (in, out, kernel) of its convolutions, and their places in torchvision's `features`.
NETWORKS = {
    "alex": (
        [(3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)],
        [0, 3, 6, 8, 10],
        [64, 192, 384, 256, 256],
    ),
    "vgg": (
        [
            *[(3, 64, 3), (64, 64, 3), (64, 128, 3), (128, 128, 3), (128, 256, 3), (256, 256, 3), (256, 256, 3)],
            *[(256, 512, 3), *[(512, 512, 3)] * 5],
        ],
        [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
        [64, 128, 256, 512, 512],
    ),
}


def write_network(folder, name, *, seed=0):
    """A random network with torchvision's names and random heads with the lpips package's; returns both files."""
    generator = torch.Generator().manual_seed(seed)
    sizes, places, heads = NETWORKS[name]
    weights = {}
    for (wide_in, wide_out, kernel), place in zip(sizes, places, strict=True):
        spread = (2 / (wide_in * kernel * kernel)) ** 0.5
        weights[f"features.{place}.weight"] = spread * torch.randn(
            wide_out, wide_in, kernel, kernel, generator=generator
        )
        weights[f"features.{place}.bias"] = 0.1 * torch.randn(wide_out, generator=generator)
    head_weights = {
        f"lin{i}.model.1.weight": torch.rand(1, size, 1, 1, generator=generator) for i, size in enumerate(heads)
    }
    torch.save(weights, folder / f"{name}-backbone.pth")
    torch.save(head_weights, folder / f"{name}.pth")
    return folder / f"{name}-backbone.pth", folder / f"{name}.pth"


@pytest.mark.parametrize("name", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_lpips_is_zero_for_equal_pictures_symmetric_and_per_picture(tmp_path, name):
    lpips = load_lpips(*write_network(tmp_path, name))
    first, second = pictures(1, 2, 40, 48, 3), pictures(2, 2, 40, 48, 3)
    assert lpips.name == name
    assert torch.equal(lpips.distance(first, first), torch.zeros(2))
    there, back = lpips.distance(first, second), lpips.distance(second, first)
    assert torch.equal(there, back)
    assert (there > 0).all()
    alone = lpips.distance(first[1:], second[1:])
    assert torch.allclose(there[1:], alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alex", [0.835114, 0.818437]),
        pytest.param("vgg", [0.702192, 0.702890], marks=pytest.mark.slow),
    ],
)
def test_lpips_equals_the_lpips_package(tmp_path, name, expected):
    """The numbers are those of lpips 0.1.4 with these weights, computed once with its own forward pass."""
    lpips = load_lpips(*write_network(tmp_path, name, seed=3))
    distances = lpips.distance(pictures(1, 2, 64, 72, 3), pictures(2, 2, 64, 72, 3))
    assert distances.tolist() == pytest.approx(expected, rel=1e-4)


def test_lpips_backbones_may_be_safetensors_and_bad_ones_are_told(tmp_path):
    backbone, heads = write_network(tmp_path, "alex")
    save_file(torch.load(backbone, weights_only=True), tmp_path / "alex.safetensors")
    first, second = pictures(1, 1, 40, 40, 3), pictures(2, 1, 40, 40, 3)
    distance = load_lpips(backbone, heads).distance(first, second)
    assert torch.equal(load_lpips(tmp_path / "alex.safetensors", heads).distance(first, second), distance)

    with pytest.raises(EvaluationError, match="AlexNet or VGG-16"):
        load_lpips(heads, heads)
    with pytest.raises(EvaluationError, match="lpips-backbone"):
        load_lpips(tmp_path / "nothing.pth", heads)
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    with pytest.raises(EvaluationError, match="a file of weights"):
        load_lpips(tmp_path / "text.pth", heads)
    with pytest.raises(EvaluationError, match="one alex network"):
        load_lpips(backbone, backbone)


def test_psnr_is_ten_times_the_logarithm_and_ends_at_rounding():
    dark = torch.zeros(8, 8, 3)
    assert psnr(dark, dark + 0.1) == pytest.approx(20.0, abs=1e-4)
    assert psnr(dark, dark) == pytest.approx(10 * math.log10(12 * 255**2))


def test_ssim_equals_the_formula_written_out(tmp_path):
    first, second = pictures(3, 13, 14, 3), pictures(4, 13, 14, 3)
    window = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / np.outer(window, window).sum()
    values = []
    for channel in range(3):
        for top in range(3):
            for left in range(4):
                x = first[top : top + 11, left : left + 11, channel].double().numpy()
                y = second[top : top + 11, left : left + 11, channel].double().numpy()
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
                covariance = (window * (x - mean_x) * (y - mean_y)).sum()
                above = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
                values.append(above / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4)))
    assert ssim(first, second) == pytest.approx(np.mean(values), abs=1e-9)
    assert ssim(first, first) == pytest.approx(1.0)
    assert isinstance(ssim(first[:10], second[:10]), NoNumber)


def test_clip_direction_is_the_cosine_of_both_changes():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert clip_direction(a, a + right, b, b + 3 * right) == pytest.approx(1.0)
    assert clip_direction(a, a + right, b, b - right) == pytest.approx(-1.0)
    assert clip_direction(a, a + right, b, b + up) == pytest.approx(0.0)


def test_directions_without_length_have_no_cosine():
    a, b, change = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    assert "result equals b" in clip_direction(a, a + change, b, b).reason
    assert "a′ equals a" in clip_direction(a, a, b, b + change).reason


def test_pictures_of_other_sizes_are_brought_to_b():
    picture = Image.new("RGB", (40, 30), "red")
    assert to_size(picture, (40, 30)) is picture
    assert to_size(picture, (13, 17)).size == (13, 17)


def test_a_meter_says_what_it_lacks(tmp_path, caplog):
    meter = load_meter(lpips_backbone=None, lpips_heads=None, clip_encoder=str(tmp_path / "nowhere"))
    assert "give --lpips-backbone" in meter.lpips.reason
    assert "image encoder" in meter.encoder.reason
    assert caplog.text.count("earlier numbers stay, others are null") == 2
