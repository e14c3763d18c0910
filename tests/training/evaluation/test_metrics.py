"""Metrics against slow or known results, and what happens where a number cannot be had."""

import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lorweb_core.errors import LoRWeBError
from lorweb_core.images import from_pil
from tests.training.evaluation.example_sets import add_method, write_evaluation
from training.evaluation.folder import EvaluationError
from training.evaluation.lpips import load_lpips
from training.evaluation.metrics import (
    METRICS,
    NOT_MEASURED,
    clip_direction,
    gmsd,
    load_meter,
    measure_all,
    psnr,
    read_number,
    ssim,
)


def images(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


#: network → (in, out, kernel) of its convolutions, and their places in torchvision's `features`.
NETWORKS = {
    "alex": (
        [(3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)],
        [0, 3, 6, 8, 10], [64, 192, 384, 256, 256],
    ),
    "vgg": (
        [(3, 64, 3), (64, 64, 3), (64, 128, 3), (128, 128, 3), (128, 256, 3), (256, 256, 3), (256, 256, 3),
         (256, 512, 3), *[(512, 512, 3)] * 5],
        [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28], [64, 128, 256, 512, 512],
    ),
}  # fmt: skip


def write_network(folder, name, *, seed=0):
    """A random network with torchvision's names and random heads with the lpips package's; returns both files."""
    generator = torch.Generator().manual_seed(seed)
    sizes, places, heads = NETWORKS[name]
    weights = {}
    for (wide_in, wide_out, kernel), place in zip(sizes, places, strict=True):
        weight = torch.randn(wide_out, wide_in, kernel, kernel, generator=generator)
        weights[f"features.{place}.weight"] = (2 / (wide_in * kernel * kernel)) ** 0.5 * weight
        weights[f"features.{place}.bias"] = 0.1 * torch.randn(wide_out, generator=generator)
    shapes = {f"lin{i}.model.1.weight": (1, size, 1, 1) for i, size in enumerate(heads)}
    files = folder / f"{name}-backbone.pth", folder / f"{name}.pth"
    torch.save(weights, files[0])
    torch.save({key: torch.rand(*shape, generator=generator) for key, shape in shapes.items()}, files[1])
    return files


@pytest.mark.parametrize(
    ("name", "expected"),
    [("alex", [0.835114, 0.818437]), pytest.param("vgg", [0.702192, 0.702890], marks=pytest.mark.slow)],
)
def test_lpips_equals_the_package_is_symmetric_per_image_and_zero_for_equal_images(tmp_path, name, expected):
    """The numbers are those of lpips 0.1.4 with these weights, computed once with its own forward pass."""
    lpips = load_lpips(*write_network(tmp_path, name, seed=3))
    first, second = images(1, 2, 64, 72, 3), images(2, 2, 64, 72, 3)
    distances = lpips.distance(first, second)
    assert distances.tolist() == pytest.approx(expected, rel=1e-4)
    assert lpips.name == name
    assert torch.equal(lpips.distance(second, first), distances)
    assert torch.equal(lpips.distance(first, first), torch.zeros(2))
    assert torch.allclose(lpips.distance(first[1:], second[1:]), distances[1:], rtol=1e-5)


def test_lpips_backbones_may_be_safetensors_and_bad_ones_are_errors(tmp_path):
    backbone, heads = write_network(tmp_path, "alex")
    save_file(torch.load(backbone, weights_only=True), tmp_path / "alex.safetensors")
    first, second = images(1, 1, 40, 40, 3), images(2, 1, 40, 40, 3)
    distance = load_lpips(backbone, heads).distance(first, second)
    assert torch.equal(load_lpips(tmp_path / "alex.safetensors", heads).distance(first, second), distance)
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    for files, message in (
        ((heads, heads), "AlexNet or VGG-16"),
        ((tmp_path / "nothing.pth", heads), "lpips-backbone"),
        ((tmp_path / "text.pth", heads), "cannot be read as a file of weights"),
        ((backbone, backbone), "are not one alex network"),
    ):
        with pytest.raises(EvaluationError, match=message):
            load_lpips(*files)


def test_ssim_equals_the_formula_written_out():
    first, second = images(3, 13, 14, 3), images(4, 13, 14, 3)
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
    assert "at least 11 px" in ssim(first[:10], second[:10])


def test_psnr_is_ten_times_the_logarithm_and_clip_direction_the_cosine_of_both_changes():
    dark = torch.zeros(8, 8, 3)
    assert psnr(dark, dark + 0.1) == pytest.approx(20.0, abs=1e-4)
    assert psnr(dark, dark) == pytest.approx(10 * math.log10(12 * 255**2)), "ends at rounding"
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for change, cosine in ((3 * right, 1.0), (-right, -1.0), (up, 0.0)):
        assert clip_direction(a, a + right, b, b + change) == pytest.approx(cosine)
    assert "result equals b" in clip_direction(a, a + right, b, b)
    assert "a′ equals a" in clip_direction(a, a, b, b + right)


def test_gmsd_equals_the_formula_written_out():
    first, second = images(5, 12, 14, 3), images(6, 12, 14, 3)

    def gradients(image):
        gray = image.double().numpy() @ np.array([0.299, 0.587, 0.114])
        half = gray.reshape(6, 2, 7, 2).mean((1, 3))
        found = np.zeros((4, 5))
        for top in range(4):
            for left in range(5):
                cell = half[top : top + 3, left : left + 3]
                across, down = cell[:, 0].sum() - cell[:, 2].sum(), cell[0].sum() - cell[2].sum()
                found[top, left] = math.hypot(across / 3, down / 3)
        return found

    one, two = gradients(first), gradients(second)
    c = 170 / 255**2  # the paper's constant is for values 0-255
    assert gmsd(first, second) == pytest.approx(((2 * one * two + c) / (one**2 + two**2 + c)).std(), abs=1e-9)
    assert gmsd(first, first) == 0.0
    assert gmsd(first, second) == gmsd(second, first)
    assert "at least 8 px" in gmsd(first[:7], second[:7])


def change_weights(path):
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    save_file(tensors | {name: tensors[name].flip(0).contiguous()}, path, metadata={"format": "pt"})


def test_copying_b_has_known_numbers_and_no_direction(tmp_path, tiny_parts):
    folder, samples = write_evaluation(tmp_path, ("gray", 128))
    backbone, heads = write_network(tmp_path, "alex")
    meter = load_meter(lpips_backbone=backbone, lpips_heads=heads, clip_encoder=str(tiny_parts / "encoder"))
    measure_all(folder, meter, ["copy-b", "copy-a-prime", "gray"], samples)
    for sample in samples:
        numbers = {name: read_number(folder, "copy-b", sample, name) for name in METRICS}
        b, truth = (from_pil(Image.open(p)) for p in (folder.inputs(sample.id) / "b.png", folder.truth(sample.id)))
        assert (numbers["lpips"], numbers["gmsd"], numbers["clip_direction"]) == (0.0, 0.0, "the result equals b")
        assert numbers["psnr"] == pytest.approx(-10 * math.log10(float(((b - truth) ** 2).mean())), abs=1e-4)
        assert numbers["ssim"] == ssim(truth, b)
        assert read_number(folder, "gray", sample, "lpips") > 0
        assert read_number(folder, "gray", sample, "gmsd") > 0
        assert -1 <= read_number(folder, "gray", sample, "clip_direction") <= 1


def test_numbers_are_made_again_for_other_images_or_weights_and_kept_without_weights(tmp_path, tiny_parts):
    folder, samples = write_evaluation(tmp_path, ("gray", 128), tasks=("one",), pairs=2)
    encoder = shutil.copytree(tiny_parts / "encoder", tmp_path / "encoder")
    elsewhere = shutil.copytree(tiny_parts / "encoder", tmp_path / "elsewhere" / "encoder")

    def numbers(encoder, method="gray"):
        meter = load_meter(lpips_backbone=None, clip_encoder=encoder and str(encoder))
        measure_all(folder, meter, [method], samples)
        return [read_number(folder, method, samples[0], name) for name in ("clip_direction", "gmsd", "psnr")]

    first = numbers(encoder)
    lines = (folder.root / "measurements.jsonl").read_bytes()
    assert numbers(elsewhere) == first
    assert numbers(None) == first
    assert (folder.root / "measurements.jsonl").read_bytes() == lines, "nothing is measured twice"
    change_weights(elsewhere / "model.safetensors")
    second = numbers(elsewhere)
    assert second[0] != first[0]
    assert second[1:] == first[1:]
    add_method(tmp_path, folder, samples[:1], "gray", gray=200)
    assert read_number(folder, "gray", samples[0], "gmsd") == NOT_MEASURED, "not the number of another image"
    assert numbers(elsewhere)[1] != first[1]


def test_metrics_without_weights_are_logged_and_named_weights_must_load(tmp_path, caplog):
    nowhere = tmp_path / "nowhere"
    meter = load_meter(lpips_backbone=None, clip_encoder=str(nowhere))
    assert meter.metrics == ["gmsd", "psnr", "ssim"]
    assert "LPIPS is not measured: it needs --lpips-backbone" in caplog.text
    assert "CLIP direction is not measured" in caplog.text
    with pytest.raises(LoRWeBError, match="nowhere"):
        load_meter(lpips_backbone=None, clip_encoder=str(nowhere), is_encoder_required=True)
    with pytest.raises(EvaluationError, match="nowhere"):
        load_meter(lpips_backbone=nowhere, clip_encoder=None)
