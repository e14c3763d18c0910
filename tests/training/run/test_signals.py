"""Real processes, stopped by real signals where a step's end cannot be waited for: each ends within 10 seconds."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from training.run import signals
from training.run.checkpoints import list_checkpoints
from training.run.signals import EXIT_STOPPED
from training.train import train

ROOT = Path(__file__).parents[3]
NAMES = ("SIGINT", "SIGTERM")


def _stop(overrides, *, at, name, after=1.0, **environment):
    """Start a run, signal it `after` seconds from the log line `at`; returns (exit code, seconds to its end, log)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "training.train", "--config", "tiny.yaml", *overrides], cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = ""
    try:
        for line in process.stderr:
            log += line
            if at in line:
                break
        assert at in log, log
        time.sleep(after)
        os.kill(process.pid, getattr(signal, name))
        started = time.monotonic()
        log += process.communicate(timeout=60)[1]
        return process.returncode, time.monotonic() - started, log
    finally:
        process.kill()


@pytest.fixture
def many_prompts(tiny_parts, tiny_overrides, tmp_path):
    """Overrides of a run that takes minutes to encode its prompts, before the base is loaded."""
    rows = [json.loads(line) for line in (tiny_parts / "pairs.jsonl").read_text().splitlines()]
    many = [rows[n % len(rows)] | {"id": f"{n}", "caption": f"prompt {n}", "sha256": ""} for n in range(5000)]
    (tmp_path / "many.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in many))
    (tmp_path / "images").symlink_to(tiny_parts / "images")
    return tiny_overrides(
        f"data.index={tmp_path / 'many.jsonl'}", f"base.model={tiny_parts / 'model-with-text'}",
        "text.caption_source=a", "text.max_tokens=512",
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_loading_ends_at_once(many_prompts, name):
    code, seconds, log = _stop(many_prompts, at="encoding", name=name)
    assert (code, seconds < 10) == (EXIT_STOPPED, True), log
    assert f"{name}: stopped before the first step was done" in log


def test_waiting_for_another_machine_ends_at_once(tiny_overrides):
    """The main thread is in foreign code then, where Python calls no handler."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29471"}
    code, seconds, log = _stop(tiny_overrides(), at="run folder", name="SIGTERM", **ranks)
    assert (code, seconds < 10) == (EXIT_STOPPED, True), log


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiling_the_first_graph_ends_at_once(tiny_config, tiny_overrides, tmp_path, name):
    overrides = ("base.compile=true",)
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    code, seconds, log = _stop(tiny_overrides(*overrides), at="compiles the blocks", name=name, after=4.0, **cache)
    assert (code, seconds < 10) == (EXIT_STOPPED, True), log
    assert list_checkpoints(tiny_config(*overrides).run_folder / "checkpoints") == [], log


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiling_a_later_graph_ends_at_once_and_saves(tiny_config, tiny_overrides, tmp_path, name):
    """A resumed run compiles validation's graph only after its first step: then what was trained is saved."""
    train(tiny_config("run.steps=1"))
    overrides = ("base.compile=true", "validation.every=1", "run.steps=9", "tracking.log_every=1")
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    resumed = (*tiny_overrides(*overrides), "--resume", "latest")
    code, seconds, log = _stop(resumed, at="step 2/9", name=name, after=4.0, **cache)
    assert (code, seconds < 10) == (EXIT_STOPPED, True), log
    assert "validation at step 2" not in log
    saved = list_checkpoints(tiny_config().run_folder / "checkpoints")
    assert [path.name for path in saved] == ["step-000000001", "step-000000002"], log


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_python_drops_in_a_callback_of_the_compiler_is_raised_again(monkeypatch):
    """The compiler holds its state in weak references, whose callbacks swallow every exception."""
    monkeypatch.setattr(signals, "_SECONDS_TO_LEAVE", 0.2)
    monkeypatch.setattr(signals.CompileContext, "try_get", lambda: "compiling")
    with signals.listen_for_signals() as stop:
        stop.has_stepped = True
        key = type("Key", (), {})()
        dropped = weakref.ref(key, lambda _: signal.raise_signal(signal.SIGTERM))
        del key
        assert dropped() is None and stop.reason == "SIGTERM"
        with pytest.raises(signals.StoppedAtOnceError, match="SIGTERM: stopped compiling"):
            time.sleep(5)
        stop.leaves_compiler = False


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_step_is_saved(tiny_config, tiny_overrides, name):
    overrides = ("run.steps=100000", "tracking.log_every=1")
    code, _, log = _stop(tiny_overrides(*overrides), at="step 3/", name=name)
    assert code == EXIT_STOPPED, log
    assert len(list_checkpoints(tiny_config(*overrides).run_folder / "checkpoints")) > 0, log
