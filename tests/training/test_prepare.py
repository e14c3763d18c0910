"""`python -m training.prepare`, as a user calls it: from folders to an index, its check, its split."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.training.data.pair_images import paint, truncate, write_pair
from training.data.index import read_pairs
from training.prepare import main

COMMANDS = ("folders", "strips", "relation252k", "reference", "hf", "webdataset", "check", "split")


@pytest.fixture
def images(tmp_path):
    for task in ("night", "snow", "ink"):
        for number in range(4):
            seed = sum(map(ord, task)) + number
            write_pair(tmp_path / "data" / task, f"{number:04d}", seed, size=(256, 192))
    return tmp_path / "data"


@pytest.fixture
def index(images, capsys):
    """The index of these images; what its import printed is dropped."""
    assert prepare("folders", images, "--out", images / "pairs.jsonl") == 0
    capsys.readouterr()
    return images / "pairs.jsonl"


def prepare(*words):
    return main([str(word) for word in words])


def test_from_folders_to_a_split_index(images, capsys):
    index = images / "pairs.jsonl"
    assert prepare("folders", images, "--out", index) == 0
    assert capsys.readouterr().out == f"12 pair(s) in 3 task(s), 12 without a caption → {index}\n"
    assert prepare("check", index) == 0
    checked = capsys.readouterr().out
    assert "usable pairs: 12" in checked
    assert "pairs without a caption: 12" in checked
    assert "pairs per usable task: 4…4" in checked
    assert prepare("split", index, "--hold-out-tasks", "1", "--hold-out-pairs", "1") == 0
    assert "6 train pair(s), 6 val pair(s)" in capsys.readouterr().out
    records = read_pairs(index)
    assert sorted(Counter(r.task for r in records if r.split == "val").values()) == [1, 1, 4]


def test_names_of_files_neither_steer_the_terminal_nor_forge_a_line(tmp_path):
    evil = "x\x1b[2J\nERROR forged"
    for number in range(3):
        write_pair(tmp_path / evil, f"{evil}{number}", number)
        write_pair(tmp_path / "other", f"{number}", 10 + number)
    truncate(tmp_path / evil / f"{evil}0_after.png")
    write_pair(tmp_path / evil, "lone", 9)[0].unlink()
    index = tmp_path / "pairs.jsonl"
    command = [sys.executable, "-m", "training.prepare"]
    words = (
        ["folders", tmp_path, "--out", index],
        ["check", index],
        ["split", index, "--hold-out-tasks", evil],
        ["check", tmp_path / evil],
    )
    for line in words:
        done = subprocess.run([*command, *line], capture_output=True, text=True)
        printed = done.stdout + done.stderr
        assert "x\\x1b[2J" in printed, printed
        assert "\x1b" not in printed and "\nERROR forged" not in printed, printed


def test_named_tasks_are_held_out_to_another_file(index, capsys):
    before = index.read_bytes()
    other = ("--out", index.with_name("split.jsonl"), "--split", "test")
    assert prepare("split", index, *other, "--hold-out-tasks", "ink", "--hold-out-tasks", "snow") == 0
    assert "held-out tasks: ink, snow" in capsys.readouterr().out
    assert index.read_bytes() == before
    assert prepare("split", index, "--hold-out-tasks", "inc") == 2
    assert "Did you mean 'ink'?" in capsys.readouterr().err


def test_broken_pairs_are_not_the_ones_held_out(index, capsys):
    whole = index.with_name("whole.jsonl")
    prepare("split", index, "--hold-out-pairs", "1", "--out", whole)
    first = [r for r in read_pairs(whole) if r.split == "val"]
    for record in first:
        record.after.write_bytes(b"no image any more")
    assert prepare("split", index, "--hold-out-pairs", "1") == 0
    assert "not chosen: 3 pair(s) that cannot be used" in capsys.readouterr().err
    second = read_pairs(index)
    assert len(second) == 12
    held = [r for r in second if r.split == "val"]
    assert sorted(r.task for r in held) == ["ink", "night", "snow"]
    assert not {r.id for r in held} & {r.id for r in first}


def test_the_check_lists_and_writes_the_good_rest(images, index, capsys):
    good = images / "good.jsonl"
    truncate(images / "ink" / "0002_after.png")
    assert prepare("check", index, "--good", good) == 1
    out = capsys.readouterr().out
    assert f"error: {images / 'ink' / '0002_after.png'}: damaged: " in out
    assert "1 problem(s): 1 × damaged (error)" in out
    assert len(read_pairs(good)) == 11
    assert prepare("check", good) == 0
    assert prepare("check", index, "--quick") == 0


def test_a_small_task_is_not_split_and_a_pair_that_is_merely_left_out_is_no_failure(images, capsys):
    index = images / "pairs.jsonl"
    for numbers in ((2, 3), (1,)):
        for number in numbers:
            for side in ("before", "after"):
                (images / "ink" / f"{number:04d}_{side}.png").unlink()
        prepare("folders", images, "--out", index)
        capsys.readouterr()
        if len(numbers) == 2:
            assert prepare("split", index, "--hold-out-pairs", "1") == 0
            assert "nothing to spare in 1 task(s), the first is ink" in capsys.readouterr().err
    assert prepare("check", index) == 0
    out = capsys.readouterr().out
    assert "left out: ink: few-pairs: an analogy needs two pairs" in out
    assert "usable pairs: 8" in out


def test_the_check_prints_json(images, index, capsys):
    (images / "snow" / "0000_before.png").unlink()
    assert prepare("check", index, "--json") == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["pairs"], printed["usable pairs"], printed["tasks"]) == (12, 11, 3)
    (problem,) = printed["problems"]
    assert (problem["kind"], problem["severity"], problem["pair_id"]) == ("missing", "error", "snow/0000")


def test_an_import_lists_bad_files_and_stop_writes_nothing(images, capsys):
    (images / "ink" / "0001_before.png").write_bytes(b"x")
    index = images / "pairs.jsonl"
    assert prepare("folders", images, "--out", index, "--on-bad-data", "stop") == 2
    error = capsys.readouterr().err
    assert "0001_before.png (unreadable" in error
    assert error.count("\n") == 1
    assert not index.exists()
    assert prepare("folders", images, "--out", index) == 0
    printed = capsys.readouterr()
    assert "error: " in printed.err
    assert printed.out.startswith("11 pair(s)")


def test_strips_and_relation252k_are_commands(tmp_path):
    group = tmp_path / "R" / "7-Ink" / "Group1"
    group.mkdir(parents=True)
    for number in range(2):
        paint(number, size=(128, 64)).save(group / f"{number}.png")
    labels = [{"img_name": f"{number}.png", "edit_instruction": "ink it"} for number in range(2)]
    (group / "labels.json").write_text(json.dumps(labels))
    assert prepare("relation252k", tmp_path / "R", "--out", tmp_path / "a.jsonl") == 0
    assert prepare("strips", group, "--task", "ink", "--out", tmp_path / "b.jsonl") == 0
    first, second = (read_pairs(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    assert [r.sha256 for r in first] == [r.sha256 for r in second]
    assert (first[0].caption, second[0].task) == ("ink it", "ink")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("folders", "{tmp}/nothing", "--out", "{tmp}/x.jsonl"), "a folder with"),
        (("folders", "{tmp}/empty", "--out", "{tmp}/x.jsonl"), "no usable images"),
        (("folders", "{tmp}/data", "--out", "{tmp}/no/such/pairs.jsonl"), "pairs.jsonl"),
        (("check", "{tmp}/nothing.jsonl"), "There is no file"),
        (("webdataset", "{tmp}/empty", "--images", "{tmp}/p", "--out", "{tmp}/x.jsonl"), "tar file"),
        (("reference", "{tmp}/empty", "--images", "{tmp}/p", "--out", "{tmp}/x.jsonl"), "control"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(tmp_path, images, capsys, words, message):
    (tmp_path / "empty").mkdir()
    assert prepare(*(word.format(tmp=tmp_path) for word in words)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command, capsys):
    assert prepare(command, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"example: python -m training.prepare {command} " in text


@pytest.mark.parametrize("words", [[], ["folder"], ["check"], ["split", "x", "--hold-out-pairs", "-1"]])
def test_unknown_words_end_with_code_2(words):
    assert prepare(*words) == 2


def test_a_terminal_without_some_characters_gets_others_and_nothing_fails(images):
    (images / "ink").rename(images / "雪 é")
    (images / "雪 é" / "0001_before.png").write_bytes(b"no image")
    index = images / "pairs.jsonl"
    imported = in_code_page("folders", str(images), "--out", str(index))
    assert imported.returncode == 0
    assert imported.stdout == f"11 pair(s) in 3 task(s), 11 without a caption ? {index}\n"
    assert "0001_before.png: unreadable" in imported.stderr
    prepare("split", index, "--hold-out-tasks", "雪 é")
    checked = in_code_page("check", str(index), "--json")
    assert json.loads(checked.stdout)["held-out tasks"] == ["雪 é"]


def in_code_page(*words):
    """`training.prepare` in a process of its own, as under Windows or with its output redirected there."""
    command = [sys.executable, "-m", "training.prepare", *words]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    return subprocess.run(command, env=environment, capture_output=True, encoding="cp1252", check=False)
