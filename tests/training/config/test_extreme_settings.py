"""Absurd numbers in a config end in a message or in a training step, never in a traceback."""

import re
from contextlib import suppress

import pytest
import torch

from lorweb_core.errors import LoRWeBError
from training.config.reading import dotted_names, read_config
from training.config.schema import TrainConfig
from training.train import main

NUMBERS = (
    0, 1e-300, 1e-38, 1e-30, 1e-12, 1e-9, 0.001, 0.5, 0.999999, 0.9999999, 1, 2, 8, 10, 64, 100, 1000, 4096, 65536,
    999_999_999, 10**9, 2**63 - 1, 2**63, 10**12, 10**30, 1e38, 1e300,
)  # fmt: skip
TEXTS = [*map(repr, sorted({*NUMBERS, *(-number for number in NUMBERS)})), ".inf", "-.inf", ".nan"]
#: Too slow at their upper limit.
NOT_STEPPED = ("data.workers", "run.batch_size")


def _names():
    """Every setting that takes some number."""
    for name in dotted_names():
        section, _, item = name.partition(".")
        annotation = str(TrainConfig.model_fields[section].annotation.model_fields[item])
        if re.search(r"\b(int|float)\b", annotation):
            yield name


@pytest.mark.parametrize(
    "name",
    [n if n.startswith(("optimizer", "flow")) else pytest.param(n, marks=pytest.mark.slow) for n in _names()],
)
def test_extreme_values_that_are_accepted_train(tiny_overrides, assembled, name):
    overrides = tiny_overrides("run.steps=999999", "run.batch_size=2", "optimizer.ema_decay=0.9")
    accepted = []
    for text in TEXTS:
        try:
            read_config("tiny.yaml", [*overrides, f"{name}={text}"])
            accepted.append(text)
        except LoRWeBError as error:
            assert name.partition(".")[2] in str(error)
    for text in {*accepted[:1], *accepted[-1:]} if name not in NOT_STEPPED else ():
        config = read_config("tiny.yaml", [*overrides, f"{name}={text}", f"run.name=at {text}"])
        with suppress(LoRWeBError):
            loop, state = assembled(config)

            def stop_in_a_step(*_, stop=loop.stop):
                if torch.is_grad_enabled():  # not in the validation at step 0
                    stop.reason = "test"

            state.model.transformer.register_forward_pre_hook(stop_in_a_step)
            loop.run(state)
            assert state.step == 1


@pytest.mark.parametrize(
    "override",
    ["optimizer.learning_rate=1e38", "optimizer.ema_decay=0.99999999999", "run.steps=1000000000000",
     "basis.rank=1000000000", "run.seed=100000000000000000000000"],
)  # fmt: skip
def test_absurd_value_is_a_message_with_name_and_limit(tiny_overrides, capsys, override):
    assert main(["--config", "tiny.yaml", *tiny_overrides(override)]) == 2
    message = capsys.readouterr().err
    assert override.partition("=")[0] in message
    assert "less than" in message or "64 bits" in message
