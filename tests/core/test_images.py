"""Images at the border: files of every mode and format, orientation, alpha, limits, damage; and IMAGE tensors."""

import io
import os
import pickle
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorweb_core.errors import ImageError, ShapeError
from lorweb_core.images import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    ImageFileError,
    read_image,
    read_image_size,
    require_analogy,
    require_images,
    to_8bit,
)
from tests.images import noise

ROOT = Path(__file__).parents[2]
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F")
FORMATS = (*IMAGE_FORMATS, "MPO", "DIB", "JPEG2000", "PPM", "TGA", "ICO")


def painted(mode):
    """A gradient with a transparent quarter and half-transparent one where the mode can say so."""
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    gray = x * 4 + y * 3
    if mode in ("I;16", "I;16B", "I"):
        return Image.fromarray((gray * 257).astype({"I;16": "<u2", "I;16B": ">u2", "I": np.int32}[mode]))
    if mode == "F":
        return Image.fromarray((gray / 255).astype(np.float32))
    pixels = np.stack([gray, 255 - gray, x * 8, np.where(y < 8, 0, np.where(y < 16, 120, 255))], -1).astype(np.uint8)
    if mode == "LAB":
        return Image.frombytes("LAB", (32, 32), np.ascontiguousarray(pixels[..., :3]).tobytes())
    rgba = Image.fromarray(pixels)
    return rgba.convert("P").convert("PA") if mode == "PA" else rgba.convert(mode)


def is_written(mode, format):
    try:
        painted(mode).save(io.BytesIO(), format)
    except (OSError, KeyError, ValueError):
        return False
    return True


WRITTEN = [(mode, format) for format in FORMATS for mode in MODES if is_written(mode, format)]


@pytest.mark.parametrize(("mode", "format"), WRITTEN)
def test_every_mode_and_format_that_pillow_writes_is_read_correctly_or_refused(tmp_path, mode, format):
    path = tmp_path / "x"
    painted(mode).save(path, format)
    refusal = "" if format in (*IMAGE_FORMATS, "MPO") else "unreadable"
    if format == "TIFF" and mode in ("I", "F"):
        refusal = "wrong-mode"
    if refusal:
        for read in (read_image, read_image_size):
            with pytest.raises(ImageFileError, match=rf"cannot be used \({refusal}\)"):
                read(path)
        return
    found = np.asarray(read_image(path)).astype(float)
    with Image.open(path) as file:
        is_16_bit = file.mode.startswith("I")
        stored = Image.fromarray((np.asarray(file) / 257).round().astype(np.uint8)) if is_16_bit else file
        pixels = np.asarray(stored.convert("RGBA" if file.has_transparency_data else "RGB"))
    alpha = pixels[..., 3:] / 255 if pixels.shape[2] == 4 else 1.0
    assert found.shape == (32, 32, 3)
    assert np.abs(found - (pixels[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1
    if format in ("PNG", "TIFF") and mode in ("RGB", "RGBA", "I;16", "I;16B"):
        assert found[-1, 0].tolist() == ([93, 162, 0] if mode.startswith("RGB") else [93, 93, 93])
        assert found[0, 0].tolist() == {"RGBA": [255, 255, 255], "RGB": [0, 255, 0]}.get(mode, [0, 0, 0])


def test_16_bit_gray_may_have_a_transparent_level(tmp_path):
    levels = np.array([[1000, 30000], [1000, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png", transparency=1000)
    assert np.asarray(read_image(tmp_path / "x.png"))[..., 0].tolist() == [[255, 117], [255, 255]]


def test_there_is_one_list_of_suffixes_and_one_reader():
    assert {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"} <= IMAGE_SUFFIXES
    sources = [path for folder in ("lorweb_core", "nodes", "training") for path in (ROOT / folder).rglob("*.py")]
    opening = {p.name for p in sources if re.search(r"Image\.open\((?!io\.BytesIO)", p.read_text(encoding="utf-8"))}
    assert opening == {"images.py"}


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "endless.png", "."):
        for read in (read_image, read_image_size):
            with pytest.raises(ImageFileError, match="not a regular file"):
                read(tmp_path / name)


@pytest.mark.parametrize(("name", "kind"), [("x" * 300, "unreadable"), ("a\0b", "unreadable"), ("x.png", "missing")])
def test_missing_files_and_names_that_no_file_can_have_are_refused(tmp_path, name, kind):
    with pytest.raises(ImageFileError, match=rf"cannot be used \({kind}\)"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("is_late", [False, True])
def test_the_size_of_a_png_is_read_without_decoding_wherever_its_exif_block_is(tmp_path, is_late):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "PNG", exif=exif)
    data = buffer.getvalue()
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    block, rest = data[start:end], data[:start] + data[end:]
    pixels = rest.index(b"IDAT") + 4
    if is_late:
        data = rest[:-12] + block + rest[-12:]
    (tmp_path / "x.png").write_bytes(data)
    assert read_image_size(tmp_path / "x.png") == read_image(tmp_path / "x.png").size == (20, 40)
    damaged = data.replace(rest[pixels : pixels + 8], b"\xff" * 8)
    (tmp_path / "x.png").write_bytes(damaged)
    assert read_image_size(tmp_path / "x.png") == (20, 40)
    with pytest.raises(ImageFileError, match="damaged"):
        read_image(tmp_path / "x.png")


def test_a_png_without_exif_is_not_decoded_for_its_size(tmp_path):
    Image.new("RGB", (4000, 3000)).save(tmp_path / "x.png")
    seconds = []
    for read in (read_image, read_image_size):
        start = time.process_time()
        read(tmp_path / "x.png")
        seconds.append(time.process_time() - start)
    assert seconds[1] < seconds[0] / 4


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_large_images_are_shrunk_by_a_whole_factor_when_asked(tmp_path, suffix):
    painted("RGB").resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / f"x.{suffix}", quality=95)
    full = read_image(tmp_path / f"x.{suffix}")
    assert (full.size, read_image(tmp_path / f"x.{suffix}", at_least_px=1024).size) == ((1600, 1200), (1600, 1200))
    for at_least_px, size in ((256, (400, 300)), (600, (800, 600))):
        small = read_image(tmp_path / f"x.{suffix}", at_least_px=at_least_px)
        assert small.size == size
        cells = [np.asarray(image.resize((128, 96), Image.Resampling.LANCZOS)).astype(int) for image in (full, small)]
        assert np.abs(cells[0] - cells[1]).mean() < 1


#: Where the pixel at the top left of the stored image belongs, by EXIF orientation (the tag's definition).
TOP_LEFT_BELONGS = {
    1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left",
    5: "top left", 6: "top right", 7: "bottom right", 8: "bottom left",
}  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    stored = Image.new("RGB", (48, 32), "black")
    stored.paste("white", (0, 0, 12, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    upright = read_image(tmp_path / "x.png")
    assert upright.size == ((48, 32) if orientation < 5 else (32, 48))
    assert read_image_size(tmp_path / "x.png") == upright.size
    row, column = TOP_LEFT_BELONGS[orientation].split()
    corner = (2 if column == "left" else upright.width - 3, 2 if row == "top" else upright.height - 3)
    assert upright.getpixel(corner) == (255, 255, 255)
    assert np.asarray(upright).mean() < 30


def test_a_damaged_exif_block_does_not_lose_the_image(tmp_path):
    painted("RGB").save(tmp_path / "x.jpg", exif=b"Exif\x00\x00" + b"II*\x00\xff\xff\xff\x7f" + b"\x99" * 20)
    assert read_image(tmp_path / "x.jpg").size == (32, 32)


def test_alpha_is_laid_on_white(tmp_path):
    rgba = Image.new("RGBA", (8, 8), (200, 0, 0, 255))
    rgba.paste((0, 0, 200, 0), (0, 0, 4, 8))
    rgba.putpixel((7, 7), (0, 0, 0, 127))
    rgba.save(tmp_path / "x.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "l.png", transparency=9)
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putpixel((5, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    image, from_gray, from_palette = (read_image(tmp_path / f"{name}.png") for name in "xlp")
    assert image.mode == "RGB" and image.getpixel((7, 7)) == (128, 128, 128)
    assert {file.getpixel((0, 0)) for file in (image, from_gray, from_palette)} == {(255, 255, 255)}
    assert image.getpixel((5, 0)) == from_palette.getpixel((5, 0)) == (200, 0, 0)


def test_the_first_frame_of_an_animation_is_used(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for side, name in ((50_000, "huge.png"), (12_000, "large.png")):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / name).write_bytes(
            b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        )
        with pytest.raises(ImageFileError, match=r"cannot be used \(too-large\)"):
            read_image(tmp_path / name)


def test_the_pixel_limit_is_inclusive(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", max_pixels=200).size == (20, 10)
    with pytest.raises(ImageFileError, match="20 × 10 is more than 199 pixels"):
        read_image(tmp_path / "x.png", max_pixels=199)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_a_truncated_image_is_refused(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(path)
    read_image(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageFileError, match=r"cannot be used \((damaged|unreadable)\)") as caught:
        read_image(path)
    assert caught.value.path == path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif"])
def test_random_damage_never_raises_anything_else(tmp_path, suffix):
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    painted("RGB").save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    path = tmp_path / f"x.{suffix}"
    for _ in range(150):
        data = bytearray(buffer.getvalue())
        for position in rng.integers(0, len(data), 4):
            data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            read_image(path, max_pixels=100_000)
        except ImageFileError:
            continue


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageFileError, match=r"cannot be used \((damaged|unreadable)\)"):
        read_image(tmp_path / "x.png")


def test_an_image_error_travels_between_processes(tmp_path):
    error = ImageFileError(tmp_path / "x.png", "damaged", "decoding stopped")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.path, copy.kind, copy.reason) == (str(error), error.path, error.kind, error.reason)


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


@pytest.mark.parametrize(("images", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_unusable_images_are_refused_with_their_name_and_a_remedy(images, message):
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
