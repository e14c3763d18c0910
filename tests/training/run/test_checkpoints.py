"""Checkpoints are whole or absent, whatever happens while they are written."""

import json
import os
import random
import shutil
import subprocess

import pytest
import torch

from lorweb_core.checkpoint import load_basis
from lorweb_core.settings_sources import read_training_facts
from training.run.checkpoints import list_checkpoints, load_checkpoint, load_latest, save_checkpoint
from training.train import train


def _write_basis(path):
    path.write_bytes(b"basis")


def _save(folder, step, *, keep=2, size=10):
    return save_checkpoint(folder, step, {"numbers": torch.full((size,), step)}, write_basis=_write_basis, keep=keep)


def test_newest_checkpoints_are_kept_and_the_rest_removed(tmp_path):
    for step in (1, 2, 3, 4):
        _save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000003", "step-000000004"]
    assert sorted(path.name for path in list_checkpoints(tmp_path)[-1].iterdir()) == [
        "basis.safetensors", "manifest.json", "state.pt",
    ]  # fmt: skip
    assert torch.equal(load_latest(tmp_path)["numbers"], torch.full((10,), 4))


def test_same_step_is_replaced(tmp_path):
    _save(tmp_path, 5)
    _save(tmp_path, 5, size=3)
    assert len(load_latest(tmp_path)["numbers"]) == 3


def test_no_checkpoint_is_none(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


def _damage(folder, rng):
    """Change one file of a checkpoint; returns what was done."""
    path = folder / rng.choice(["state.pt", "basis.safetensors", "manifest.json"])
    data = bytearray(path.read_bytes())
    how, at = rng.choice(["flip", "zero", "cut", "grow", "remove"]), rng.randrange(len(data))
    if how == "remove":
        path.unlink()
        return f"{path.name} removed"
    if how == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif how == "zero":
        at = rng.choice([index for index, byte in enumerate(data) if byte])
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    data = data[:at] if how == "cut" else data
    path.write_bytes(data + b"\0" * 7 if how == "grow" else data)
    return f"{path.name}: {how} at {at}"


def test_none_of_500_damages_is_silent_or_a_traceback(tmp_path, caplog):
    rng = random.Random(0)
    _save(tmp_path, 1)
    newest = _save(tmp_path, 2)
    shutil.copytree(newest, tmp_path / "copy")
    for _ in range(500):
        what = _damage(newest, rng)
        caplog.clear()
        assert load_latest(tmp_path)["step"] == 1, what
        assert "skipping a checkpoint" in caplog.text, what
        assert "step-000000002 is damaged" in caplog.text or "has format" in caplog.text, what
        shutil.rmtree(newest)
        shutil.copytree(tmp_path / "copy", newest)
    assert load_latest(tmp_path)["step"] == 2


_MANIFESTS = [
    b"", b"[]", b"null", b"7", b'"text"', b"{}", b"\xff\xfe", b"[" * 100_000, b"9" * 5000,
    {"order": None}, {"order": "2"}, {"files": []}, {"files": {"state.pt": 3}}, {"files": {"\0": [1, ""]}},
    {"files": None}, {"format": 99}, {"format": None}, {"sha256": None},
]  # fmt: skip


@pytest.mark.parametrize("manifest", _MANIFESTS, ids=str)
def test_manifest_of_another_form_is_damage(tmp_path, manifest, caplog):
    _save(tmp_path, 1)
    path = _save(tmp_path, 2) / "manifest.json"
    if isinstance(manifest, dict):
        manifest = json.dumps({**json.loads(path.read_bytes()), **manifest}).encode()
    path.write_bytes(manifest)
    assert load_latest(tmp_path)["step"] == 1
    assert "skipping a checkpoint" in caplog.text
    assert _save(tmp_path, 3).name == "step-000000003"


@pytest.mark.parametrize("state", [[1, 2], "text", print])
def test_state_of_another_form_is_damage_even_with_a_fitting_manifest(tmp_path, state, caplog, monkeypatch):
    _save(tmp_path, 1)
    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", lambda _, file: save(state, file))
        _save(tmp_path, 2)
    assert load_latest(tmp_path)["step"] == 1
    assert "skipping a checkpoint" in caplog.text


def test_damaged_folder_asked_for_by_name_is_an_error(tmp_path):
    folder = _save(tmp_path, 1)
    (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"state.pt has 100 bytes instead of .*--resume latest"):
        load_checkpoint(folder)


def test_failed_write_leaves_the_earlier_one_and_nothing_partial(tmp_path):
    _save(tmp_path, 1)

    def fail(_path):
        raise OSError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        save_checkpoint(tmp_path, 2, {}, write_basis=fail, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB; skipped where mounting is not allowed."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("mounting needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_costs_nothing_but_the_unsaved_steps(small_disk):
    _save(small_disk, 1)
    with pytest.raises(ValueError, match="Free disk space"):
        _save(small_disk, 2, size=1_000_000)
    assert [path.name for path in small_disk.iterdir()] == ["step-000000001"]
    assert load_latest(small_disk)["step"] == 1
    _save(small_disk, 3)
    assert load_latest(small_disk)["step"] == 3


def test_checkpoints_come_at_the_steps_asked_for_and_at_the_end_and_know_their_step(tiny_config):
    config = tiny_config("run.steps=5", "checkpoint.every=2", "checkpoint.keep=9")
    train(config)
    found = list_checkpoints(config.run_folder / "checkpoints")
    assert [path.name for path in found] == [f"step-{step:09d}" for step in (2, 4, 5)]
    headers = [load_basis(path / "basis.safetensors").metadata for path in found]
    assert [read_training_facts(header)["step"] for header in headers] == [2, 4, 5]


def test_run_continues_when_a_save_meets_a_full_disk(tiny_config, small_disk, caplog):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2_800_000))
    config = tiny_config("run.steps=3", f"run.folder={small_disk}", "checkpoint.every=1", "tracking.log_every=100")
    with pytest.raises(ValueError, match="Free disk space"):
        train(config)
    assert caplog.text.count("Free disk space") == 2
    assert list_checkpoints(config.run_folder / "checkpoints") == []
    filler.unlink()
    assert train(config, resume="latest").step == 3
