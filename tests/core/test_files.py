"""Result files: what the library reads back, and nothing partial after any failure."""

import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lorweb_core.errors import FileError, OutputError
from lorweb_core.files import parse_json, parse_yaml, read_text, write_text_atomically
from lorweb_core.safetensors_file import write_safetensors_atomically
from tests.basis_files import split_raw
from tests.full_disk import disk_full_after

TENSORS = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "single view": torch.arange(12, dtype=torch.float32).reshape(3, 4).t(),
    "brain": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
    "double": torch.tensor([1e300], dtype=torch.float64),
    "eight": torch.tensor([1.0, 448.0, -0.5]).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    "überschrift.ф": torch.tensor([True, False]),
}


def test_the_library_reads_back_every_tensor_and_string(tmp_path):
    path = tmp_path / "out.safetensors"
    write_safetensors_atomically(path, TENSORS, {"title": "größer ✓", "format": "pt"})
    back = load_file(path)
    assert back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert torch.equal(back[name].float(), tensor.float()), name
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"title": "größer ✓", "format": "pt"}
    header, _ = split_raw(path)
    starts = {name: header[name]["data_offsets"][0] for name in TENSORS}
    assert all(start % TENSORS[name].dtype.itemsize == 0 for name, start in starts.items()), "tensors are not aligned"


def test_a_dtype_casts_every_tensor_if_there_is_any(tmp_path):
    path = tmp_path / "out.safetensors"
    tensors = {"a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "b": torch.ones(2).half()}
    write_safetensors_atomically(path, tensors, {}, dtype=torch.bfloat16)
    back = load_file(path)
    assert all(torch.equal(back[name], tensors[name].bfloat16()) for name in tensors)
    write_safetensors_atomically(path, {}, {})
    assert load_file(path) == {}


NEVER_FINITE = "1 of 2 numbers of a already were NaN or infinite before saving"
UNWRITABLE = [
    (torch.tensor([1e5]), torch.float16, r"numbers of a reach 1e\+05, beyond the range of torch\.float16.*bf16"),
    (torch.tensor([1e300], dtype=torch.float64), torch.bfloat16, r"range of torch\.bfloat16.*Scale them down"),
    *(
        (torch.tensor([1.0, float("nan")]).to(stored), dtype, NEVER_FINITE)
        for stored in (torch.float32, torch.float16, torch.float8_e4m3fn)
        for dtype in (None, torch.float32, torch.float16)
    ),
]


@pytest.mark.parametrize(("tensor", "dtype", "message"), UNWRITABLE)
def test_numbers_that_a_file_cannot_hold_are_refused_and_nothing_is_left(tmp_path, tensor, dtype, message):
    with pytest.raises(OutputError, match=message):
        write_safetensors_atomically(tmp_path / "x.safetensors", {"a": tensor}, {}, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    reader = path.open()
    write_text_atomically(path, "new ✓\n")
    assert reader.read() == "old"  # an open reader keeps the old file whole
    reader.close()
    assert path.read_bytes() == "new ✓\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    link.symlink_to(real)
    write_text_atomically(link, "text")
    assert link.is_symlink() and real.read_text() == "text"


def test_a_new_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").touch()
    write_text_atomically(tmp_path / "ours", "text")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_the_old_file_and_nothing_partial(tmp_path, error):
    path = tmp_path / "out.safetensors"
    path.write_text("old")

    def stop(done, total):
        if done == 3:
            raise error

    with pytest.raises(error):
        write_safetensors_atomically(path, TENSORS, {}, on_progress=stop)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit to stand for a full disk")
def test_a_full_disk_is_reported_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.safetensors"
    path.write_text("old")
    with (
        disk_full_after(1000),
        pytest.raises(OutputError, match=r"out\.safetensors cannot be written: File too large\. Choose"),
    ):
        write_safetensors_atomically(path, {"a": torch.zeros(10_000)}, {})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="names are counted in characters there")
def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path):
    path = tmp_path / ("漫" * 84 + "abc")
    assert len(path.name.encode()) == 255
    write_text_atomically(path, "text")
    assert path.read_text() == "text" and list(tmp_path.iterdir()) == [path]


def test_unusable_targets_are_refused_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    targets = {
        tmp_path / "missing" / "x.txt": "No such file",
        tmp_path / "file" / "x.txt": "Not a directory|No such file",
        tmp_path / "folder": "folder is a folder",
        tmp_path / ("x" * 300): "too long",
    }
    for target, reason in targets.items():
        with pytest.raises(OutputError, match=f" cannot be written: .*({reason}).*Choose an existing folder"):
            write_text_atomically(target, "text")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_progress_counts_the_tensors(tmp_path):
    steps = []
    write_safetensors_atomically(tmp_path / "x", TENSORS, {}, on_progress=lambda *step: steps.append(step))
    assert steps == [(done, len(TENSORS)) for done in range(1, len(TENSORS) + 1)]


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


NO_FILES = {
    "missing": (lambda path: None, "There is no file"),
    "folder": (lambda path: path.mkdir(), "is a folder, not a file"),
    "pipe": (os.mkfifo, "is a named pipe, not a file"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "socket": (make_socket, "is a socket, not a file"),
    "endless": (lambda path: path.write_text("x" * 101), "has more than 100 bytes"),
    "not text": (lambda path: path.write_bytes(b"ab\xff"), r"is not UTF-8 text \(invalid start byte at byte 2\)"),
}


@pytest.mark.parametrize(("make", "message"), NO_FILES.values(), ids=NO_FILES)
def test_only_regular_files_of_bounded_text_are_read(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 characters
    make(Path("x"))
    with pytest.raises(FileError, match=message):
        read_text(Path("x"), limit=100)


def laughs(opening, closing, levels):
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {opening}{', '.join([f'*a{i - 1}'] * 9)}{closing}" for i in range(1, levels)]
    return "\n".join(lines)


BAD_YAML = {
    "alias lists": (laughs("[", "]", 99), "more than 5,000 values with aliases written out"),
    "merge keys": (laughs("{<<: [", "]}", 99), "more than 5,000 values with aliases written out"),
    "itself": ("&a [*a]", "a value that contains itself"),
    "many values": ("- x\n" * 6_000, "more than 5,000 values"),
    "lists": ("a: " + "[" * 200 + "]" * 200, "nested more than 50 deep"),
    "hexadecimal": (f"a: 0x{'f' * 4_000}", "an integer of more than 64 bits"),
    "hexadecimal key": (f"? 0x{'f' * 4_000}\n: a", "an integer of more than 64 bits"),
    "decimal": (f"a: {'9' * 4_301}", "not usable YAML"),
    "date": ("a: 2001-99-99", "month must be in 1..12"),
    "tagged timestamp": ("a: !!timestamp x", "not usable YAML"),
    "tagged truth": ("a: !!bool maybe", "not usable YAML"),
    "tagged number": ("a: !!int ''", "not usable YAML"),
    "code": ("a: !!python/object/apply:os.system ['true']", "not usable YAML"),
    "control characters": ("\x00\x01", "not usable YAML"),
}


@pytest.mark.parametrize(("text", "message"), BAD_YAML.values(), ids=BAD_YAML)
def test_yaml_that_would_exhaust_or_break_its_reader_is_refused(text, message):
    with pytest.raises(FileError, match=rf"a\.yaml .*{message}"):
        parse_yaml(text, "a.yaml")


def test_ordinary_yaml_is_read_with_aliases_and_merge_keys():
    text = "a: &a {x: 1}\nb: {<<: *a, y: [*a, 2.5, true, ~]}\n"
    assert parse_yaml(text, "") == {"a": {"x": 1}, "b": {"x": 1, "y": [{"x": 1}, 2.5, True, None]}}
    assert parse_yaml("# only a comment\n", "") is None


BAD_JSON = {
    "deep": ("[" * 900_000, "recursion"),
    "deeper than others walk": ("[" * 60 + "]" * 60, "nested more than 50 deep"),
    "digits": ("1" * 4_301, "4300 digits"),
    "fewer digits": ('{"a": 1' + "0" * 20 + "}", "an integer of more than 64 bits"),
    "cut off": ('{"a": ', "Expecting value"),
}


@pytest.mark.parametrize(("text", "message"), BAD_JSON.values(), ids=BAD_JSON)
def test_json_that_would_break_its_reader_is_refused(text, message):
    with pytest.raises(FileError, match=message):
        parse_json(text, "a.json")
