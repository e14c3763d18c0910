"""The command lines print our own messages, and nothing about packages that are not used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lorweb_core.errors import SettingsError
from training.console import open_device

NOISE = ("torchvision", "torchao", "bitsandbytes", "kernels", "Loading weights", "was truncated", "DataLoader", "Enum")


@pytest.mark.slow
def test_a_run_reports_its_own_lines_only(tiny_parts, tiny_overrides):
    overrides = tiny_overrides("run.steps=2", f"data.workers={(os.cpu_count() or 1) + 1}", "validation.every=2")
    overrides = [item for item in overrides if not item.startswith(("text.", "base.model"))]
    overrides += [f"base.model={tiny_parts / 'model-with-text'}", "text.caption_source=a", "text.max_tokens=8"]
    output = subprocess.run(
        [sys.executable, "-m", "training.train", "--config", "tiny.yaml", *overrides],
        cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
    ).stdout  # fmt: skip
    assert [word for word in NOISE if word in output] == []
    assert "4 of 5 prompts are longer than max_tokens" in output
    assert "done. For ComfyUI copy" in output


def test_our_own_warnings_and_download_bars_stay(tmp_path):
    script = (
        "import logging, warnings; from training.console import silence_libraries; logging.basicConfig();"
        "silence_libraries(); from huggingface_hub.utils import are_progress_bars_disabled;"
        "logging.getLogger('training.base.text').warning('ours'); warnings.warn('theirs, but new');"
        "logging.getLogger('transformers.modeling_utils').warning('weights are missing');"
        "logging.getLogger('torchao').warning('noise'); print('bars hidden:', are_progress_bars_disabled())"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
    ).stdout  # fmt: skip
    for part in ("ours", "theirs, but new", "weights are missing", "bars hidden: False"):
        assert part in output
    assert "noise" not in output


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert open_device() == torch.device("cuda")
    assert open_device("cuda:1") == torch.device("cuda:1")
    for name in ("cuda:2", "gpu", "cpu:1"):
        with pytest.raises(SettingsError, match=f"'{name}' does not exist here"):
            open_device(name)
