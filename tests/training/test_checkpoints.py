"""Checkpoints are whole or absent, whatever happens while they are written."""

import json
import os
import shutil
import subprocess

import pytest
import torch

from training.checkpoints import list_checkpoints, load_checkpoint, load_latest, save_checkpoint
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


def _truncate(folder):
    with (folder / "state.pt").open("r+b") as file:
        file.truncate(100)


def _remove_state(folder):
    (folder / "state.pt").unlink()


def _remove_manifest(folder):
    (folder / "manifest.json").unlink()


def _spoil_bytes(folder):
    data = bytearray((folder / "state.pt").read_bytes())
    data[10:200] = bytes(190)
    (folder / "state.pt").write_bytes(data)


def _other_format(folder):
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save({**state, "format": 99}, folder / "state.pt")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sizes"]["state.pt"] = (folder / "state.pt").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [_truncate, _remove_state, _remove_manifest, _spoil_bytes, _other_format])
def test_damaged_newest_is_passed_over_for_the_one_before(tmp_path, damage, caplog):
    _save(tmp_path, 1)
    damage(_save(tmp_path, 2))
    assert load_latest(tmp_path)["step"] == 1
    assert "passed over" in caplog.text


def test_damaged_folder_asked_for_by_name_is_an_error(tmp_path):
    folder = _save(tmp_path, 1)
    _truncate(folder)
    with pytest.raises(ValueError, match="--resume latest"):
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


def test_run_goes_on_when_a_save_meets_a_full_disk(tiny_config, small_disk, caplog):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(2_800_000))
    config = tiny_config("run.steps=3", f"run.folder={small_disk}", "checkpoint.every=1", "tracking.log_every=100")
    with pytest.raises(ValueError, match="Free disk space"):
        train(config)
    assert caplog.text.count("Free disk space") == 2
    assert list_checkpoints(config.run_folder / "checkpoints") == []
    filler.unlink()
    assert train(config, resume="latest").step == 3
