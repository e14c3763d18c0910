"""Damaged models, wrong places and wrong words end with one message that says what to do, never with a traceback."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorweb_core.errors import LoRWeBError
from training.console import open_device
from training.sample import main as sample
from training.train import main as train_main
from training.train import train

ROOT = Path(__file__).parents[3]


@pytest.fixture
def copied_model(tiny_parts, tmp_path):
    return shutil.copytree(tiny_parts / "model-with-text", tmp_path / "model")


def _truncate_weights(folder):
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _remove_weights(folder):
    (file,) = folder.glob("*.safetensors")
    file.unlink()


def _spoil_config(folder):
    for file in folder.glob("*config.json"):
        file.write_text("{")


def _empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("damage", [_truncate_weights, _remove_weights, _spoil_config])
def test_damaged_part_of_a_model_is_named(tiny_config, copied_model, part, damage):
    damage(copied_model / part)
    with pytest.raises(LoRWeBError, match=rf"/{part}\b.*(Copy|Set base.components)"):
        train(tiny_config("run.steps=1", f"base.model={copied_model}", "text.caption_source=a"))


@pytest.mark.parametrize(
    ("part", "damage"), [("scheduler", _spoil_config), ("tokenizer", _empty), ("tokenizer_2", _empty)]
)
def test_damaged_small_part_of_a_model_is_named(tiny_config, copied_model, part, damage):
    damage(copied_model / part)
    with pytest.raises(LoRWeBError, match=rf"/{part}\b.*Copy "):
        train(tiny_config("run.steps=1", f"base.model={copied_model}", "text.caption_source=a"))


def test_place_that_cannot_hold_a_run_is_named(tiny_config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LoRWeBError, match=r"Set run\.folder"):
        train(tiny_config("run.steps=1", f"run.folder={tmp_path / 'file'}"))


def test_basis_of_other_sizes_to_start_from_is_refused_with_the_names_to_set(tiny_config):
    file = train(tiny_config("run.steps=1")).basis_file
    with pytest.raises(LoRWeBError, match=r"Set basis_size.*basis\.start_from"):
        train(tiny_config("run.steps=1", "run.name=other", f"basis.start_from={file}", "basis.rank=3"))


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:x", ""])
def test_device_that_is_not_there_is_refused(name):
    with pytest.raises(LoRWeBError, match="does not exist here"):
        open_device(name)


def test_device_is_a_gpu_where_there_is_one():
    assert open_device("cpu") == torch.device("cpu")
    assert open_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("command", ["sample", "evaluate generate", "evaluate judge"])
def test_every_command_takes_a_gpu_where_there_is_one(command, capsys):
    module, *words = command.split()
    assert importlib.import_module(f"training.{module}").main([*words, "--help"]) == 0
    assert "auto (a GPU where there is one)" in " ".join(capsys.readouterr().out.split())


def test_attention_of_cudnn_is_off_in_a_run(tiny_config, assembled):
    """Its backward pass crashes stock FLUX on Hopper under torch 2.11."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    assembled(tiny_config())
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.fixture
def sample_words(tiny_config, tiny_parts, tmp_path):
    basis = train(tiny_config("run.steps=1")).basis_file
    images = sorted((tiny_parts / "images" / "invert").glob("*.png"))
    words = ["--base", tiny_parts / "model", "--basis", basis, "--encoder", tiny_parts / "encoder", "--steps", "1"]
    words += ["--a", images[0], "--a-prime", images[1], "--b", images[2], "--dtype", "float32"]
    return [str(word) for word in [*words, "--megapixels", "0.01", "--out", tmp_path / "results"]]


def test_sampling_on_a_device_that_is_not_there_is_refused(sample_words, capsys):
    assert sample([*sample_words, "--device", "gpu"]) == 2
    assert "'gpu' does not exist here" in capsys.readouterr().err


def test_sampling_into_a_place_that_cannot_be_written_is_refused(sample_words, tmp_path, capsys):
    (tmp_path / "results").write_text("in the way")
    assert sample(sample_words) == 2
    assert "choose another folder with --out" in capsys.readouterr().err


def test_sampling_takes_at_least_one_step(sample_words, capsys):
    assert sample([*sample_words, "--steps", "0"]) == 2
    assert "Invalid value for '--steps'" in capsys.readouterr().err


def test_several_tasks_of_srun_without_torchrun_are_refused(tiny_overrides, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert train_main(["--config", "tiny.yaml", *tiny_overrides("run.steps=1")]) == 2
    assert "srun started 4 tasks" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert train_main(["--config", "tiny.yaml", *tiny_overrides("run.steps=1")]) == 0


@pytest.mark.parametrize("name", ["sample", "train", "evaluate", "demo"])
def test_help_is_shown_on_a_terminal_that_lacks_characters(name):
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "-m", f"training.{name}", "--help"]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120, check=False)
    assert shown.returncode == 0, shown.stderr.decode()[-2000:]
    assert b"usage:" in shown.stdout.lower()
