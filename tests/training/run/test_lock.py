"""One run folder, one run: a second process is refused, and a dead one is no obstacle."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorweb_core.console import EXIT_ERROR
from training.run.lock import run_lock
from training.run.signals import EXIT_STOPPED

ROOT = Path(__file__).parents[3]


@pytest.fixture
def start():
    """A function: arguments → a running `training.train`; what still runs after the test is killed."""
    started = []

    def start(*arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "training.train", "--config", "tiny.yaml", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def _wait_for_a_checkpoint(process, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("step-*")}
    while {path: path.stat().st_mtime_ns for path in folder.glob("step-*")} == before:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)


def test_second_process_is_refused_a_killed_one_is_replaced_and_a_stopped_one_has_a_code_of_its_own(
    tiny_config, tiny_overrides, start
):
    folder = tiny_config().run_folder
    endless = tiny_overrides("run.steps=100000", "checkpoint.every=1", "data.workers=1")
    first = start(*endless)
    _wait_for_a_checkpoint(first, folder / "checkpoints")
    second = start(*endless, "--resume", "latest")
    output, _ = second.communicate(timeout=100)
    assert second.returncode == EXIT_ERROR, output[-3000:]
    assert f"Process {first.pid} on host {socket.gethostname()} is training in {folder}" in output
    assert first.poll() is None
    first.kill()
    first.wait()
    third = start(*endless, "--resume", "latest")
    _wait_for_a_checkpoint(third, folder / "checkpoints")
    third.send_signal(signal.SIGTERM)
    output, _ = third.communicate(timeout=100)
    assert third.returncode == EXIT_STOPPED == 3, output[-3000:]
    assert "continue with --resume latest" in output
    assert (folder / "run.lock").read_text() == ""


def test_lock_of_another_host_is_refused_until_it_is_removed(tmp_path):
    lock = tmp_path / "run.lock"
    lock.write_text("node7 123")
    with pytest.raises(ValueError, match=rf"Process 123 on host node7 .*delete {lock}"), run_lock(tmp_path):
        pass
    lock.unlink()
    with run_lock(tmp_path):
        assert lock.read_text() == f"{socket.gethostname()} {os.getpid()}"


@pytest.mark.parametrize("text", ["", "garbage", "9" * 4000])
def test_lock_that_names_no_host_is_taken(tmp_path, text):
    (tmp_path / "run.lock").write_text(text)
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("is_alive", [True, False])
def test_without_locks_in_the_file_system_the_process_decides(tmp_path, monkeypatch, is_alive):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    other = subprocess.Popen(["sleep", "100"])
    (tmp_path / "run.lock").write_text(f"{socket.gethostname()} {other.pid}")
    if not is_alive:
        other.kill()
        other.wait()
    try:
        with run_lock(tmp_path):
            assert not is_alive
    except ValueError as error:
        assert is_alive
        assert f"Process {other.pid}" in str(error)
    finally:
        other.kill()


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"file/run cannot be written.*run\.folder"),
        run_lock(tmp_path / "file" / "run"),
    ):
        pass
