"""The trainer on a CUDA device, `pytest -m gpu`: there it has to do what it does on the CPU, but for rounding.

Every run is a process of its own, since accelerate takes no second device in one process. Never part of `make test` or
`make test-all`: most machines that run these have no GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.run.checkpoints import list_checkpoints, load_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROOT = Path(__file__).parents[3]
ON_GPU = ("run.device=cuda", "run.steps=4", "validation.every=2", "validation.images=1")
TRAIN = """
import json, sys
from training.config.reading import read_config
from training.train import train

resume, *overrides = sys.argv[1:]
print(json.dumps(train(read_config("tiny.yaml", overrides), resume=resume or None).losses))
"""


def _start(*command):
    """Output of a Python process in the project's root; fails with its error."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def losses(tiny_overrides):
    """A function: overrides of tiny.yaml → the losses of that run, in a process of its own."""
    return lambda *more, resume="": json.loads(_start("-c", TRAIN, resume, *tiny_overrides(*more)).splitlines()[-1])


def _trained(config):
    return load_checkpoint(list_checkpoints(config.run_folder / "checkpoints")[-1])["trained"]


def test_a_run_on_the_gpu_is_that_on_the_cpu(losses):
    there = losses(*ON_GPU, "run.name=gpu")
    assert there == pytest.approx(losses(*ON_GPU, "run.device=cpu", "run.name=cpu"), rel=1e-3)


def test_a_resumed_run_on_the_gpu_continues_as_the_straight_one(losses, tiny_config):
    straight = (*ON_GPU, "run.name=straight")
    losses(*straight)
    resumed = (*ON_GPU, "run.name=resumed", "checkpoint.every=2", "checkpoint.keep=9")
    losses(*resumed)
    first = list_checkpoints(tiny_config(*resumed).run_folder / "checkpoints")[0]
    losses(*resumed, resume=str(first))
    before, after = _trained(tiny_config(*straight)), _trained(tiny_config(*resumed))
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-5


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_small_bases_train_with_eight_bit_states(losses, quantize):
    found = losses(*ON_GPU, f"base.quantize={quantize}", "base.dtype=bfloat16", "optimizer.name=adamw8bit")
    assert len(found) == 4
    assert all(torch.isfinite(torch.tensor(found)))


def test_a_compiled_base_trains_as_the_plain_one(losses):
    compiled = losses(*ON_GPU, "run.name=compiled", "base.compile=true")
    assert compiled == pytest.approx(losses(*ON_GPU, "run.name=plain"), rel=1e-3)


def test_caches_of_everything_are_filled_and_used(losses, tiny_parts, tmp_path):
    options = (
        f"base.model={tiny_parts / 'model-with-text'}", "text.caption_source=a", f"data.cache={tmp_path / 'cache'}",
        "data.workers=2",
    )  # fmt: skip
    first = losses(*ON_GPU, *options, "run.name=first")
    assert losses(*ON_GPU, *options, "run.name=second") == pytest.approx(first, rel=1e-4)


def test_images_are_generated(losses, tiny_config, tiny_parts, tmp_path):
    losses(*ON_GPU)
    basis = tiny_config(*ON_GPU).run_folder / "tiny.safetensors"
    images = sorted((tiny_parts / "images").rglob("*.png"))[:3]
    words = ["--base", tiny_parts / "model", "--basis", basis, "--encoder", tiny_parts / "encoder"]
    words += ["--a", images[0], "--a-prime", images[1], "--b", images[2], "--steps", "2"]
    for quantize in ("none", "nf4"):
        out = tmp_path / quantize
        _start("-m", "training.sample", *words, "--out", out, "--device", "cuda", "--quantize", quantize)
        assert len(list(out.glob("*.png"))) == 2
