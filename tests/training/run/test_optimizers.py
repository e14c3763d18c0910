"""Optimizers: two rates, schedules as pure functions, 8-bit states, and what is used when a package is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.config.schema import OptimizerConfig
from training.run.optimizers import MovingAverage, build_optimizer, learning_rate_factor, set_learning_rate
from training.train import train

ROOT = Path(__file__).parents[3]


def _steps(optimizer, model, steps):
    losses = []
    for _ in range(steps):
        trained = model.adapter_parameters() + model.router_parameters()
        loss = sum(((parameter.float() - 1) ** 2).mean() for parameter in trained)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_router_has_its_own_rate(golden_trainable):
    model = golden_trainable("basis_A")
    optimizer = build_optimizer(OptimizerConfig(name="adamw", learning_rate=1e-2, router_learning_rate=3e-3), model)
    assert set_learning_rate(optimizer, 0.5) == 5e-3
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 1.5e-3]
    assert [len(group["params"]) for group in optimizer.param_groups] == [80, 2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1]),
        ({"schedule": "linear"}, [1, 0.5, 0.1]),
        ({"schedule": "cosine"}, [1, 0.5, 0.024472]),
        ({"warmup_steps": 4}, [0.25, 1, 1]),
    ],
)
def test_schedules(options, expected):
    config = OptimizerConfig(**options)
    assert [learning_rate_factor(config, step, 10) for step in (0, 5, 9)] == pytest.approx(expected, abs=1e-6)


def test_eight_bit_optimizer_learns_as_the_plain_one(golden_trainable):
    pytest.importorskip("bitsandbytes")
    config = OptimizerConfig(name="adamw8bit", learning_rate=1e-2, weight_decay=0)
    model = golden_trainable("basis_A")
    start = {name: tensor.detach().clone() for name, tensor in model.trained_state().items()}
    optimizer = build_optimizer(config, model)
    assert type(optimizer).__module__.startswith("bitsandbytes")
    losses = _steps(optimizer, model, 15)
    model.load_trained_state(start)
    expected = _steps(build_optimizer(config.model_copy(update={"name": "adamw"}), model), model, 15)
    assert losses[-1] == pytest.approx(expected[-1], rel=0.02)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_bfloat16_weights_move_by_stochastic_rounding(golden_trainable):
    pytest.importorskip("torchao")
    model = golden_trainable("basis_A")
    for linear in model.linears.values():
        linear.down.data, linear.up.data = linear.down.data.bfloat16(), linear.up.data.bfloat16()
    optimizer = build_optimizer(OptimizerConfig(name="adamw8bit", learning_rate=1e-2, weight_decay=0), model)
    assert type(optimizer).__module__.startswith("torchao")
    losses = _steps(optimizer, model, 5)
    assert losses[-1] < losses[0]


def test_rate_of_torchao_stays_a_tensor():
    """Its compiled step refuses a number in its place."""
    torchao_optim = pytest.importorskip("torchao.optim")
    weights = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = torchao_optim.AdamW8bit([{"params": [weights], "lr": 1e-2, "base_rate": 1e-2}], lr=1e-2)
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(5e-3)
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)


def test_without_a_package_plain_adamw_is_used_and_said(golden_trainable, monkeypatch, caplog):
    for name in ("bitsandbytes.optim", "torchao.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    optimizer = build_optimizer(OptimizerConfig(name="adamw8bit"), golden_trainable("basis_A"))
    assert type(optimizer) is torch.optim.AdamW
    assert "trying the next one" in caplog.text


@pytest.mark.slow
def test_without_a_compiler_plain_adamw_is_used_and_said(tiny_overrides, tmp_path):
    """torchao compiles its update; a slim container has nothing to do that with."""
    pytest.importorskip("torchao")
    words = tiny_overrides("run.steps=1", "basis.dtype=bfloat16", "optimizer.name=adamw8bit")
    environment = {**os.environ, "PATH": "", "CXX": "nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "training.train", "--config", "tiny.yaml", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "optimizer.name adamw8bit: " in done.stderr
    assert "trying the next one" in done.stderr
    assert "done. For ComfyUI copy" in done.stderr


def test_run_with_eight_bit_states_resumes(tiny_config):
    pytest.importorskip("bitsandbytes")
    options = ("optimizer.name=adamw8bit", "checkpoint.every=2", "checkpoint.dtype=float32")
    straight = train(tiny_config(*options, "run.steps=4", "run.name=straight"))
    config = tiny_config(*options, "run.steps=4", "run.name=resumed")
    train(config)
    from training.run.checkpoints import list_checkpoints

    resumed = train(config, resume=str(list_checkpoints(config.run_folder / "checkpoints")[0]))
    assert len(resumed.losses) == 2
    assert resumed.losses == straight.losses[2:]


def test_moving_average_forgets_faster_in_its_first_updates():
    state = {"x": torch.zeros(1)}
    average = MovingAverage(state, 0.999)
    for weight in (1 - 2 / 11, 1 - 2 / 11 * 3 / 12):
        average.update({"x": torch.ones(1)})
        assert float(average.tensors["x"]) == pytest.approx(weight)
