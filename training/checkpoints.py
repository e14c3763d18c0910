"""Checkpoints: everything a run needs to go on as if it had never stopped, in folders that are whole or absent.

    checkpoints/step-000000500/   basis.safetensors (for the nodes)   state.pt (to resume)   manifest.json (sizes)

Written into a hidden folder beside it, flushed to disk, then renamed. After a crash at any moment the newest folder
that has its manifest and the right sizes is loaded; anything else is passed over with a warning.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lorweb_core.errors import CheckpointError, OutputError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
STATE_FILE, BASIS_FILE, MANIFEST_FILE = "state.pt", "basis.safetensors", "manifest.json"
_FOLDER_NAME = re.compile(r"step-(\d{9})")
_PARTIAL_PREFIX = ".partial-"


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], *, write_basis: Callable[[Path], None], keep: int
) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    Args:
        folder: of all checkpoints of the run.
        step: optimiser updates done.
        state: tensors, numbers, strings and containers of them.
        write_basis: writes the basis file to the path it is given.
        keep: how many stay.
    Returns: the checkpoint's folder.
    Raises: OutputError: when it cannot be written; the earlier ones are untouched and nothing partial is left.
    """
    target = folder / f"step-{step:09d}"
    partial = folder / f"{_PARTIAL_PREFIX}{target.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_basis(partial / BASIS_FILE)
        _write_state(partial / STATE_FILE, {"format": FORMAT_VERSION, "step": step, **state})
        _write_manifest(partial, step)
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
        _flush_folder(folder)
    except (OSError, RuntimeError, OutputError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(
            expected=f"to be able to write the checkpoint of step {step} in {folder}",
            got=str(error)[:300],
            remedy="Free disk space or choose another run.folder; the earlier checkpoints are whole, "
            "and `--resume latest` goes on from there.",
        ) from error
    remove_old(folder, keep)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _FOLDER_NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(path for path in found if _is_whole(path))


def load_latest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint that loads, or None when there is none."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s is passed over: %s", path.name, error)
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state of one checkpoint folder, on the CPU.

    Raises: CheckpointError: when it is missing, damaged or of a newer format.
    """
    try:
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise CheckpointError(
            expected=f"a whole checkpoint in {path}",
            got=f"{type(error).__name__}: {str(error)[:200]}",
            remedy="Resume from an earlier step folder, or with `--resume latest`.",
        ) from error
    if state.get("format") != FORMAT_VERSION:
        raise CheckpointError(
            expected=f"a checkpoint of format {FORMAT_VERSION}",
            got=f"format {state.get('format')!r} in {path}",
            remedy="Resume with the version of this project that wrote it.",
        )
    return state


def remove_old(folder: Path, keep: int) -> None:
    """Remove whole checkpoints but the newest `keep`, and partial ones that a crash left."""
    for path in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"{_PARTIAL_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def random_states() -> dict[str, Any]:
    """Return the states of torch's global generators; the run's own draws need none."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Set torch's global generators."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _write_state(path: Path, state: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _write_manifest(folder: Path, step: int) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    with (folder / MANIFEST_FILE).open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT_VERSION, "step": step, "sizes": sizes}, file)
        file.flush()
        os.fsync(file.fileno())


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["sizes"]
        is_whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, AttributeError):
        is_whole = False
    if not is_whole:
        logger.warning("%s is not a whole checkpoint and is passed over", folder)
    return is_whole


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system lets folders be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
