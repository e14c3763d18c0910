"""Reading pictures: orientation, alpha, modes, limits, damage; cutting, fitting and tiling them."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.data_pictures import paint, pair_at, truncate
from training.data.buckets import Cell
from training.data.pictures import (
    PictureError,
    cut_strip,
    fit_cell,
    load_pair,
    load_picture,
    read_facts,
    tile_grid,
    to_model_range,
)

#: Where the pixel at the top left of the stored picture belongs, by EXIF orientation (the tag's definition).
TOP_LEFT_BELONGS = {
    1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left",
    5: "top left", 6: "top right", 7: "bottom right", 8: "bottom left",
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    stored = Image.new("RGB", (48, 32), "black")
    stored.paste("white", (0, 0, 12, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    upright = load_picture(tmp_path / "x.png")
    assert upright.size == ((48, 32) if orientation < 5 else (32, 48))
    facts = read_facts(tmp_path / "x.png")
    assert (facts.width, facts.height) == upright.size
    row, column = TOP_LEFT_BELONGS[orientation].split()
    corner = (2 if column == "left" else upright.width - 3, 2 if row == "top" else upright.height - 3)
    assert upright.getpixel(corner) == (255, 255, 255)
    assert np.asarray(upright).mean() < 30


def test_a_damaged_exif_block_does_not_lose_the_picture(tmp_path: Path) -> None:
    paint(1).save(tmp_path / "x.jpg", exif=b"Exif\x00\x00" + b"II*\x00\xff\xff\xff\x7f" + b"\x99" * 20)
    assert load_picture(tmp_path / "x.jpg").size == (64, 64)


def test_alpha_is_laid_on_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (8, 8), (200, 0, 0, 255))
    rgba.paste((0, 0, 200, 0), (0, 0, 4, 8))
    rgba.putpixel((7, 7), (0, 0, 0, 127))
    rgba.save(tmp_path / "x.png")
    picture = load_picture(tmp_path / "x.png")
    assert picture.mode == "RGB"
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((5, 0)) == (200, 0, 0)
    assert picture.getpixel((7, 7)) == (128, 128, 128)


def test_transparent_palette_and_grey_are_laid_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    Image.new("L", (4, 4), 9).save(tmp_path / "l.png", transparency=9)
    Image.new("LA", (4, 4), (9, 0)).save(tmp_path / "la.png")
    assert load_picture(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)
    assert load_picture(tmp_path / "p.png").getpixel((1, 0)) == (200, 100, 50)
    assert load_picture(tmp_path / "l.png").getpixel((0, 0)) == (255, 255, 255)
    assert load_picture(tmp_path / "la.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("L", "png"), ("P", "gif"), ("CMYK", "tif"), ("YCbCr", "jpg")]
)
def test_other_8_bit_modes_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    paint(2).convert(mode).save(tmp_path / f"x.{suffix}")
    assert load_picture(tmp_path / f"x.{suffix}").mode == "RGB"


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_modes_that_would_be_clipped_are_refused(tmp_path: Path, mode: str) -> None:
    Image.fromarray(np.full((8, 8), 40000, {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])).save(
        tmp_path / "x.tif"
    )
    with pytest.raises(PictureError, match="8 bits per channel") as caught:
        load_picture(tmp_path / "x.tif")
    assert caught.value.kind == "wrong-mode"


def test_the_first_frame_of_an_animation_is_used(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert load_picture(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for side, name in ((50_000, "huge.png"), (12_000, "large.png")):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / name).write_bytes(
            b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        )
        with pytest.raises(PictureError) as caught:
            load_picture(tmp_path / name)
        assert caught.value.kind == "too-large"


def test_the_pixel_limit_is_inclusive(tmp_path: Path) -> None:
    paint(3, size=(20, 10)).save(tmp_path / "x.png")
    assert load_picture(tmp_path / "x.png", max_pixels=200).size == (20, 10)
    with pytest.raises(PictureError, match="20 × 10 is more than 199 pixels"):
        load_picture(tmp_path / "x.png", max_pixels=199)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_a_truncated_picture_is_told(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(noise).save(path)
    load_picture(path)
    truncate(path)
    with pytest.raises(PictureError) as caught:
        load_picture(path)
    assert caught.value.kind in ("damaged", "unreadable")
    assert caught.value.path == path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif"])
def test_random_damage_never_raises_anything_else(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    paint(4).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    path = tmp_path / f"x.{suffix}"
    for _ in range(150):
        data = bytearray(buffer.getvalue())
        for position in rng.integers(0, len(data), 4):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            load_picture(path, max_pixels=100_000)
        except PictureError:
            continue


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(PictureError) as caught:
        load_picture(tmp_path / "x.png")
    assert caught.value.kind in ("unreadable", "damaged")


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(PictureError) as caught:
        load_picture(tmp_path / "x.png")
    assert caught.value.kind == "missing"
    with pytest.raises(PictureError) as caught:
        load_picture(tmp_path)
    assert caught.value.kind == "unreadable"


def test_a_picture_error_travels_between_processes(tmp_path: Path) -> None:
    error = PictureError(tmp_path / "x.png", "damaged", "decoding stopped")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.path, copy.kind, copy.reason) == (str(error), error.path, error.kind, error.reason)


def test_large_jpegs_are_decoded_small_but_large_enough(tmp_path: Path) -> None:
    paint(5, size=(1600, 1200)).save(tmp_path / "x.jpg", quality=95)
    full = load_picture(tmp_path / "x.jpg")
    small = load_picture(tmp_path / "x.jpg", at_least_px=256)
    assert full.size == (1600, 1200)
    assert small.size == (400, 300)
    cell = Cell(96, 80)
    difference = fit_cell(full, cell).astype(int) - fit_cell(small, cell)
    assert np.abs(difference).mean() < 1
    assert load_picture(tmp_path / "x.jpg", at_least_px=1024).size == (1600, 1200)


def test_a_strip_is_cut_in_equal_halves(tmp_path: Path) -> None:
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


def test_a_cell_is_the_centre_of_the_picture(tmp_path: Path) -> None:
    picture = Image.new("RGB", (300, 100), "black")
    picture.paste("white", (100, 0, 200, 100))
    assert fit_cell(picture, Cell(32, 32))[:, 1:-1].min() > 250
    wide = fit_cell(picture, Cell(96, 32))
    assert wide.shape == (32, 96, 3)
    assert wide[:, :28].max() < 5
    assert wide[:, 36:60].min() > 250


def test_a_picture_of_the_cells_size_is_not_changed() -> None:
    picture = paint(6, size=(48, 32))
    assert np.array_equal(fit_cell(picture, Cell(48, 32)), np.asarray(picture))


def test_cells_are_tiled_in_reading_order() -> None:
    cells = [np.full((4, 6, 3), value, np.uint8) for value in (1, 2, 3, 4)]
    grid = tile_grid(*cells)
    assert grid.shape == (3, 8, 12)
    assert grid[0, ::4, ::6].tolist() == [[1, 2], [3, 4]]
    assert grid.is_contiguous()


def test_the_model_range_is_minus_one_to_one() -> None:
    values = to_model_range(tile_grid(*[np.full((2, 2, 3), value, np.uint8) for value in (0, 255, 127, 128)]))
    assert values.min() == -1
    assert values.max() == 1
    assert values[0, 2, 0] == pytest.approx(-1 / 255)
