"""Checkpoints: everything a run needs to go on as if it had never stopped, in folders that are whole or absent.

    checkpoints/step-000000500/   basis.safetensors (for the nodes)   state.pt (to resume)   manifest.json

Written into a hidden folder beside it, flushed to disk, then renamed. The manifest holds the size and SHA-256 of each
file and of itself. The newest folder in which all of them are right is loaded; a damaged one is skipped with a warning.
"""

from __future__ import annotations

import hashlib
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

FORMAT_VERSION = 2
STATE_FILE, BASIS_FILE, MANIFEST_FILE = "state.pt", "basis.safetensors", "manifest.json"
_FOLDER_NAME = re.compile(r"step-(\d{9})")
_PARTIAL_PREFIX = ".partial-"


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], *, write_basis: Callable[[Path], None], keep: int
) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    Args:
        folder: of all checkpoints of the run.
        step: optimizer updates done.
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
        _write_state(partial / STATE_FILE, {"step": step, **state})
        earlier = list_checkpoints(folder)
        _write_manifest(partial, order=1 + (_read_manifest(earlier[-1])["order"] if earlier else 0))
        if target.exists():  # moved away first: removing gigabytes takes time, in which a crash would leave neither
            target.replace(folder / f"{_PARTIAL_PREFIX}old-{target.name}")
        partial.replace(target)
        _flush_folder(folder)
    except (OSError, RuntimeError, OutputError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        raise OutputError(
            f"The checkpoint of step {step} could not be written to {folder}: {str(error)[:300]}. Free disk space or "
            "choose another run.folder. The earlier checkpoints are whole; continue with `--resume latest`."
        ) from error
    remove_old(folder, keep)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints whose files have the right sizes, in the order in which they were written.

    That is not always the order of steps: going back to an earlier one writes lower steps later.
    """
    found = []
    for path in _step_folders(folder):
        with suppress(CheckpointError):
            found.append((_read_manifest(path)["order"], path))
    return [path for _, path in sorted(found)]


def load_latest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest undamaged checkpoint, or None when there is none at all.

    Raises: CheckpointError: when all are damaged: starting anew would remove them.
    """
    whole, present = list_checkpoints(folder), _step_folders(folder)
    for path in [*(path for path in present if path not in whole), *reversed(whole)]:
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("skipping a checkpoint: %s", error)
    if not present:
        return None
    raise CheckpointError(
        f"None of the {len(present)} checkpoints in {folder} can be loaded; the log says why. Restore one from a "
        "backup, or begin a new run.name, perhaps with basis.start_from: <a checkpoint's basis.safetensors>."
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state of one checkpoint folder, on the CPU, after comparing all of its files with the manifest.

    Raises: CheckpointError: when it is missing, damaged or of another format.
    """
    files = _read_manifest(path)["files"]
    try:
        for name, (_, digest) in files.items():
            if _sha256(path / name) != digest:
                raise _damaged(path, f"the contents of {name} changed after it was written")
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:200]}") from error
    if not isinstance(state, dict):
        raise _damaged(path, f"{STATE_FILE} holds a {type(state).__name__}, not a dict")
    return state


def remove_old(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`, and partial ones that a crash left."""
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


def _write_manifest(folder: Path, *, order: int) -> None:
    files = {path.name: (path.stat().st_size, _sha256(path)) for path in sorted(folder.iterdir())}
    content = {"format": FORMAT_VERSION, "order": order, "files": files}
    with (folder / MANIFEST_FILE).open("w", encoding="utf-8") as file:
        json.dump({**content, "sha256": _sha256_of_json(content)}, file)
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest: `order` among the saves of its run, `files` as name → (size, SHA-256).

    Raises: CheckpointError: when it is missing, damaged or of another format, or a file does not have its size.
    """
    try:
        content = json.loads((folder / MANIFEST_FILE).read_bytes())
        version, digest = content["format"], content.pop("sha256")
        sizes = {name: (folder / name).stat().st_size for name in content["files"]}
    except OSError as error:
        raise _damaged(folder, f"{Path(error.filename or folder).name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, f"{MANIFEST_FILE} does not list format, files and hashes") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"The checkpoint {folder} has format {str(version)[:20]}; this version reads format {FORMAT_VERSION}. "
            "Resume with the version of this project that wrote it."
        )
    if digest != _sha256_of_json(content):
        raise _damaged(folder, f"{MANIFEST_FILE} changed after it was written")
    for name, (size, _) in content["files"].items():
        if sizes[name] != size:
            raise _damaged(folder, f"{name} has {sizes[name]} bytes instead of {size}")
    return content


def _damaged(folder: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"The checkpoint {folder} is damaged or incomplete: {problem}. Resume from another step folder, or with "
        "`--resume latest` from the newest one that is whole."
    )


def _sha256(path: Path) -> str:
    """About 0.7 s for 1 GB, where writing it takes 3 s."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sha256_of_json(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system lets folders be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
