"""Every error that a basis file can have: one message that names it, and never anything but a `LoRWeBError`."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from lorweb_core.checkpoint import load_basis
from lorweb_core.errors import CheckpointError, FileError, LoRWeBError
from tests.basis_files import reference_tensors, split_raw, write_raw, write_reference
from tests.synthetic import SIZES

FIRST = next(iter(SIZES))
DOUBLE = {name: tensor.double() for name, tensor in reference_tensors().items()}


def without(*endings):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}


def added(names):
    return lambda tensors: tensors | {name: torch.ones(4, 2, 2) for name in names}


def reshaped(name, *shape, dtype=torch.float32):
    return lambda tensors: tensors | {f"transformer.{FIRST}.{name}": torch.ones(*shape, dtype=dtype)}


def with_number(name, number):
    def change(tensors):
        changed = tensors[f"transformer.{FIRST}.{name}"].clone()
        changed.view(-1)[-1] = number
        return tensors | {f"transformer.{FIRST}.{name}": changed}

    return change


ORDINARY = {f"transformer.{FIRST}.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
BAD_TENSORS = {
    "ordinary LoRA": (lambda _: ORDINARY, r"bad.safetensors is an ordinary LoRA \(.*lora_A.weight.*LoRA loader"),
    "kohya LoRA": (lambda _: {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, "is an ordinary LoRA"),
    "a model": (lambda _: {f"w{i}": torch.ones(2) for i in range(5)}, r"has 5 other tensors \(w0, w1, w2, …\)"),
    "no tensor": (lambda _: {}, "has no tensor"),
    "extra tensors": (
        added(["x0", "x1", "x2", "x3"]),
        r"4 unexpected .* \(x0, x1, x2, …\) beside those of 4 layers",
    ),
    "no layer name": (added(["transformer.lora_A"]), r"has 1 unexpected tensors \(transformer.lora_A\)"),
    "no prefix": (
        lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()},
        "has 16 other tensors",
    ),
    "no keys": (without(".lora_keys"), r"lacks 4 tensors \(transformer.*lora_keys, .*, …\)"),
    "one lora_B missing": (without(f"{FIRST}.lora_B"), rf"lacks 1 tensors \(transformer.{FIRST}.lora_B\)"),
    "one projection missing": (
        without(f"{FIRST}.att_lora_to_q.weight"),
        r"width 18, but 1 of 4 another \(.*to_q\), 1 of them without att_lora_to_q.weight",
    ),
    "query widths": (reshaped("att_lora_to_q.weight", 8, 9), rf"width 18, but 1 of 4 another \({FIRST}\)\."),
    "rank": (
        reshaped("lora_B", 4, 3, 12),
        rf"In layer {FIRST} of .*, lora_B is \[4, 3, 12\], not \[N, r, out\] with r = 2 as in lora_A\.",
    ),
    "basis size": (reshaped("lora_keys", 5, 8), r"lora_keys is \[5, 8\], not \[N, K\] with N = 4 as in lora_A"),
    "key width": (reshaped("att_lora_to_q.weight", 7, 18), r"is \[7, 18\], not .* with K = 8 as in lora_keys"),
    "bias": (reshaped("lora_B_bias", 4, 11), r"is \[4, 11\], not .* with out = 12 as in lora_B"),
    "two-dimensional lora_A": (reshaped("lora_A", 12, 2), r"lora_A is \[12, 2\], not \[N, in, r\]\."),
    "empty": (reshaped("lora_A", 0, 12, 2), r"is \[0, 12, 2\], not"),
    "integers": (
        reshaped("lora_keys", 4, 8, dtype=torch.int8),
        r"has 1 tensors that are not floating-point numbers \(.*lora_keys: I8\)",
    ),
    "NaN": (with_number("lora_A", float("nan")), rf"1 of 96 numbers of transformer.{FIRST}.lora_A are NaN or"),
    "infinity": (with_number("lora_B", float("inf")), "1 of 96 numbers of .*lora_B"),
    "negative infinity": (with_number("lora_keys", -float("inf")), "1 of 32 numbers of .*lora_keys"),
    "NaN projection": (with_number("att_lora_to_q.weight", float("nan")), "1 of .* numbers of .*to_q.weight"),
}


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors_are_refused(tmp_path, change, message):
    path = tmp_path / "bad.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(reference_tensors()).items()}, path)
    with pytest.raises(CheckpointError, match=message):
        load_basis(path)


@pytest.mark.parametrize("shape", [[0, 2**63, 1], [0, 2**62, 4], [1] * 10_000], ids=["63 bits", "62 bits", "long"])
def test_shapes_that_no_tensor_can_have_are_refused_with_a_short_message(tmp_path, shape):
    name = f"transformer.{FIRST}.lora_A"
    header, data = split_raw(write_reference(tmp_path / "bad.safetensors", without(name)(reference_tensors())))
    extra = b"" if 0 in shape else bytes(4)
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(extra)]}
    with pytest.raises(CheckpointError, match=rf"lora_A is \[{shape[0]}, .*, not \[N, in, r\]") as caught:
        load_basis(write_raw(tmp_path / "bad.safetensors", header, data + extra))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_nan_and_infinity_are_found_in_every_dtype(tmp_path, dtype):
    for number in (float("nan"), float("inf"), -float("inf")):
        tensors = with_number("lora_A", number)(DOUBLE)
        with pytest.raises(CheckpointError, match="1 of 96 numbers"):
            load_basis(write_reference(tmp_path / "bad.safetensors", tensors, dtype=dtype))
    largest = with_number("lora_A", -torch.finfo(dtype).max)(DOUBLE)
    load_basis(write_reference(tmp_path / "good.safetensors", largest, dtype=dtype))


BAD_HEADER_KEYS = {
    "newer": ('{"format_version": 2}', "format_version 2, and this version reads up to 1. Update"),
    "no version": ("{}", "lorweb of bad.safetensors has no format_version: '{}'"),
    "text version": ('{"format_version": "1"}', "has no format_version"),
    "no JSON": ("{", "The header key lorweb of bad.safetensors is not usable JSON"),
    "a list": ("[1]", "has no format_version"),
    "deep": ("[" * 100_000, "is not usable JSON"),
    "odd heads": ('{"format_version": 1, "heads": [1]}', r"the header of bad.safetensors: heads is \[1\]"),
    "odd mode": ('{"format_version": 1, "query_mode": "paa\'b"}', "query_mode is .*. Known are"),
}


@pytest.mark.parametrize(("text", "message"), BAD_HEADER_KEYS.values(), ids=BAD_HEADER_KEYS)
def test_bad_header_settings_are_refused(tmp_path, text, message):
    path = write_reference(tmp_path / "bad.safetensors", metadata={"lorweb": text})
    with pytest.raises(LoRWeBError, match=message):
        load_basis(path)


def write_start(content):
    return lambda path: path.write_bytes(content)


OTHER_FILES = {
    "torch zip": (
        lambda path: torch.save({}, path),
        r"is a PyTorch pickle \(zip\). Pickles can run code and are never opened",
    ),
    "old torch file": (
        lambda path: torch.save(reference_tensors(), path, _use_new_zipfile_serialization=False),
        "is a PyTorch pickle. Pickles can run code",
    ),
    "pickle": (write_start(pickle.dumps({"a": 1}) + b" " * 99), "is a Python pickle"),
    "empty": (write_start(b""), "it is empty"),
    "eight bytes": (write_start(b"\x00" * 8), "is not a whole .safetensors file"),
    "GGUF": (write_start(b"GGUF" + b"\x00" * 99), "is a GGUF file"),
    "LFS pointer": (write_start(b"version https://git-lfs.github.com/spec/v1\noid"), "is a Git LFS pointer"),
    "web page": (write_start(b"<!DOCTYPE html><html></html>" * 9), "is a web page. Download"),
    "other bytes": (write_start(b"\x89PNG\r\n\x1a\n" * 99), "is not a whole .safetensors file"),
    "folder": (lambda path: path.mkdir(), "is a folder, not a file"),
    "pipe": (os.mkfifo, "is a named pipe, not a file"),
    "missing": (lambda path: None, "There is no file"),
}


@pytest.mark.parametrize(("write", "message"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_kinds_of_files_are_recognized_and_refused(tmp_path, write, message):
    path = tmp_path / "bad.safetensors"
    write(path)
    with pytest.raises((CheckpointError, FileError), match=message):
        load_basis(path)


def test_a_pickle_is_never_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = tmp_path / "bad.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError):
        load_basis(path)
    assert not (tmp_path / "executed").exists()


DAMAGED = r"bad.safetensors is not a whole .safetensors file: .+\. It is damaged, was cut off"
KEYS = f"transformer.{FIRST}.lora_keys"


def changed_entry(**fields):
    """Change fields of one tensor's entry."""
    return lambda header: header[KEYS].update(fields)


def shifted(start, end):
    """Move one tensor's offsets."""
    return lambda header: header[KEYS].update(
        data_offsets=[offset + by for offset, by in zip(header[KEYS]["data_offsets"], (start, end), strict=True)]
    )


LYING_HEADERS = {
    "more numbers than bytes": changed_entry(shape=[4, 9]),
    "a wider dtype": changed_entry(dtype="F64"),
    "an unknown dtype": changed_entry(dtype="Q4"),
    "huge": changed_entry(shape=[2**62, 2**62], data_offsets=[0, 2**62]),
    "negative": changed_entry(shape=[-4, -8]),
    "fractional": changed_entry(shape=[4.0, 8.0]),
    "true": changed_entry(shape=[True, 32]),
    "endless shape": changed_entry(shape=[1] * 1000),
    "backward": changed_entry(data_offsets=[128, 0]),
    "one offset": changed_entry(data_offsets=[0]),
    "no dtype": lambda header: header[KEYS].pop("dtype"),
    "text entry": lambda header: header.update({KEYS: "x"}),
    "overlap": shifted(-4, -4),
    "gap": shifted(4, 4),
    "beyond the end": shifted(10**9, 10**9),
    "a tensor less": lambda header: header.pop(max(header, key=lambda name: header[name].get("data_offsets", [0]))),
    "odd metadata": lambda header: header.update(__metadata__={"a": 1}),
    "listed metadata": lambda header: header.update(__metadata__=[1]),
}


@pytest.mark.parametrize("change", LYING_HEADERS.values(), ids=LYING_HEADERS)
def test_lying_headers_are_refused(tmp_path, change):
    header, data = split_raw(write_reference(tmp_path / "good.safetensors"))
    change(header)
    with pytest.raises(CheckpointError, match=DAMAGED):
        load_basis(write_raw(tmp_path / "bad.safetensors", header, data))


HEADER_TEXTS = ['{"a": 1, "b": 2, "a": 1}', "{nonsense", b"\xff\xfe{}", "[" * 100_000, "[]", f'{{"a": {"9" * 10_000}}}']


@pytest.mark.parametrize("text", HEADER_TEXTS, ids=range(len(HEADER_TEXTS)))
def test_headers_that_are_no_headers_are_refused(tmp_path, text):
    with pytest.raises(CheckpointError, match=DAMAGED):
        load_basis(write_raw(tmp_path / "bad.safetensors", text, b"\x00" * 64))


def test_a_file_cut_off_anywhere_or_with_a_byte_too_many_is_refused(tmp_path):
    content = write_reference(tmp_path / "good.safetensors").read_bytes()
    path = tmp_path / "bad.safetensors"
    for length in [*range(0, 64), *range(64, len(content), 997), len(content) - 1, len(content) + 1]:
        path.write_bytes((content + b"\x00")[:length])
        with pytest.raises(CheckpointError, match=DAMAGED):
            load_basis(path)
