"""`base.compile` really compiles the blocks, and changes nothing but their speed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUN = """
import json, sys
from torch._dynamo.utils import counters
from training.config.reading import read_config
from training.run import session
from training.train import train

load_transformer = session.load_transformer


def load_with_checkpointing(*arguments):  # as on GPUs
    transformer = load_transformer(*arguments)
    transformer.enable_gradient_checkpointing()
    return transformer


session.load_transformer = load_with_checkpointing
losses = train(read_config("tiny.yaml", sys.argv[1:])).losses
print(json.dumps({"losses": losses, "stats": counters["stats"], "breaks": counters["graph_break"]}))
"""


def _run(overrides, cache):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *overrides], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_compiled_blocks_train_as_the_plain_ones(tiny_overrides, tmp_path):
    """One double and one single block: two graphs, no break in either, none made anew in later steps."""
    options = ("run.steps=3", "optimizer.schedule=constant")
    plain = _run(tiny_overrides(*options, "run.name=plain"), tmp_path / "cache")
    assert not plain["stats"]
    compiled = _run(tiny_overrides(*options, "run.name=compiled", "base.compile=true"), tmp_path / "cache")
    assert compiled["stats"]["unique_graphs"] == 2
    assert not compiled["breaks"]
    assert compiled["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    assert len(set(compiled["losses"])) == 3
