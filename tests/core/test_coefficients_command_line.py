"""blend, adjust, plot and mix on coefficient files: the same as the functions, and a short message for every error."""

import sys

import numpy as np
import pytest
from PIL import Image

from lorweb_core.adjustment import adjust_coefficients
from lorweb_core.blending import blend_coefficients, sweep_analogies
from lorweb_core.checkpoint import load_basis
from lorweb_core.coefficients_file import load_coefficients, save_coefficients
from tests.basis_files import write_reference
from tests.core.test_command_line import assert_refused
from tests.full_disk import disk_full_after
from tests.images import smooth
from tests.synthetic import assert_same_coefficients, make_coefficients


@pytest.fixture
def basis_file(tmp_path):
    return write_reference(tmp_path / "basis.safetensors")


@pytest.fixture
def files(tmp_path, basis_file):
    """Three coefficient files of one basis, two mixes each."""
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        save_coefficients(path, make_coefficients(seed, basis=load_basis(basis_file)), note=f"note {seed}")
    return paths


def load(path):
    return load_coefficients(path).coefficients


def blend(*weights, method="mean"):
    return lambda parts: blend_coefficients(parts, weights, method=method)


def sweep(start, end, *, steps):
    return lambda parts: sweep_analogies(parts, start, end, steps=steps)


#: How many files, options, what they stand for, part of the report.
BLENDS = [
    (3, "--weight 1 --weight 0.5 --weight -0.25", blend(1, 0.5, -0.25), "-0.25 × 2.safetensors"),
    (3, "--position 1.5", blend(0, 0.5, 0.5), "2 mixes of basis"),
    (2, "--weight 1 --weight -1 --method sum", blend(1, -1, method="sum"), "2 mixes of basis"),
    (2, "--weight -1e-1 --weight 1", blend(-0.1, 1), "-0.1 × 0.safetensors"),
    (2, "--position -1e-1", blend(1.1, -0.1), "2 mixes of basis"),
    (2, "--position -1 --position-end 1.5 --steps 6", sweep(-1, 1.5, steps=6), "6 positions from -1 to 1.5"),
    (2, "--position 0 --steps 3", sweep(0, 1, steps=3), "6 mixes of basis"),
]


@pytest.mark.parametrize(("count", "options", "expected", "report"), BLENDS)
def test_blend_takes_weights_a_position_or_a_sweep(run, files, tmp_path, count, options, expected, report):
    out = tmp_path / "out.safetensors"
    code, lines, _ = run("blend", *files[:count], *options.split(), "--note", "three", "-o", out)
    assert code == 0 and report in "\n".join(lines)
    assert_same_coefficients(load(out), expected([load(path) for path in files[:count]]))
    assert load_coefficients(out).note == "three"


def test_texts_of_a_file_cannot_steer_the_terminal(run, files, tmp_path):
    steered = load(files[0])
    steered["settings"]["basis_name"] = "basis\x1b[2J"
    save_coefficients(files[0], steered, note="first\nsecond\r\x1b]0;title\x07\x9b2J")
    code, lines, _ = run("plot", files[0], "-o", tmp_path / "map.png")
    text = "\n".join(lines)
    assert code == 0 and "basis\\x1b[2J (id " in text
    assert "Note: first\nsecond\\r\\x1b]0;title\\x07\\x9b2J\nWrote " in text
    other = {**load(files[1]), "basis_id": "other"}
    save_coefficients(files[1], other)
    result = run("blend", *files[:2], "-o", tmp_path / "out.safetensors")
    assert_refused(result, "basis\\x1b[2J (id ")
    assert not any(character in text + result[2][0] for character in "\x1b\x07\r\x9b")


def test_adjust_takes_every_option_and_keeps_note_and_thumbnail(run, files, tmp_path):
    out = tmp_path / "out.safetensors"
    save_coefficients(files[0], load(files[0]), note="note 0", thumbnail=smooth(300, 600))
    options = ("--temperature", "0.5", "--top-k", 2, "--no-renormalize", "--part", "attention=0.5", "--part", "late=-1")
    assert run("adjust", files[0], *options, "-o", out)[0] == 0
    strengths = {"attention": 0.5, "late": -1}
    expected = adjust_coefficients(
        load(files[0]), temperature=0.5, top_k=2, renormalize=False, part_strengths=strengths
    )
    assert_same_coefficients(load(out), expected)
    assert load_coefficients(out).note == "note 0"
    before, after = (np.asarray(load_coefficients(path).thumbnail, dtype=int) for path in (files[0], out))
    assert before.shape == after.shape and abs(before - after).max() < 16
    assert run("adjust", files[0], "-o", out)[0] == 0
    assert_same_coefficients(load(out), load(files[0]))


def test_plot_writes_an_image_and_prints_a_summary(run, files, tmp_path):
    code, lines, _ = run("plot", files[0], "--mix", 1, "-o", tmp_path / "map.png")
    text = "\n".join(lines)
    assert code == 0 and "--mix 1 (number 2 of 2)" in text and "Strongest adapters" in text and "Note: note 0" in text
    assert Image.open(tmp_path / "map.png").size[0] > 300
    code, lines, _ = run("plot", files[0], "--compare-with", files[1], "-o", tmp_path / "difference.png")
    text = "\n".join(lines)
    assert code == 0 and "Cosine per layer" in text and "--mix 0 (number 1 of 2)" in text
    assert "Basis: basis.safetensors (id " in text
    assert (tmp_path / "difference.png").read_bytes() != (tmp_path / "map.png").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit to stand for a full disk")
def test_plot_on_a_full_disk_leaves_the_old_image(run, files, tmp_path):
    image = tmp_path / "map.png"
    image.write_text("old")
    with disk_full_after(100):
        assert_refused(run("plot", files[0], "-o", image), "cannot be written")
    assert image.read_text() == "old" and not list(tmp_path.glob("*.tmp"))


def test_errors_are_short_messages(run, files, basis_file, tmp_path):
    out = ("-o", tmp_path / "out.safetensors")
    other = write_reference(tmp_path / "other.safetensors", basis_size=3)
    assert_refused(run("blend", *files[:2], "--weight", "1", "--weight", "-1", *out), "sum to zero", "method sum")
    assert_refused(run("blend", *files, "--position", "1", "--weight", "1", *out), "either --position, or --weight")
    assert_refused(run("blend", *files[:2], "--position", "nan", *out), "finite number")
    assert_refused(run("blend", *files[:2], "--position", "-inf", *out), "-inf is not a finite number")
    assert_refused(run("blend", files[0], "--position", "0.5", *out), "1 analogy", "Give two analogies or more")
    assert_refused(run("blend", *files, "--steps", "3", *out), "Give --position")
    assert_refused(run("blend", *files, "--position", "0", "--position-end", "1", *out), "--steps of at least 2")
    assert_refused(run("blend", *files, "--position", "0", "--steps", "0", *out), "--steps")
    assert_refused(run("blend", files[0], "-o", files[0]), "also an input")
    assert_refused(run("blend", files[0], basis_file, *out), "a LoRWeB basis")
    assert_refused(run("adjust", files[0], "--part", "atention=1", *out), "Did you mean 'attention'?")
    assert_refused(run("adjust", files[0], "--part", "attention", *out), "NAME=STRENGTH")
    repeated = ("--part", "attention=0.5", "--part", "late=1", "--part", "attention=0.5")
    assert_refused(run("adjust", files[0], *repeated, *out), "more than once for attention")
    assert_refused(run("adjust", files[0], "--part", "attention=half", *out), "attention=half")
    assert_refused(run("adjust", files[0], "--temperature", "warm", *out), "--temperature")
    assert_refused(run("plot", files[0], "--mix", 2, "-o", tmp_path / "x.png"), "0 … 1", "no mix 2")
    assert_refused(run("plot", files[0], "-o", tmp_path / "x.jpg"), ".png")
    assert_refused(run("plot", files[0], "-o", tmp_path / "no" / "x.png"), "cannot be written")
    assert_refused(run("mix", other, "--coefficients", files[0], *out), "other", "basis")
    assert not (tmp_path / "out.safetensors").exists()
