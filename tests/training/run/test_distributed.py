"""Two processes under torchrun do what one does, and both hold the same weights."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.config.reading import read_config
from training.run.checkpoints import list_checkpoints, load_checkpoint
from training.train import EXIT_STOPPED, train

WORKER = Path(__file__).parent / "run_worker.py"
ROOT = Path(__file__).parents[3]


def _start(arguments, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes
    )


def _torchrun(folder, overrides, **variables):
    folder.mkdir()
    process = _start(
        ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone",
         str(WORKER), str(folder), *overrides],
        **variables,
    )  # fmt: skip
    output, _ = process.communicate(timeout=500)
    if process.returncode:
        raise RuntimeError(output[-6000:])
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def _trained(config):
    return load_checkpoint(list_checkpoints(config.run_folder / "checkpoints")[-1])["trained"]


def _metrics(config):
    return [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]


OPTIONS = ("run.steps=4", "tracking.log_every=1", "optimizer.learning_rate=1e-3")


@pytest.mark.parametrize(
    ("strategy", "size"),
    [
        ("ddp", 2),
        pytest.param("ddp", 4, marks=pytest.mark.slow),
        pytest.param("fsdp", 2, marks=pytest.mark.slow),
        pytest.param("fsdp", 4, marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one_and_each_other(tiny_config, tiny_overrides, tmp_path, strategy, size):
    """Both with a whole share per forward pass (4 samples) and with accumulation (twice 2)."""
    one = tiny_config(*OPTIONS, "run.name=one")
    single = train(one)
    options = (*OPTIONS, "run.name=two", f"run.micro_batch_size={size}", f"run.strategy={strategy}")
    checkpointing = {"GRADIENT_CHECKPOINTING": "1"} if size == 2 else {}
    ranks = _torchrun(tmp_path / "ranks", tiny_overrides(*options), **checkpointing)
    assert [facts["world_size"] for facts in ranks] == [2, 2]
    if strategy == "ddp":
        assert ranks[0]["wrapper"] == "DistributedDataParallel"
    else:  # each holds half of the frozen weights
        assert [facts["sharded_share"] for facts in ranks] == pytest.approx([0.5, 0.5], abs=0.02)
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["losses"] == pytest.approx(single.losses, abs=1e-6)
    norms = [[line["train/gradient_norm"] for line in _metrics(config)] for config in (one, tiny_config(*options))]
    assert len(norms[0]) == 4
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    first, second = _trained(one), _trained(tiny_config(*options))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1])
def test_out_of_memory_in_one_process_halves_the_micro_batch_of_all(tiny_config, tiny_overrides, tmp_path, first):
    """At once, or when the optimizer's moments have joined it after the first update."""
    one = tiny_config(*OPTIONS, "run.name=one")
    single = train(one)
    options = (*OPTIONS, "run.name=two")  # four samples a process, of which two fit at once in the second one
    faults = {"OUT_OF_MEMORY_ABOVE": "2", "OUT_OF_MEMORY_FROM": str(first)}
    ranks = _torchrun(tmp_path / "ranks", tiny_overrides(*options), **faults)
    assert [facts["micro_batch_size"] for facts in ranks] == [2, 2]
    assert ranks[0]["wrapper"] == "DistributedDataParallel"
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["losses"] == pytest.approx(single.losses, abs=1e-6)
    first, second = _trained(one), _trained(tiny_config(*options))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["shared", "disk-{rank}"])
def test_processes_share_the_work_of_filling_caches(tiny_config, tiny_overrides, tiny_parts, tmp_path, disk):
    """On one disk every prompt is encoded once; on disks of their own each process makes what it still lacks."""
    options = ("run.steps=2", "text.caption_source=a", f"base.model={tiny_parts / 'model-with-text'}")
    single = train(tiny_config(*options, "run.name=one"))
    cache = (f"data.cache={tmp_path / disk}", "run.name=two")
    ranks = _torchrun(tmp_path / "ranks", tiny_overrides(*options, *cache))
    assert ranks[0]["losses"] == pytest.approx(single.losses, abs=1e-5)
    first, second = (set(facts["encoded"]) for facts in ranks)
    assert all(len(facts["encoded"]) == len(set(facts["encoded"])) > 0 for facts in ranks)
    assert not first & second if disk == "shared" else first == second


@pytest.mark.slow
def test_machines_with_checkpoints_of_their_own_do_not_drift_apart(tiny_config, tiny_overrides, tmp_path):
    train(tiny_config("run.steps=1", f"run.folder={tmp_path / 'disk-0'}"))
    overrides = tiny_overrides("run.steps=3", f"run.folder={tmp_path / 'disk-{rank}'}")
    with pytest.raises(RuntimeError, match="a place that all machines share"):
        _torchrun(tmp_path / "ranks", overrides, RESUME="latest")


@pytest.mark.slow
def test_kill_at_random_points_costs_only_unsaved_steps(tiny_config, tiny_overrides):
    options = ("run.steps=30", "checkpoint.every=1", "run.seed=3")
    straight = tiny_config(*options, "run.name=straight")
    train(straight)
    killed = tiny_config(*options, "run.name=killed")
    command = ["-m", "training.train", "--config", "tiny.yaml", "--resume", "latest"]
    command += tiny_overrides(*options, "run.name=killed")
    checkpoints = killed.run_folder / "checkpoints"
    for delay in (0.0, 0.37, 0.11):
        process = _start(command)
        before = len(list_checkpoints(checkpoints)) and list_checkpoints(checkpoints)[-1].name
        while process.poll() is None and not _has_moved(checkpoints, before):
            time.sleep(0.02)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert list_checkpoints(checkpoints)
    process = _start(command)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    first, second = _trained(straight), _trained(killed)
    assert all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.slow
def test_signal_to_the_whole_group_saves_although_images_are_being_loaded(tiny_config, tiny_overrides):
    """Ctrl-C in a terminal and a scheduler's SIGTERM reach the loading processes too."""
    config = tiny_config("run.steps=100000", "checkpoint.every=1")
    command = ["-m", "training.train", "--config", "tiny.yaml"]
    process = _start([*command, *tiny_overrides("run.steps=100000", "checkpoint.every=1", "data.workers=2")])
    while process.poll() is None and not _has_moved(config.run_folder / "checkpoints", None):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED, output[-3000:]
    assert "SIGTERM: saving and stopping" in output
    assert "continue with --resume latest" in output


def test_lines_for_torchrun_in_the_readme_are_ones_that_it_understands():
    from torch.distributed.run import get_args_parser

    readme = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [
        line.partition("#")[0].split()[1:] for line in readme.splitlines() if line.strip().startswith("torchrun -")
    ]
    one_machine, two_machines = (get_args_parser().parse_args(line) for line in lines)
    assert one_machine.nnodes == "1:1"
    assert two_machines.rdzv_backend == "c10d"  # the default one wants a rank of each machine
    assert two_machines.nnodes == "2"
    for line, machines in ((one_machine, 1), (two_machines, 2)):
        config = read_config("paper.yaml", [word for word in line.training_script_args if "=" in word])
        assert config.run.batch_size % (machines * int(line.nproc_per_node)) == 0


@pytest.mark.slow
def test_torchrun_hands_on_the_warning_of_a_scheduler_as_the_readme_says(tiny_config, tiny_overrides):
    (words,) = re.findall(r"`(--signals-to-handle \S+)`", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"))
    checkpoints = tiny_config().run_folder / "checkpoints"
    options = tiny_overrides("run.steps=100000", "checkpoint.every=1")
    process = _start(
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words.split(),
         "-m", "training.train", "--config", "tiny.yaml", *options]
    )  # fmt: skip
    while process.poll() is None and not _has_moved(checkpoints, None):
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert "SIGUSR1: saving and stopping" in output
    assert "continue with --resume latest" in output


def _has_moved(checkpoints, before):
    found = sorted(path.name for path in checkpoints.glob("step-*")) if checkpoints.is_dir() else []
    return bool(found) and found[-1] != before
