"""The command `lorweb`: one name for the trainer's commands and those of lorweb_core."""

import subprocess
import sys
from pathlib import Path

import pytest

from lorweb_core import command_line
from training.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]


def lorweb(*words):
    return subprocess.run(
        [sys.executable, "-m", "training", *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100
    )


@pytest.mark.parametrize("name", ["train", "prepare", "mix"])
def test_commands_of_both_packages_are_found_and_named_as_called(name):
    done = lorweb(name, "--help")
    assert (done.returncode, f"Usage: lorweb {name}" in done.stdout) == (0, True), done


def test_errors_keep_their_exit_code():
    done = lorweb("train", "--config", "absent.yaml")
    assert (done.returncode, "There is no file absent.yaml" in done.stderr) == (2, True), done


def test_all_commands_are_listed_and_an_unknown_one_is_an_error():
    for words, code in (((), 0), (("--help",), 0), (("trian",), 2)):
        done = lorweb(*words)
        assert done.returncode == code
        assert [name for name in (*COMMANDS, *command_line.COMMANDS) if f"\n  {name} " not in done.stdout] == []
    assert "no command 'trian'" in done.stderr


def test_a_package_without_the_demo_says_where_it_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lorweb", "demo"])
    for name in ("training.demo", "training.demo.__main__"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "training.demo", None)
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    assert capsys.readouterr().err == "The demo is only in the git repository.\n"
