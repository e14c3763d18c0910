"""Optimizers: two rates, schedules as pure functions, 8-bit states, and what is used when a package is missing."""

import sys

import pytest
import torch

from training.config.schema import OptimizerConfig
from training.run.optimizers import EMA, build_optimizer, set_learning_rate
from training.train import train


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
    assert set_learning_rate(optimizer, "cosine", 5, 10) == pytest.approx(5e-3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-3, 1.5e-3])
    assert [len(group["params"]) for group in optimizer.param_groups] == [80, 2]


@pytest.mark.parametrize(("schedule", "expected"), [("constant", [1, 1, 1]), ("cosine", [1, 0.5, 0.024472])])
def test_schedules(schedule, expected):
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 9.0, "base_rate": 1.0}])
    rates = [set_learning_rate(optimizer, schedule, step, 10) for step in (0, 5, 9)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_eight_bit_optimizer_learns_as_the_plain_one(golden_trainable):
    pytest.importorskip("bitsandbytes")
    config = OptimizerConfig(name="adamw8bit", learning_rate=1e-2)
    model = golden_trainable("basis_A")
    start = {name: tensor.detach().clone() for name, tensor in model.trained_state().items()}
    optimizer = build_optimizer(config, model)
    assert type(optimizer).__module__.startswith("bitsandbytes")
    losses = _steps(optimizer, model, 15)
    model.load_trained_state(start)
    expected = _steps(build_optimizer(config.model_copy(update={"name": "adamw"}), model), model, 15)
    assert losses[-1] == pytest.approx(expected[-1], rel=0.02)
    assert losses[-1] < losses[0]


def test_without_a_package_plain_adamw_is_used_and_logged(golden_trainable, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    optimizer = build_optimizer(OptimizerConfig(name="adamw8bit"), golden_trainable("basis_A"))
    assert type(optimizer) is torch.optim.AdamW
    assert "plain AdamW is used" in caplog.text


def test_run_with_eight_bit_states_resumes(tiny_config):
    pytest.importorskip("bitsandbytes")
    options = ("optimizer.name=adamw8bit", "checkpoint.every=2")
    straight = train(tiny_config(*options, "run.steps=4", "run.name=straight"))
    config = tiny_config(*options, "run.steps=4", "run.name=resumed")
    train(config)
    from training.run.checkpoints import list_checkpoints

    resumed = train(config, resume=str(list_checkpoints(config.run_folder / "checkpoints")[0]))
    assert len(resumed.losses) == 2
    assert resumed.losses == straight.losses[2:]


def test_ema_forgets_faster_in_its_first_updates():
    state = {"x": torch.zeros(1)}
    average = EMA(state, 0.999)
    for weight in (1 - 2 / 11, 1 - 2 / 11 * 3 / 12):
        average.update({"x": torch.ones(1)})
        assert float(average.tensors["x"]) == pytest.approx(weight)
