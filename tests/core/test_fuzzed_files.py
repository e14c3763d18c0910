"""Damaged and invented files of every kind that strangers send: each is read, or refused with a message, in bounds."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lorweb_core.checkpoint import load_basis
from lorweb_core.coefficients_file import METADATA_KEY, load_coefficients
from lorweb_core.command_line import main as core_main
from lorweb_core.errors import LoRWeBError
from tests.basis_files import write_raw, write_reference
from tests.synthetic import SIZES

FIRST = next(iter(SIZES))
TINY = {"sizes": {FIRST: (3, 3)}, "basis_size": 2, "key_dim": 2, "query_dim": 3}
REFERENCE_YAML = """job: extension
config:
  process:
    - network: &n
        linear: 1
        network_kwargs: {lora_heads: 1, lora_softmax: true, query_mode: cat-aa'b, loras_num: 2}
"""
CONFIG = "run: {name: a, steps: 10}\noptimizer:\n  learning_rate: 3e-4\ndata:\n  index: pairs.jsonl\n"
PAIR = {"id": "t/1", "task": "t", "before": "a.png", "after": "b.png", "width": 8, "height": 8, "split": "train"}
COEFFICIENTS = {"format_version": 1, "basis_id": "ab", "settings": {"basis_name": "x"}, "note": "hello"}
LABELS = '[{"image": "1.png", "prompt": "turn it"}, {"image_name": "2.png", "caption": "to gold"}]'
METADATA = '[{"analogy_id": "1", "edit_prompt": "turn it", "pair_A": "x", "pair_C": 3}]'


def trainer(module, read):
    """Return a reader that calls read(module of the trainer, path); tests skip where the trainer is not installed."""

    def read_with_module(path):
        return read(pytest.importorskip(f"training.{module}"), path)

    return read_with_module


def read_reply(questions, path):
    text = path.read_bytes().decode("utf-8", "replace")
    for kind in ("rating", "comparison"):
        try:
            questions.read_reply(kind, text)
        except questions.ReplyError as error:
            assert str(error)


def write_coefficients(path):
    save_file({FIRST: torch.ones(1, 2)}, path, {METADATA_KEY: json.dumps(COEFFICIENTS)})


def write(text):
    return lambda path: path.write_text(text)


#: File name → how a good one is written, and what reads it; a `basis.safetensors` lies beside.
KINDS = {
    "other.safetensors": (lambda path: write_reference(path, **TINY), load_basis),
    "basis.yaml": (write(REFERENCE_YAML), lambda path: load_basis(path.with_name("basis.safetensors"))),
    "given.yaml": (
        write("activation: tanh\nheads: 1\nencoder: {id: a/b, revision: c}\n"),
        lambda path: load_basis(path.with_name("basis.safetensors"), settings=path),
    ),
    "coefficients.safetensors": (write_coefficients, load_coefficients),
    "config.yaml": (write(CONFIG), trainer("config.reading", lambda reading, path: reading.read_config(path))),
    "pairs.jsonl": (
        write(f"{json.dumps(PAIR)}\n{json.dumps({**PAIR, 'id': '2'})}\n"),
        trainer("data.index", lambda index, path: index.read_pairs(path)),
    ),
    "task.toml": (
        write('caption = "gold"\nweight = 2.0\nsplit = "val"\n'),
        trainer("data.importers.folders", lambda folders, path: folders.read_task_settings(path)),
    ),
    "Group1/labels.json": (
        write(LABELS),
        trainer("data.importers.relation252k", lambda relation252k, path: relation252k.find_pairs(path.parents[1])),
    ),
    "analogy_metadata.json": (
        write(METADATA),
        trainer("data.importers.reference", lambda reference, path: reference._read_metadata(path.parent)),
    ),
    "answers.jsonl": (
        write('{"key": "a", "answer": "b"}\n{"key": [1], "answer": "b"}\n'),
        trainer("evaluation.folder", lambda folder, path: folder.Records(path, "key")),
    ),
    "reply.txt": (
        write('So: {"metrics": {"accuracy": 7, "consistency": 9}} and {"better": 2}'),
        trainer("evaluation.questions", read_reply),
    ),
}
#: What parsers of these formats are known to stumble over.
TOKENS = [
    *(b"[" * 3_000, b"{" * 300, b'{"a":' * 3_000, b"9" * 4_301, b"0x" + b"f" * 4_000, b"1e999", b"-1", b"0", b"NaN"),
    *(b"null", b"[]", b"{}", b"true", b'""', b'"\\ud800"', b"\xff", b"\x00", b"\r\n", b"\xef\xbb\xbf", b"2001-99-99"),
    *(b"!!bool x", b"!!int ''", b"!!timestamp x", b"!!binary x", b"!!set {}", b"&n ", b"*n", b"<<: *n\n", b"? ", b"- "),
    *(b": ", b"\n\n", b"a" * 300, b"extends: config.yaml\n", b"1:59:59", b".inf", b"~", b"'''"),
    *(b'"""', b"={a.b=", b"\\u0000"),
]


def damage(content, generator):
    """Return the bytes with a few flipped, cut, doubled, or replaced by what parsers stumble over."""
    damaged = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        position = generator.randrange(len(damaged) + 1)
        length = generator.randint(1, 20)
        match generator.randrange(5):
            case 0 if position < len(damaged):
                damaged[position] ^= 1 << generator.randrange(8)
            case 1:
                del damaged[position : position + length]
            case 2:
                damaged[position:position] = damaged[position : position + length]
            case 3:
                damaged[position : position + generator.choice((0, length))] = generator.choice(TOKENS)
            case 4:
                damaged[position : position + 1] = generator.choice(b'0123456789[]{},:"-.eEF').to_bytes(1, "big")
    return bytes(damaged)


def prepare(folder, name):
    """Write a basis and a good file of a kind into a folder; return its path and its reader."""
    write_reference(folder / "basis.safetensors", **TINY)
    write_good, read = KINDS[name]
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    write_good(path)
    return path, read


def read_or_refuse(read, path):
    started = time.process_time()
    try:
        read(path)
    except LoRWeBError as error:
        assert str(error)
    return time.process_time() - started


@pytest.mark.parametrize("count", [60, pytest.param(10_000 // len(KINDS) + 1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_good_files_are_read_and_damaged_files_are_read_or_refused(tmp_path, name, count):
    path, read = prepare(tmp_path, name)
    read(path)
    good = path.read_bytes()
    generator = random.Random(name)
    for _ in range(count):
        path.write_bytes(damage(good, generator))
        assert read_or_refuse(read, path) < 2, path.read_bytes()


def laughs(count):
    lines = ["a0: &a0 {x: 1}"]
    return "\n".join(lines + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, count)])


#: Texts of at most 1 MB.
BOMBS = {
    "alias lists": "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]" for i in range(1, 900)),
    "merge keys": laughs(900),
    "few merge keys": laughs(7),
    "deep lists": "[" * 1_000_000,
    "deep objects": '{"a":' * 200_000,
    "closed lists": "[" * 500_000 + "]" * 500_000,
    "empty lists": "[" + "[]," * 330_000 + "[]]",
    "empty objects": "[" + "{}," * 330_000 + "{}]",
    "keys": "{" + ",".join(f'"k{i}": 1' for i in range(70_000)) + "}",
    "yaml keys": "\n".join(f"k{i}: 1" for i in range(5_000)),
    "few yaml keys": "\n".join(f"k{i}: 1" for i in range(2_000)),
    "dotted keys": ".".join("a" * 25_000) + " = 1",
    "digits": '{"better": ' + "9" * 999_000 + "}",
    "hexadecimal": "heads: 0x" + "f" * 49_000,
    "sexagesimal": "heads: 1" + ":59" * 16_000,
    "lines": "x\n" * 500_000,
    "empty lines": "\n" * 1_000_000,
    "pairs": (json.dumps(PAIR) + "\n") * 8_000,
    "zeros": "\x00" * 1_000_000,
}


def report_bombs(folder):
    """Read every bomb as every kind and print the worst time and memory; for a process of its own."""
    import resource

    def peak_mb():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    for name in KINDS:
        own = folder / name.replace("/", "-")
        own.mkdir()
        path, read = prepare(own, name)
        try:
            read_or_refuse(read, path)
        except pytest.skip.Exception:
            print(json.dumps([name, "skipped", 0, 0]))
            continue
        before = peak_mb()
        for bomb, text in BOMBS.items():
            header = len(text).to_bytes(8, "little") if name.endswith(".safetensors") else b""
            path.write_bytes(header + text.encode())
            seconds = read_or_refuse(read, path)
            print(json.dumps([name, bomb, round(seconds, 2), peak_mb() - before]))


@pytest.mark.skipif(sys.platform == "win32", reason="measures memory with the resource module")
def test_no_file_of_a_megabyte_takes_more_than_two_seconds_or_300_megabytes(tmp_path):
    code = f"from tests.core.test_fuzzed_files import *; report_bombs(Path({str(tmp_path)!r}))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    skipped = sum(result[1] == "skipped" for result in results)
    assert len(results) == (len(KINDS) - skipped) * len(BOMBS) + skipped
    assert [result for result in results if result[2] > 2 or result[3] > 300] == []


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "F8_E4M3", "I8", "BOOL", "X"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=4) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | JSON_VALUES,
    }
)
FIELDS = st.sampled_from(["format_version", "heads", "activation", "reduction", "query_mode", "encoder", "rank"])
NAMES = st.sampled_from([f"transformer.{FIRST}.{part}" for part in ("lora_A", "lora_B", "lora_keys")]) | st.text()
ANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@ANY
@given(header=st.dictionaries(NAMES, ENTRY | JSON_VALUES, max_size=5) | JSON_VALUES, data=st.binary(max_size=64))
def test_any_header_loads_or_is_refused(tmp_path, header, data):
    read_or_refuse(load_basis, write_raw(tmp_path / "bad.safetensors", header, data))


@ANY
@given(fields=st.dictionaries(FIELDS, JSON_VALUES | st.sampled_from([1, "softmax", "mean", "caa'", {"id": "x"}])))
def test_any_settings_in_the_header_load_or_are_refused(tmp_path, fields):
    text = json.dumps({"format_version": 1} | fields)
    read_or_refuse(load_basis, write_reference(tmp_path / "bad.safetensors", metadata={"lorweb": text}))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices are POSIX")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
@pytest.mark.parametrize("name", [name for name in KINDS if name != "reply.txt"])
def test_pipes_and_devices_are_refused_or_skipped(tmp_path, name, make):
    path, read = prepare(tmp_path, name)
    path.unlink()
    make(path)
    read_or_refuse(read, path)


def test_command_lines_end_with_one_message_and_code_2(tmp_path, capsys):
    train_main = pytest.importorskip("training.train").main
    prepare_main = pytest.importorskip("training.prepare").main
    pipe, config, deep = tmp_path / "pipe.safetensors", tmp_path / "config.yaml", tmp_path / "pairs.jsonl"
    os.mkfifo(pipe)
    deep.write_text("[" * 2_000)
    for run, words, message in (
        (core_main, ["inspect", pipe], "is a named pipe, not a file"),
        (core_main, ["mix", pipe, "--coefficients", pipe, "-o", tmp_path / "o.safetensors"], "is a named pipe"),
        (train_main, ["--config", config, "run:\n  steps: 2001-99-99"], "month must be in 1..12"),
        (train_main, ["--config", config, f"run: [{'[' * 300}"], "nested more than 50 deep"),
        (train_main, ["--config", config, f"run:\n  steps: 0x{'f' * 4_000}"], "integer of more than 64 bits"),
        (prepare_main, ["check", deep], "it is not usable JSON: maximum recursion depth"),
    ):
        if run is train_main:
            config.write_text(words.pop())
        assert run([str(word) for word in words]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and "Traceback" not in captured.err


def test_a_pipe_among_the_captions_of_a_folder_is_left_out_with_a_warning(tmp_path):
    building = pytest.importorskip("training.data.importers.building")
    os.mkfifo(tmp_path / "0.txt")
    problems = []
    assert building.read_caption(tmp_path / "0.txt", problems) == ""
    assert "0.txt is a named pipe, not a file" in str(problems[0]) and problems[0].severity == "warning"


def test_a_number_of_4301_digits_in_a_reply_is_an_unreadable_reply():
    questions = pytest.importorskip("training.evaluation.questions")
    with pytest.raises(questions.ReplyError, match="there is no better"):
        questions.read_reply("comparison", '{"better": ' + "1" * 4_301 + "}")
    with pytest.raises(questions.ReplyError, match="more than 20000 characters"):
        questions.read_reply("comparison", '{"a": ' * 300_000 + '{"better": 2}')
    assert questions.read_reply("comparison", '{"a": ' * 1_000 + '{"better": 2}') == {"better": 2}
