"""What goes wrong around a run and must not cost it: lack of memory, killed loaders, numbers beyond float16."""

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from lorweb_core.checkpoint import load_basis
from training.adapter.trainable import TrainableKontext
from training.base.flow import sample_latents
from training.demo.scenes import MODEL_FOLDER
from training.run.checkpoints import list_checkpoints
from training.run.optimizers import set_learning_rate
from training.run.session import load_start
from training.train import train

VALIDATED = ("validation.every=2", "validation.images=1", "validation.image_steps=3", "checkpoint.every=2")


def _checkpoints(config):
    return [path.name for path in list_checkpoints(config.run_folder / "checkpoints")]


def test_out_of_memory_in_a_validation_costs_the_validation_alone(tiny_config, monkeypatch, caplog):
    def run_out(*_args, **_options):
        raise torch.OutOfMemoryError("tried to allocate more than there is")

    monkeypatch.setattr("training.run.validation.sample_latents", run_out)
    config = tiny_config("run.steps=3", *VALIDATED)
    assert train(config).step == 3
    assert all(f"no validation at step {step}: out of memory" in caplog.text for step in (0, 2, 3))
    assert not (config.run_folder / "validation").exists()


def test_a_step_is_saved_before_it_is_validated(tiny_config, monkeypatch):
    config = tiny_config("run.steps=3", *VALIDATED)

    def fail(*arguments):
        if _checkpoints(config):
            raise RuntimeError("an error in the validation")
        return sample_latents(*arguments)

    monkeypatch.setattr("training.run.validation.sample_latents", fail)
    with pytest.raises(RuntimeError, match="an error"):
        train(config)
    assert _checkpoints(config) == ["step-000000002"]


def test_a_signal_in_the_middle_of_a_validation_does_not_wait_for_its_end(tiny_config, monkeypatch, caplog):
    config = tiny_config("run.steps=4", *VALIDATED)
    forwards, predict = [], TrainableKontext.predict

    def predict_and_signal(self, *arguments):
        if not torch.is_grad_enabled() and _checkpoints(config):  # not in training, nor before it
            forwards.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        return predict(self, *arguments)

    monkeypatch.setattr(TrainableKontext, "predict", predict_and_signal)
    assert train(config).step == 2
    assert len(forwards) == 1
    assert "the validation of step 2 was stopped" in caplog.text
    assert _checkpoints(config) == ["step-000000002"]


def test_a_killed_loading_process_costs_no_step(tiny_config, monkeypatch):
    def kill_and_update(optimizer, schedule, step, steps):
        if step == 1:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
            time.sleep(0.5)  # a handler of torch's that raises here would lose the step
        return set_learning_rate(optimizer, schedule, step, steps)

    monkeypatch.setattr("training.run.loop.set_learning_rate", kill_and_update)
    config = tiny_config("run.steps=50", "data.workers=1")
    with pytest.raises(ValueError, match=r"data\.workers.*--shm-size"):
        train(config)
    (saved,) = _checkpoints(config)
    assert int(saved.removeprefix("step-")) >= 2
    monkeypatch.undo()
    assert train(tiny_config("run.steps=6", "data.workers=0"), resume="latest").step == 6


@pytest.mark.parametrize("where", ["loop.set_learning_rate", "loop.Loop.step"])  # the latter: before the first batch
def test_a_crash_does_not_leave_the_process_waiting_for_its_loaders(tiny_overrides, where):
    """They ignore SIGTERM, which is how Python ends them at exit while a traceback keeps the loader alive."""
    crash = (
        "import sys; from training import train; from training.run import loop\n"
        "def fail(*_): raise RuntimeError('an error in the update')\n"
        f"{where} = fail; train.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", crash, "--config", "tiny.yaml", *tiny_overrides("data.workers=1")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "an error in the update" in done.stderr


def test_a_error_within_a_loading_process_is_not_taken_for_its_end(tiny_config, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("an error in the data")

    monkeypatch.setattr("training.data.quadruplets.load_pair", fail)
    config = tiny_config("run.steps=2", "data.workers=1")
    with pytest.raises(RuntimeError, match="an error in the data"):
        train(config)
    assert not (config.run_folder / "checkpoints").exists()


def test_numbers_beyond_float16_make_the_file_bfloat16_and_lose_no_checkpoint(tiny_config, assembled, caplog):
    config = tiny_config("run.steps=1")
    loop, state = assembled(config)
    with torch.no_grad():
        next(iter(state.model.linears.values())).up.fill_(60_000.0)  # times the gain, 4
    loop.run(state)
    (folder,) = list_checkpoints(config.run_folder / "checkpoints")
    basis = load_basis(folder / "basis.safetensors")
    assert next(iter(basis.layers.values())).lora_up.dtype == torch.bfloat16
    assert "is bfloat16, not float16" in caplog.text


def test_random_states_of_a_resumed_run_are_those_of_the_straight_one(tiny_config, assembled):
    loop, state = assembled(tiny_config("run.steps=2"))
    state.model.transformer.register_forward_pre_hook(lambda *_: torch.rand(3).sum() < 0 or None)  # as a dropout would
    loop.run(state)
    at_the_end = torch.get_rng_state()
    torch.rand(3)  # whatever else this process draws
    assembled(tiny_config("run.steps=4"), resume="latest")
    assert torch.equal(torch.get_rng_state(), at_the_end)


@pytest.mark.parametrize(("rate", "is_logged"), [("2e-2", True), ("1e-2", True), ("3e-3", False), ("1e-3", False)])
def test_a_rate_that_overwrites_the_basis_to_start_from_is_warned_of(tiny_config, caplog, rate, is_logged):
    """Measured in benchmarks/results/own-folder.md: PSNR falls with the first two and rises with the others."""
    load_start(MODEL_FOLDER / "basis.safetensors", tiny_config(f"optimizer.learning_rate={rate}"))
    assert (f"optimizer.learning_rate {float(rate):g} is" in caplog.text) == is_logged
    assert ("Set optimizer.learning_rate to 0.003 or less" in caplog.text) == is_logged


def test_a_basis_to_start_from_is_not_taken_for_one_of_another_kind(tiny_config, tiny_parts, tmp_path, caplog):
    other = shutil.copytree(tiny_parts / "encoder", tmp_path / "other-encoder")
    first = train(tiny_config("run.steps=1", "basis.activation=tanh")).basis_file
    options = ("run.steps=1", "run.name=second", f"basis.start_from={first}")
    with pytest.raises(ValueError, match="activation tanh instead of softmax"):
        train(tiny_config(*options))
    with caplog.at_level(logging.WARNING):
        assert train(tiny_config(*options, "basis.activation=tanh", f"encoder.model={other}")).step == 1
    assert "this run continues with other-encoder" in caplog.text
