"""The shipped demo does analogies: floors well below what was measured, on new scenes and unseen photographs."""

import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image

from lorweb_core.encoder import load_image_encoder
from tests.demo_pipeline import psnr
from training.demo.__main__ import main
from training.demo.analogies import draw_analogies, load_demo, score, stack_images
from training.demo.comfyui import write_comfyui_folder
from training.demo.compare import base_answerer, basis_answerer, copy_b
from training.demo.scenes import MODEL_FOLDER, PHOTOS, PLAIN_KINDS, TEST_PHOTOS, TRAINED_KINDS, Edit, edits_of

BASE = MODEL_FOLDER / "base.safetensors"
BASIS = MODEL_FOLDER / "basis.safetensors"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def encoder():
    return load_image_encoder(MODEL_FOLDER / "encoder")


@pytest.fixture(scope="module")
def analogies():
    kinds = [kind for kind in TRAINED_KINDS if kind not in PLAIN_KINDS]
    edits = [edits_of(kinds=[kind], is_held_out=True)[0] for kind in kinds] + [Edit(kind) for kind in PLAIN_KINDS]
    return draw_analogies(edits, per_edit=2, seed=31, photos=TEST_PHOTOS)


def test_everything_shipped_is_below_twelve_megabytes():
    files = [path for folder in (MODEL_FOLDER, PHOTOS) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    assert (MODEL_FOLDER / "README.md").is_file()


def test_the_base_edits_by_code_takes_a_missing_parameter_from_a_prime_and_copies_without(analogies):
    for knows in ("edit", "kind"):
        scores = score(base_answerer(BASE, knows=knows)(analogies), analogies)
        assert fmean(item.whole_db for item in scores) > 30
    assert psnr(base_answerer(BASE, knows="nothing")(analogies), copy_b(analogies)) > 45


def test_the_basis_does_held_out_parameters_from_images_alone(analogies, encoder):
    with torch.no_grad():
        scores = score(basis_answerer(MODEL_FOLDER, BASIS, encoder)(analogies), analogies)
    gains = {}
    for item, copied in zip(scores, score(copy_b(analogies), analogies), strict=True):
        gains.setdefault(item.edit.kind, []).append(item.changed_db - copied.changed_db)
    assert sum(fmean(values) >= 6 for values in gains.values()) >= 6
    assert fmean(item.whole_db for item in scores) > 23


def test_different_analogies_get_different_coefficients(analogies, encoder):
    by_layer = load_demo(encoder=encoder).coefficients(*stack_images(analogies[::4])[:3])["layers"]
    coefficients = torch.cat(list(by_layer.values()), dim=1)
    distances = torch.cdist(coefficients, coefficients) + torch.eye(len(coefficients)) * 9
    assert float(distances.min()) > 0.1


def test_the_sheet_shows_every_kind_with_its_verdict(tmp_path, capsys):
    assert main(["show", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = [line for line in lines if line.endswith(("right", "wrong"))]
    assert Image.open(tmp_path / "demo.png").size == (5 * 102 - 6, len(verdicts) * 102 - 6)
    assert sum(line.endswith("right") for line in verdicts) >= 8
    assert any("Strongest adapters" in line for line in lines)


def test_own_images_are_read_upright_on_white_and_broken_ones_are_named(tmp_path, capsys):
    half = Image.new("RGB", (96, 96), "red")
    half.paste("blue", (0, 0, 96, 48))
    upright, turned, clear = (tmp_path / name for name in ("upright.png", "turned.jpg", "clear.png"))
    half.save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise to be upright
    half.rotate(90).save(turned, exif=exif, quality=95)
    Image.new("RGBA", (120, 96), (0, 0, 0, 0)).save(clear)
    words = ["show", "--out", str(tmp_path), "--a", str(upright), "--a-prime", str(turned), "--b", str(clear)]
    assert main(words) == 0
    image = Image.open(tmp_path / "own.png")
    assert image.size == (4 * 102 - 6, 96) and "Strongest adapters" in capsys.readouterr().out
    columns = [np.asarray(image.crop((x, 0, x + 96, 96)), np.float32) for x in (0, 102, 204)]
    assert np.abs(columns[0] - columns[1]).max() < 30
    assert columns[2].min() == 255
    clear.write_bytes(b"no image")
    assert main(words) == 2
    assert "clear.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", __file__], "demo.png cannot be written"),
        (["--a", "x.png"], "Only 1 of the three images A, A_PRIME and B"),
        (["--a", "", "--a-prime", "x.png", "--b", "x.png"], "Only 2 of the three images"),
    ],
)
def test_errors_of_the_command_name_what_is_wrong(words, message, capsys):
    assert main(["show", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_comfyui_folder_holds_every_file(tmp_path, capsys):
    paths = write_comfyui_folder(tmp_path)
    assert paths["unet"].read_bytes() == BASE.read_bytes()
    assert all(path.exists() for path in paths.values())
    assert main(["comfyui", str(tmp_path / "missing")]) == 2
    assert "missing is not a folder" in capsys.readouterr().err


def test_the_line_for_the_windows_portable_build_runs_in_an_isolated_python(tmp_path):
    """That Python has a ._pth file, which shuts the current folder out as -I does."""
    guide = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'python_embeded\\python\.exe -c "([^"]+)"', guide)
    subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    assert (tmp_path / "lorweb" / "lorweb_demo_basis.safetensors").is_file()
