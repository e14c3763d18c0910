"""Every mistake that a basis file can have: one message of three parts, and never anything but a `LoRWeBError`."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from lorweb_core.checkpoint import load_basis
from lorweb_core.errors import CheckpointError, LoRWeBError
from tests.basis_files import reference_tensors, split_raw, write_raw, write_reference
from tests.synthetic import SIZES

FIRST = next(iter(SIZES))
DOUBLE = {name: tensor.double() for name, tensor in reference_tensors().items()}


def without(*endings):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(endings)}


def reshaped(name, *shape):
    return lambda tensors: tensors | {f"transformer.{FIRST}.{name}": torch.ones(*shape)}


def with_number(name, number):
    def change(tensors):
        changed = tensors[f"transformer.{FIRST}.{name}"].clone()
        changed.view(-1)[-1] = number
        return tensors | {f"transformer.{FIRST}.{name}": changed}

    return change


ORDINARY = {f"transformer.{FIRST}.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
BAD_TENSORS = {
    "ordinary LoRA": (lambda _: ORDINARY, r"got an ordinary LoRA in bad.safetensors .*lora_A.weight.*LoRA loader"),
    "kohya LoRA": (lambda _: {"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, "got an ordinary LoRA"),
    "a model": (lambda _: {f"w{i}": torch.ones(2) for i in range(5)}, r"got 5 other tensors .*\(w0, w1, w2, …\)"),
    "no tensor": (lambda _: {}, "got no tensor"),
    "extra tensors": (
        lambda tensors: tensors | {f"x{i}": torch.ones(1) for i in range(4)},
        r"only tensors of a LoRWeB basis .*4 layers matched.*got 4 unexpected \(x0, x1, x2, …\)",
    ),
    "no prefix": (
        lambda tensors: {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()},
        "got 16 other tensors",
    ),
    "no keys": (without(".lora_keys"), r"got 4 missing \(transformer.*lora_keys, .*, …\)"),
    "one lora_B missing": (without(f"{FIRST}.lora_B"), rf"got 1 missing \(transformer.{FIRST}.lora_B\)"),
    "one projection missing": (
        without(f"{FIRST}.att_lora_to_q.weight"),
        r"query embeddings of width 18; got another width in 1 of 4 .*to_q\); 1 of them have no att_lora_to_q.weight",
    ),
    "query widths": (
        reshaped("att_lora_to_q.weight", 8, 9),
        rf"width 18; got another width in 1 of 4 layers \({FIRST}\)\.",
    ),
    "rank": (
        reshaped("lora_B", 4, 3, 12),
        rf"layer {FIRST} to have lora_B \[N,r,out\] with r = 2, as in lora_A; got \[4, 3, 12\]",
    ),
    "basis size": (reshaped("lora_keys", 5, 8), r"lora_keys \[N,K\] with N = 4, as in lora_A; got \[5, 8\]"),
    "key width": (reshaped("att_lora_to_q.weight", 7, 18), r"with K = 8, as in lora_keys; got \[7, 18\]"),
    "bias": (reshaped("lora_B_bias", 4, 11), r"with out = 12, as in lora_B; got \[4, 11\]"),
    "two-dimensional lora_A": (reshaped("lora_A", 12, 2), r"lora_A \[N,in,r\] without empty dimensions; got \[12, 2\]"),
    "empty": (reshaped("lora_A", 0, 12, 2), r"without empty dimensions; got \[0, 12, 2\]"),
    "NaN": (with_number("lora_A", float("nan")), rf"finite numbers in transformer.{FIRST}.lora_A; got 1 of 96 NaN"),
    "infinity": (with_number("lora_B", float("inf")), "finite numbers in .*lora_B; got 1 of 96"),
    "negative infinity": (with_number("lora_keys", -float("inf")), "finite numbers in .*lora_keys; got 1 of 32"),
    "NaN projection": (with_number("att_lora_to_q.weight", float("nan")), "finite numbers in .*to_q.weight; got 1"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors_are_refused(tmp_path, change, message):
    path = tmp_path / "bad.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(reference_tensors()).items()}, path)
    with pytest.raises(CheckpointError, match=message):
        load_basis(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_nan_and_infinity_are_found_in_every_dtype(tmp_path, dtype):
    for number in (float("nan"), float("inf"), -float("inf")):
        tensors = with_number("lora_A", number)(DOUBLE)
        with pytest.raises(CheckpointError, match=r"finite numbers .* 1 of 96"):
            load_basis(write_reference(tmp_path / "bad.safetensors", tensors, dtype=dtype))
    largest = with_number("lora_A", -torch.finfo(dtype).max)(DOUBLE)
    load_basis(write_reference(tmp_path / "good.safetensors", largest, dtype=dtype))


def test_integers_are_refused(tmp_path):
    tensors = reference_tensors()
    tensors[f"transformer.{FIRST}.lora_keys"] = torch.ones(4, 8, dtype=torch.int8)
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"floating-point tensors .*got 1 others \(.*lora_keys: I8\)"):
        load_basis(tmp_path / "bad.safetensors")


BAD_HEADER_KEYS = {
    "newer": ('{"format_version": 2}', "format_version 1 .*; got 2. It was written by a newer version; update"),
    "no version": ("{}", "format_version 1 .*; got None"),
    "text version": ('{"format_version": "1"}', "got '1'"),
    "no JSON": ("{", "a JSON object under the header key lorweb of .*; got '{'"),
    "a list": ("[1]", "a JSON object under the header key lorweb"),
    "deep": ("[" * 100_000, "a JSON object under the header key lorweb"),
    "other sizes": (
        '{"format_version": 1, "basis_size": 5}',
        "basis_size 5, as the header of .* says; got basis_size 4",
    ),
    "odd heads": ('{"format_version": 1, "heads": [1]}', "heads in the header of .* whole number"),
    "odd mode": ('{"format_version": 1, "query_mode": "paa\'b"}', "query_mode to be one of"),
}


@pytest.mark.parametrize(("text", "message"), BAD_HEADER_KEYS.values(), ids=BAD_HEADER_KEYS)
def test_bad_header_settings_are_refused(tmp_path, text, message):
    path = write_reference(tmp_path / "bad.safetensors", metadata={"lorweb": text})
    with pytest.raises(LoRWeBError, match=message):
        load_basis(path)


def write_start(content):
    return lambda path: path.write_bytes(content)


def write_torch_file(path):
    torch.save(reference_tensors(), path)


def write_old_torch_file(path):
    torch.save(reference_tensors(), path, _use_new_zipfile_serialization=False)


OTHER_FILES = {
    "torch zip": (write_torch_file, r"got a PyTorch pickle \(zip\) file. Pickles can run code and are never opened"),
    "old torch file": (write_old_torch_file, "got a PyTorch pickle file. Pickles can run code"),
    "pickle": (write_start(pickle.dumps({"a": 1}) + b" " * 99), "got a Python pickle file"),
    "empty": (write_start(b""), "got an empty file"),
    "eight bytes": (write_start(b"\x00" * 8), "got a file of 8 bytes"),
    "GGUF": (write_start(b"GGUF" + b"\x00" * 99), "got a GGUF file"),
    "LFS pointer": (write_start(b"version https://git-lfs.github.com/spec/v1\noid"), "got a Git LFS pointer"),
    "web page": (write_start(b"<!DOCTYPE html><html></html>" * 9), "got a web page. Download"),
    "other bytes": (write_start(b"\x89PNG\r\n\x1a\n" * 99), "got one said to be .* bytes long"),
    "folder": (lambda path: path.mkdir(), "got the folder .* Name the .safetensors file inside it"),
    "missing": (lambda path: None, "a readable .safetensors file at .*; got No such file"),
}


@pytest.mark.parametrize(("write", "message"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files_are_told_apart(tmp_path, write, message):
    path = tmp_path / "bad.safetensors"
    write(path)
    with pytest.raises(CheckpointError, match=message):
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


KEYS = f"transformer.{FIRST}.lora_keys"


def changed_entry(**fields):
    """Change fields of one tensor's entry."""
    return lambda header: header[KEYS].update(fields)


def shifted(start, end):
    """Move one tensor's offsets."""

    def change(header):
        offsets = header[KEYS]["data_offsets"]
        header[KEYS]["data_offsets"] = [offsets[0] + start, offsets[1] + end]

    return change


LYING_HEADERS = {
    "more numbers than bytes": (changed_entry(shape=[4, 9]), r"144 bytes for .*lora_keys \(F32 \[4, 9\]\); got .* 128"),
    "a wider dtype": (changed_entry(dtype="F64"), r"256 bytes for .*lora_keys \(F64 \[4, 8\]\)"),
    "an unknown dtype": (changed_entry(dtype="Q4"), r"floating-point tensors .*lora_keys: Q4"),
    "huge": (changed_entry(shape=[2**62, 2**62], data_offsets=[0, 2**62]), "bytes for .*lora_keys"),
    "negative": (changed_entry(shape=[-4, -8]), "dtype, shape and data_offsets of .*lora_keys"),
    "fractional": (changed_entry(shape=[4.0, 8.0]), "dtype, shape and data_offsets"),
    "true": (changed_entry(shape=[True, 32]), "dtype, shape and data_offsets"),
    "endless shape": (changed_entry(shape=[1] * 1000), "dtype, shape and data_offsets"),
    "backward": (changed_entry(data_offsets=[128, 0]), "dtype, shape and data_offsets"),
    "one offset": (changed_entry(data_offsets=[0]), "dtype, shape and data_offsets"),
    "no dtype": (lambda header: header[KEYS].pop("dtype"), "dtype, shape and data_offsets"),
    "text entry": (lambda header: header.update({KEYS: "x"}), "dtype, shape and data_offsets of .*; got 'x'"),
    "overlap": (shifted(-4, -4), "tensors that follow each other; got .*which overlaps the tensor before it"),
    "gap": (shifted(4, 4), "tensors that follow each other; got .*which leaves a gap before it"),
    "beyond the end": (shifted(10**9, 10**9), "tensors that follow each other"),
    "a tensor less": (
        lambda header: header.pop(max(header, key=lambda name: end_of(header[name]))),
        "bytes of tensors, as",
    ),
    "odd metadata": (lambda header: header.update(__metadata__={"a": 1}), "__metadata__ that maps names to strings"),
    "listed metadata": (lambda header: header.update(__metadata__=[1]), "__metadata__ that maps names to strings"),
}


def end_of(entry):
    return entry.get("data_offsets", [0, 0])[1]


@pytest.mark.parametrize(("change", "message"), LYING_HEADERS.values(), ids=LYING_HEADERS)
def test_lying_headers_are_refused(tmp_path, change, message):
    header, data = split_raw(write_reference(tmp_path / "good.safetensors"))
    change(header)
    with pytest.raises(CheckpointError, match=message):
        load_basis(write_raw(tmp_path / "bad.safetensors", header, data))


HEADER_TEXTS = {
    "a tensor twice": ('{"a": 1, "b": 2, "a": 1}', "each tensor once in the header; got a more than once"),
    "no JSON": ("{nonsense", "a header of JSON text"),
    "not UTF-8": (b"\xff\xfe{}", "a header of JSON text"),
    "deep": ("[" * 100_000, "a header of JSON text"),
    "a list": ("[]", "a header that maps names to tensors; got list"),
    "endless number": ('{"a": ' + "9" * 10_000 + "}", "a header of JSON text|dtype, shape and data_offsets"),
}


@pytest.mark.parametrize(("text", "message"), HEADER_TEXTS.values(), ids=HEADER_TEXTS)
def test_headers_that_are_no_headers_are_refused(tmp_path, text, message):
    with pytest.raises(CheckpointError, match=message):
        load_basis(write_raw(tmp_path / "bad.safetensors", text, b"\x00" * 64))


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    content = write_reference(tmp_path / "good.safetensors").read_bytes()
    path = tmp_path / "bad.safetensors"
    for length in [*range(0, 64), *range(64, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"Expected .*; got .*"):
            load_basis(path)


def test_a_file_with_bytes_at_its_end_is_refused(tmp_path):
    path = write_reference(tmp_path / "bad.safetensors")
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(CheckpointError, match="bytes of tensors, as its header says"):
        load_basis(path)
