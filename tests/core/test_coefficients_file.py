"""Coefficient files: nothing is lost on the way, and every other file is refused with a reason."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorweb_core.coefficients import encode_coefficients, name_of_basis, require_coefficients_of
from lorweb_core.coefficients_file import METADATA_KEY, THUMBNAIL_KEY, load_coefficients, save_coefficients
from lorweb_core.errors import CheckpointError, ImageError, LoRWeBError, OutputError, ShapeError
from tests.basis_files import split_raw, write_raw, write_reference
from tests.images import noise, smooth
from tests.synthetic import make_basis

BASIS = make_basis()


def analogy(mixes=2):
    return encode_coefficients(BASIS, torch.randn(mixes, 18, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "analogy.safetensors"
    save_coefficients(path, analogy(), note="Süßer Effekt — 甘い", thumbnail=smooth(300, 600))
    return path


def test_saving_and_loading_changes_no_bit(saved):
    loaded = load_coefficients(saved)
    assert {key: value for key, value in loaded.coefficients.items() if key != "layers"} == {
        key: value for key, value in analogy().items() if key != "layers"
    }
    assert list(loaded.coefficients["layers"]) == list(analogy()["layers"])
    for name, mix in analogy()["layers"].items():
        assert loaded.coefficients["layers"][name].numpy().tobytes() == mix.numpy().tobytes()
    assert loaded.note == "Süßer Effekt — 甘い"
    require_coefficients_of(BASIS, loaded.coefficients)


def test_saving_what_was_loaded_gives_the_same_file(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    loaded = load_coefficients(saved)
    save_coefficients(again, loaded.coefficients, note=loaded.note)
    assert load_file(again).keys() == load_file(saved).keys()
    first, second = (json.loads(split_raw(path)[0]["__metadata__"][METADATA_KEY]) for path in (saved, again))
    assert first == second and split_raw(saved)[1] == split_raw(again)[1]


def test_the_thumbnail_is_small_and_keeps_its_shape(saved):
    thumbnail = load_coefficients(saved).thumbnail
    assert thumbnail.size == (256, 128) and thumbnail.mode == "RGB"
    assert load_coefficients(saved.parent / saved.name).note
    assert split_raw(saved)[0]["__metadata__"][THUMBNAIL_KEY].startswith("data:image/jpeg;base64,")


def test_a_file_needs_neither_note_nor_thumbnail(tmp_path):
    save_coefficients(tmp_path / "plain.safetensors", analogy(1))
    loaded = load_coefficients(tmp_path / "plain.safetensors")
    assert loaded.note == "" and loaded.thumbnail is None


def test_numbers_may_be_any_real_numbers(tmp_path):
    wild = analogy()
    wild["layers"] = {name: mix * -1e30 for name, mix in wild["layers"].items()}
    save_coefficients(tmp_path / "wild.safetensors", wild)
    loaded = load_coefficients(tmp_path / "wild.safetensors").coefficients
    assert all(torch.equal(loaded["layers"][name], mix) for name, mix in wild["layers"].items())


def test_a_basis_whose_file_name_is_no_text_can_be_named(tmp_path):
    named = analogy()
    named["settings"]["basis_name"] = b"f\xfcr.safetensors".decode("utf-8", "surrogateescape")
    save_coefficients(tmp_path / "named.safetensors", named, note="half a smile: \ud83d")
    loaded = load_coefficients(tmp_path / "named.safetensors")
    assert loaded.note == "half a smile: ?" and loaded.coefficients["settings"]["basis_name"] == "f?r.safetensors"


@pytest.mark.parametrize("start", [b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"])
def test_a_header_whose_length_is_spelled_like_a_pickle_is_read(saved, start):
    content = saved.read_bytes()
    length = int.from_bytes(content[:8], "little")
    longer = int.from_bytes(start + b"\x01", "little")
    saved.write_bytes(longer.to_bytes(8, "little") + content[8 : 8 + length].ljust(longer) + content[8 + length :])
    assert load_coefficients(saved).note == "Süßer Effekt — 甘い"


def rewrite(path, change_header=lambda header: None, data=None):
    header, old = split_raw(path)
    change_header(header)
    return write_raw(path, header, old if data is None else data)


def set_content(**changes):
    def change(header):
        content = json.loads(header["__metadata__"][METADATA_KEY])
        header["__metadata__"][METADATA_KEY] = json.dumps({**content, **changes})

    return change


def nan_data(path):
    return struct.pack("<f", float("nan")) * (len(split_raw(path)[1]) // 4)


BAD_FILES = {
    "missing": (lambda p: p.unlink(), ["There is no file"]),
    "basis": (lambda p: write_reference(p), ["is a LoRWeB basis, not a coefficients file", "Load LoRWeB Basis"]),
    "other tensors": (lambda p: save_file({"x": torch.ones(2)}, p), ["a file of 1 tensors", "Save Coefficients"]),
    "web page": (lambda p: p.write_text("<!doctype html>"), ["a web page"]),
    "cut off": (lambda p: p.write_bytes(p.read_bytes()[:-8]), ["not a whole .safetensors file"]),
    "no json": (
        lambda p: rewrite(p, lambda h: h["__metadata__"].update({METADATA_KEY: "{"})),
        ["not usable JSON"],
    ),
    "list": (lambda p: rewrite(p, lambda h: h["__metadata__"].update({METADATA_KEY: "[]"})), ["format_version"]),
    "no id": (lambda p: rewrite(p, set_content(basis_id=3)), ["basis_id"]),
    "newer": (lambda p: rewrite(p, set_content(format_version=2)), ["version 1", "version 2", "Update"]),
    "version in quotes": (lambda p: rewrite(p, set_content(format_version="1")), ["version 1.", "version '1'"]),
    "no note": (
        lambda p: rewrite(p, set_content(note=None)),
        ["note in", "a NoneType, not text"],
    ),
    "dict as note": (lambda p: rewrite(p, set_content(note={"a": 1})), ["note in", "a dict, not text"]),
    "long note": (
        lambda p: rewrite(p, set_content(note="x" * 10_001)),
        ["10,001 characters. Shorten it to 10,000"],
    ),
    "long id": (
        lambda p: rewrite(p, set_content(basis_id="x" * 256)),
        ["basis_id", "256 characters. Shorten"],
    ),
    "odd name": (lambda p: rewrite(p, set_content(settings={"basis_name": [1]})), ["basis_name", "a list, not text"]),
    "long name": (lambda p: rewrite(p, set_content(settings={"basis_name": "x" * 256})), ["basis_name", "256"]),
    "NaN": (lambda p: rewrite(p, data=nan_data(p)), ["finite", "NaN"]),
    "thumbnail": (
        lambda p: rewrite(p, lambda h: h["__metadata__"].update({THUMBNAIL_KEY: "data:image/jpeg;base64,AAAA"})),
        ["not a small image", "sender"],
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_an_unusable_file_is_refused(saved, case):
    damage, words = BAD_FILES[case]
    damage(saved)
    with pytest.raises(LoRWeBError) as raised:
        load_coefficients(saved)
    for word in words:
        assert word in str(raised.value)


def test_tensors_of_another_type_or_shape_are_refused(tmp_path):
    path = tmp_path / "odd.safetensors"
    save_coefficients(path, analogy())
    metadata = split_raw(path)[0]["__metadata__"]
    for tensors, word in (
        ({"a": torch.ones(1, 4).half()}, "1 other tensors"),
        ({"a": torch.ones(4)}, "1 other tensors"),
        ({}, "no tensor"),
        ({"a": torch.ones(1, 4), "b": torch.ones(2, 4)}, "same batch"),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(LoRWeBError, match=word):
            load_coefficients(path)
    huge = {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}
    with pytest.raises(CheckpointError, match="1 other tensors"):
        load_coefficients(write_raw(path, {"__metadata__": metadata, "a": huge}, b""))


def test_layers_whose_names_would_steer_a_terminal_are_refused_without_doing_so(tmp_path):
    path = tmp_path / "odd.safetensors"
    save_coefficients(path, analogy())
    save_file({"a\x1b[2J": torch.ones(1, 4)}, path, split_raw(path)[0]["__metadata__"])
    with pytest.raises(CheckpointError, match=r"tensor name 'a\\x1b\[2J' .* control characters") as raised:
        load_coefficients(path)
    assert "\x1b" not in str(raised.value)


def test_a_file_without_a_note_or_a_name_of_the_basis_is_read(saved):
    def strip(header):
        content = json.loads(header["__metadata__"][METADATA_KEY])
        del content["note"], content["settings"]["basis_name"]
        header["__metadata__"][METADATA_KEY] = json.dumps(content)

    rewrite(saved, strip)
    loaded = load_coefficients(saved)
    assert loaded.note == "" and "an unnamed basis" in name_of_basis(loaded.coefficients)


def test_what_cannot_be_saved_leaves_no_file(tmp_path):
    path = tmp_path / "new.safetensors"
    broken = analogy()
    broken["layers"] = {name: mix * torch.nan for name, mix in broken["layers"].items()}
    for error, make in (
        (ShapeError, lambda: save_coefficients(path, broken)),
        (ImageError, lambda: save_coefficients(path, analogy(), thumbnail=noise(8, 8) * 255)),
        (CheckpointError, lambda: save_coefficients(path, analogy(), note="x" * 10_001)),
        (CheckpointError, lambda: save_coefficients(path, {**analogy(), "settings": {"basis_name": 3}})),
        (OutputError, lambda: save_coefficients(tmp_path / "no" / "folder.safetensors", analogy())),
    ):
        with pytest.raises(error):
            make()
    assert list(tmp_path.iterdir()) == []
