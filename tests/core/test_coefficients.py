"""Coefficients: the dict that the router gives, its file, and what is refused of both."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorweb_core.basis import Basis
from lorweb_core.coefficients import (
    count_mixes,
    encode_coefficients,
    name_of_basis,
    require_coefficients_of,
    require_whole_coefficients,
)
from lorweb_core.coefficients_file import METADATA_KEY, THUMBNAIL_KEY, load_coefficients, save_coefficients
from lorweb_core.errors import CheckpointError, ImageError, LoRWeBError, OutputError, ShapeError
from tests.basis_files import split_raw, write_raw, write_reference
from tests.images import noise, smooth
from tests.synthetic import assert_same_coefficients, change_layers, make_basis, make_coefficients

BASIS = make_basis()
FIRST = next(iter(BASIS.layers))


def test_coefficients_are_plain_float32_tensors_on_the_cpu():
    coefficients = encode_coefficients(BASIS, torch.ones(2, 18).double())
    assert type(coefficients) is dict
    assert set(coefficients) == {"format_version", "basis_id", "layers", "settings"}
    assert coefficients["settings"]["activation"] == "softmax" and coefficients["settings"]["basis_name"] == "synthetic"
    for mix in coefficients["layers"].values():
        assert mix.dtype == torch.float32 and mix.device.type == "cpu" and mix.shape == (2, 4)
    assert count_mixes(coefficients) == 2
    assert_same_coefficients(require_coefficients_of(BASIS, coefficients), coefficients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_numbers_of_another_dtype_are_taken_as_float32(dtype):
    foreign = change_layers(make_coefficients(), lambda mix: mix.to(dtype))
    for checked in (require_coefficients_of(BASIS, foreign), require_whole_coefficients(foreign)):
        assert_same_coefficients(checked, change_layers(foreign, lambda mix: mix.float()))
        assert all(mix.dtype == torch.float32 for mix in checked["layers"].values())


def set_first(value):
    return lambda c: c["layers"].update({FIRST: value})


DAMAGE = {
    "newer format": (lambda c: c.update(format_version=2), CheckpointError, "version 2.*version 1.*Update"),
    "version in quotes": (lambda c: c.update(format_version="1"), CheckpointError, "version '1'.*version 1[.]"),
    "no layers": (lambda c: c.update(layers={}), CheckpointError, "Connect the output of Encode Analogy"),
    "no id": (lambda c: c.pop("basis_id"), CheckpointError, "basis_id"),
    "missing layer": (lambda c: c["layers"].pop(FIRST), ShapeError, f"4 layers.*1 missing.*{FIRST}"),
    "extra layer": (lambda c: c["layers"].update(other=torch.ones(2, 4)), ShapeError, "1 unknown.*other"),
    "wrong size": (set_first(torch.ones(2, 5)), ShapeError, rf"{FIRST}.*\[2, 5\]"),
    "other batch": (set_first(torch.ones(3, 4)), ShapeError, "same batch"),
    "layers as a list": (lambda c: c.update(layers=[torch.ones(2, 4)]), CheckpointError, "layers as list"),
    "layers as a tensor": (lambda c: c.update(layers=torch.ones(2, 4)), CheckpointError, "layers as Tensor"),
    "numbers as a list": (set_first([[0.5, 0.5]]), CheckpointError, f"{FIRST} as list"),
    "no settings": (lambda c: c.update(settings=None), CheckpointError, "settings as NoneType"),
    "not a number": (set_first(torch.full((2, 4), torch.nan)), ShapeError, "NaN"),
}


@pytest.mark.parametrize(("change", "error", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_coefficients_are_refused(change, error, message):
    coefficients = make_coefficients()
    change(coefficients)
    with pytest.raises(error, match=message):
        require_coefficients_of(BASIS, coefficients)


def test_coefficients_of_another_basis_are_refused_naming_both():
    other = Basis(layers=BASIS.layers, settings=BASIS.settings, basis_id="fedcba9876543210", name="other")
    with pytest.raises(CheckpointError, match=r"other \(id fedcba.*synthetic \(id 012345.*Connect the same basis"):
        require_coefficients_of(other, make_coefficients())


@pytest.mark.parametrize("value", [None, 3, [], {}])
def test_anything_else_on_the_socket_is_refused(value):
    with pytest.raises(LoRWeBError, match="Connect the output of Encode Analogy"):
        require_coefficients_of(BASIS, value)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "analogy.safetensors"
    save_coefficients(path, make_coefficients(), note="Süßer Effekt — 甘い", thumbnail=smooth(300, 600))
    return path


@pytest.mark.parametrize("factor", [1.0, -1e30])
def test_saving_and_loading_changes_no_bit(tmp_path, factor):
    coefficients = change_layers(make_coefficients(), lambda mix: mix * factor)
    save_coefficients(tmp_path / "plain.safetensors", coefficients)
    loaded = load_coefficients(tmp_path / "plain.safetensors")
    assert loaded.note == "" and loaded.thumbnail is None
    assert_same_coefficients(loaded.coefficients, coefficients)
    assert {**loaded.coefficients, "layers": None} == {**coefficients, "layers": None}
    require_coefficients_of(BASIS, loaded.coefficients)


def test_a_note_and_a_small_thumbnail_of_the_same_shape_are_kept(saved):
    loaded = load_coefficients(saved)
    assert loaded.note == "Süßer Effekt — 甘い"
    assert loaded.thumbnail.size == (256, 128) and loaded.thumbnail.mode == "RGB"
    assert split_raw(saved)[0]["__metadata__"][THUMBNAIL_KEY].startswith("data:image/jpeg;base64,")


def test_saving_what_was_loaded_gives_the_same_file(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    loaded = load_coefficients(saved)
    save_coefficients(again, loaded.coefficients, note=loaded.note)
    assert load_file(again).keys() == load_file(saved).keys()
    first, second = (json.loads(split_raw(path)[0]["__metadata__"][METADATA_KEY]) for path in (saved, again))
    assert first == second and split_raw(saved)[1] == split_raw(again)[1]


def test_a_basis_whose_file_name_is_no_text_can_be_named(tmp_path):
    named = make_coefficients()
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


def edit(**changes):
    """Return a function that changes fields in the file's header."""

    def damage(path):
        header, data = split_raw(path)
        content = json.loads(header["__metadata__"][METADATA_KEY]) | changes
        header["__metadata__"][METADATA_KEY] = json.dumps(content)
        write_raw(path, header, data)

    return damage


def set_header(key, text):
    def damage(path):
        header, data = split_raw(path)
        header["__metadata__"][key] = text
        write_raw(path, header, data)

    return damage


def set_tensors(**tensors):
    return lambda path: save_file(tensors, path, split_raw(path)[0]["__metadata__"])


BAD_FILES = {
    "missing": (lambda path: path.unlink(), "There is no file"),
    "basis": (write_reference, "is a LoRWeB basis, not a coefficients file.*Load LoRWeB Basis"),
    "other tensors": (lambda path: save_file({"x": torch.ones(2)}, path), "a file of 1 tensors.*Save Coefficients"),
    "web page": (lambda path: path.write_text("<!doctype html>"), "a web page"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-8]), "not a whole .safetensors file"),
    "no json": (set_header(METADATA_KEY, "{"), "not usable JSON"),
    "list": (set_header(METADATA_KEY, "[]"), "format_version"),
    "thumbnail": (set_header(THUMBNAIL_KEY, "data:image/jpeg;base64,AAAA"), "not a small image.*sender"),
    "no id": (edit(basis_id=3), "basis_id"),
    "newer": (edit(format_version=2), "version 2.*version 1.*Update"),
    "version in quotes": (edit(format_version="1"), "version '1'.*version 1[.]"),
    "no note": (edit(note=None), "note in.*a NoneType, not text"),
    "dict as note": (edit(note={"a": 1}), "note in.*a dict, not text"),
    "long note": (edit(note="x" * 10_001), "10,001 characters. Shorten it to 10,000"),
    "long id": (edit(basis_id="x" * 256), "basis_id.*256 characters. Shorten"),
    "odd name": (edit(settings={"basis_name": [1]}), "basis_name.*a list, not text"),
    "long name": (edit(settings={"basis_name": "x" * 256}), "basis_name.*256"),
    "NaN": (set_tensors(a=torch.full((1, 4), torch.nan)), "NaN.*finite"),
    "half precision": (set_tensors(a=torch.ones(1, 4).half()), "1 other tensors"),
    "huge and empty": (
        lambda path: write_raw(
            path,
            {**split_raw(path)[0], "a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}},
            split_raw(path)[1],
        ),
        "1 other tensors",
    ),
    "one-dimensional": (set_tensors(a=torch.ones(4)), "1 other tensors"),
    "no tensor": (set_tensors(), "no tensor"),
    "uneven batch": (set_tensors(a=torch.ones(1, 4), b=torch.ones(2, 4)), "same batch"),
    "terminal codes": (
        set_tensors(**{"a\x1b[2J": torch.ones(1, 4)}), r"tensor name 'a\\x1b\[2J' .* control characters"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_an_unusable_file_is_refused_with_a_printable_message(saved, damage, message):
    damage(saved)
    with pytest.raises(LoRWeBError, match=message) as raised:
        load_coefficients(saved)
    assert str(raised.value).isprintable()


def test_a_file_without_a_note_or_a_name_of_the_basis_is_read(saved):
    fields = json.loads(split_raw(saved)[0]["__metadata__"][METADATA_KEY])
    del fields["note"], fields["settings"]["basis_name"]
    set_header(METADATA_KEY, json.dumps(fields))(saved)
    loaded = load_coefficients(saved)
    assert loaded.note == "" and "an unnamed basis" in name_of_basis(loaded.coefficients)


def test_what_cannot_be_saved_leaves_no_file(tmp_path):
    path = tmp_path / "new.safetensors"
    broken = change_layers(make_coefficients(), lambda mix: mix * torch.nan)
    for error, make in (
        (ShapeError, lambda: save_coefficients(path, broken)),
        (ImageError, lambda: save_coefficients(path, make_coefficients(), thumbnail=noise(8, 8) * 255)),
        (CheckpointError, lambda: save_coefficients(path, make_coefficients(), note="x" * 10_001)),
        (CheckpointError, lambda: save_coefficients(path, {**make_coefficients(), "settings": {"basis_name": 3}})),
        (OutputError, lambda: save_coefficients(tmp_path / "no" / "folder.safetensors", make_coefficients())),
    ):
        with pytest.raises(error):
            make()
    assert list(tmp_path.iterdir()) == []
