"""The shipped demo model does analogies: floors well below what was measured, on new scenes and unseen photographs."""

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
from lorweb_core.errors import ImageError
from training.demo.analogies import GUIDANCE, STEPS, draw_analogies, load_demo, null_prompt, score
from training.demo.base import edit_code
from training.demo.codec import psnr
from training.demo.measure import base_method, basis_method, copy_b
from training.demo.scenes import (
    MODEL_FOLDER,
    PICTURES,
    PLAIN_KINDS,
    TEST_PHOTOS,
    TRAINED_KINDS,
    Edit,
    edits_of,
    to_image,
)
from training.demo.show import main, show_bundled, show_own
from training.demo.tiny_flux import load_pipeline, write_comfyui_folder

BASE = MODEL_FOLDER / "base.safetensors"
BASIS = MODEL_FOLDER / "basis.safetensors"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def encoder():
    return load_image_encoder(MODEL_FOLDER / "encoder")


@pytest.fixture(scope="module")
def analogies():
    held_out = [edits_of(kinds=[kind], is_held_out=True)[:1] for kind in TRAINED_KINDS if kind not in PLAIN_KINDS]
    edits = [edit for edits in held_out for edit in edits] + [Edit(kind) for kind in PLAIN_KINDS]
    return draw_analogies(edits, per_edit=2, seed=31, photos=TEST_PHOTOS)


def _gain_by_kind(scores, analogies):
    gains = {}
    for got, copied in zip(scores, score(copy_b(analogies), analogies), strict=True):
        gains.setdefault(got.edit.kind, []).append(got.changed_db - copied.changed_db)
    return {kind: fmean(values) for kind, values in gains.items()}


def test_everything_shipped_is_below_twelve_megabytes():
    files = [path for folder in (MODEL_FOLDER, PICTURES) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    assert (MODEL_FOLDER / "README.md").is_file()


def test_the_base_edits_by_code_and_copies_without(analogies):
    coded = score(base_method(BASE, told="edit")(analogies), analogies)
    assert fmean(item.whole_db for item in coded) > 30
    untold = base_method(BASE, told="nothing")(analogies)
    assert psnr(untold, copy_b(analogies)) > 45


def test_the_basis_does_held_out_parameters_from_pictures_alone(analogies, encoder):
    with torch.no_grad():
        scores = score(basis_method(MODEL_FOLDER, BASIS, encoder)(analogies), analogies)
    gains = _gain_by_kind(scores, analogies)
    assert sum(gain >= 6 for gain in gains.values()) >= 6
    assert fmean(item.whole_db for item in scores) > 23


def test_different_analogies_get_different_coefficients(analogies, encoder):
    pictures = torch.from_numpy(np.stack([analogy.pictures[:3] for analogy in analogies[::4]]))
    by_layer = load_demo(encoder=encoder).coefficients(*pictures.unbind(1))["layers"]
    coefficients = torch.cat(list(by_layer.values()), dim=1)
    distances = torch.cdist(coefficients, coefficients) + torch.eye(len(coefficients)) * 9
    assert float(distances.min()) > 0.1


def test_the_stock_kontext_pipeline_edits_by_code():
    (analogy,) = draw_analogies([Edit("corner", hue=8)], per_edit=1, seed=3, photos=TEST_PHOTOS)
    a, a_prime, b, wanted = analogy.pictures
    grid = np.concatenate([np.concatenate([a, a_prime], 1), np.concatenate([b, b], 1)], 0)
    picture = Image.fromarray(np.round(grid * 255).astype(np.uint8)).resize((192, 192), Image.Resampling.NEAREST)
    result = load_pipeline(BASE)(
        image=picture, height=192, width=192, max_area=192 * 192, _auto_resize=False, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, prompt_embeds=null_prompt(1)[0], pooled_prompt_embeds=edit_code(analogy.edit)[None],
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    answer = np.asarray(result.crop((96, 96, 192, 192)), np.float32) / 255
    assert psnr(torch.from_numpy(answer), torch.from_numpy(np.asarray(to_image(wanted), np.float32) / 255)) > 30


def test_the_sheet_shows_every_kind_with_its_verdict():
    picture, lines = show_bundled(load_demo())
    verdicts = [line for line in lines if line.endswith(("right", "wrong"))]
    assert picture.size == (5 * 102 - 6, len(verdicts) * 102 - 6)
    assert sum(line.endswith("right") for line in verdicts) >= 8
    assert any("Strongest adapters" in line for line in lines)


def test_pictures_of_ones_own_are_answered_and_broken_ones_are_named(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("a", "a_prime", "b")]
    for path, color in zip(paths, ("white", "gray", "white"), strict=True):
        Image.new("RGB", (120, 96), color).save(path)
    model = load_demo()
    picture, lines = show_own(model, *paths)
    assert picture.size == (4 * 102 - 6, 96) and "Strongest adapters" in lines[1]
    paths[1].write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a_prime\.png"):
        show_own(model, *paths)


def test_own_pictures_are_read_upright_and_transparent_ones_on_white(tmp_path):
    half = Image.new("RGB", (96, 96), "red")
    half.paste("blue", (0, 0, 96, 48))
    upright, turned, clear = (tmp_path / name for name in ("upright.png", "turned.jpg", "clear.png"))
    half.save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise to be upright
    half.rotate(90).save(turned, exif=exif, quality=95)
    Image.new("RGBA", (96, 96), (0, 0, 0, 0)).save(clear)
    picture, _ = show_own(load_demo(), upright, turned, clear)
    columns = [np.asarray(picture.crop((x, 0, x + 96, 96)), np.float32) for x in (0, 102, 204)]
    assert np.abs(columns[0] - columns[1]).max() < 30
    assert columns[2].min() == 255


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "out").write_text("in the way")
    monkeypatch.setattr("sys.argv", ["show", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "Choose another folder with --out" in capsys.readouterr().err


def test_told_the_kind_alone_the_base_takes_the_parameter_from_a_prime(analogies):
    scores = score(base_method(BASE, told="kind")(analogies), analogies)
    assert fmean(item.whole_db for item in scores) > 30


@pytest.mark.parametrize("words", [["--a", "x.png"], ["--a", "", "--a-prime", "", "--b", "x.png"]])
def test_one_picture_of_three_is_refused(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["show", *words])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "expected all three of A, A_PRIME and B" in capsys.readouterr().err


def test_the_comfyui_folder_holds_every_file(tmp_path):
    places = write_comfyui_folder(tmp_path)
    assert places["unet"].read_bytes() == BASE.read_bytes()
    assert all(place.exists() for place in places.values())


def test_the_line_for_the_windows_portable_build_runs_in_an_isolated_python(tmp_path):
    """That Python has a ._pth file, which shuts the current folder out as -I does."""
    readme = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'python_embeded\\python\.exe -c "([^"]+)"', readme)
    subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    assert (tmp_path / "lorweb" / "lorweb_demo_basis.safetensors").is_file()
