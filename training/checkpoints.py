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
        _remove_partial(folder)
        partial.mkdir(parents=True)
        write_basis(partial / BASIS_FILE)
        _write_state(partial / STATE_FILE, {"format": FORMAT_VERSION, "step": step, **state})
        _write_manifest(partial, step, order=1 + max(map(_order, list_checkpoints(folder)), default=0))
        if target.exists():  # moved away first: removing gigabytes takes time, in which a crash would leave neither
            target.replace(folder / f"{_PARTIAL_PREFIX}old-{target.name}")
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
    """Return the whole checkpoints in the order in which they were written.

    That is not always the order of steps: who goes back to an earlier one writes lower steps later.
    """
    return sorted((path for path in _step_folders(folder) if _is_whole(path)), key=lambda path: (_order(path), path))


def load_latest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest checkpoint that loads, or None when there is none at all.

    Raises: CheckpointError: when there are some, but none loads: starting anew would remove them.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s is passed over: %s", path.name, error)
    damaged = _step_folders(folder)
    if not damaged:
        return None
    raise CheckpointError(
        expected=f"a checkpoint that loads in {folder}",
        got=f"{len(damaged)} of which none does: {', '.join(path.name for path in damaged[:3])}",
        remedy="Copy a whole one back, or begin a new run.name, perhaps with basis.start_from: <a checkpoint's "
        "basis.safetensors>.",
    )


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
    _remove_partial(folder)


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


def _remove_partial(folder: Path) -> None:
    for path in folder.glob(f"{_PARTIAL_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _step_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _FOLDER_NAME.fullmatch(path.name))


def _write_state(path: Path, state: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _write_manifest(folder: Path, step: int, *, order: int) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    with (folder / MANIFEST_FILE).open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT_VERSION, "step": step, "order": order, "sizes": sizes}, file)
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))


def _order(folder: Path) -> int:
    """Place among the saves of its run; 0 in files of before this was noted."""
    return int(_read_manifest(folder).get("order", 0))


def _is_whole(folder: Path) -> bool:
    try:
        sizes = _read_manifest(folder)["sizes"]
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
