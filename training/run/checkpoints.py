"""Checkpoints: everything a run needs to continue as if it had never stopped, in folders that are whole or absent.

    checkpoints/step-000000500/   basis.safetensors (for the nodes)   state.pt (to resume)   manifest.json

Each is written into a hidden folder beside it, flushed to disk, then renamed. The manifest has the size and SHA-256 of
each file and of itself. The newest folder in which all match is loaded; a damaged one is skipped with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorweb_core.checkpoint import save_basis
from lorweb_core.errors import CheckpointError, OutputError, RangeError

from ..config.schema import TrainConfig
from .distributed import Processes
from .inputs import Inputs
from .loop import TrainingState
from .optimizers import load_optimizer_state

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3
STATE_FILE, BASIS_FILE, MANIFEST_FILE = "state.pt", "basis.safetensors", "manifest.json"
_FOLDER_NAME = re.compile(r"step-(\d{9})")
_PARTIAL_PREFIX = ".partial-"


@dataclass
class CheckpointSaver:
    """Saves a run's state: the main process writes, the others wait.

    A save that fails while training continues is logged, so a full disk costs no steps; the last one raises.

    Attributes:
        config: of the run.
        processes: the process group.
        inputs: digests of data and models; None in processes that do not write.
        saved_step: of the newest checkpoint that this process wrote.
    """

    config: TrainConfig
    processes: Processes
    inputs: Inputs | None
    saved_step: int | None = None

    def __call__(self, state: TrainingState, *, is_last: bool = False) -> None:
        """Write a checkpoint, unless that of this step was written already.

        Raises OutputError when the last one cannot be written.
        """
        if self.processes.is_main and self.saved_step != state.step:
            folder, started = self.config.run_folder / "checkpoints", time.monotonic()
            try:
                save_checkpoint(
                    folder, state.step, {**pack_state(state, self.config), "inputs": self.inputs},
                    write_basis=lambda path: write_basis_file(path, state, self.config),
                    keep=self.config.checkpoint.keep,
                )  # fmt: skip
                logger.info("saved step %d in %s: %.1f s", state.step, folder, time.monotonic() - started)
                self.saved_step = state.step
            except OutputError as error:
                if is_last:
                    raise
                logger.error("%s", error)
        self.processes.wait()


def pack_state(state: TrainingState, config: TrainConfig) -> dict[str, Any]:
    """Return what a checkpoint holds of a state; schedule, noise and choice of pairs follow from the step."""
    random = {"cpu": torch.get_rng_state()}  # torch's own generators, which only third-party layers would use
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    return {
        "trained": {name: tensor.detach().cpu() for name, tensor in state.model.trained_state().items()},
        "optimizer": state.optimizer.state_dict(),
        "optimizer_class": _class_name(state.optimizer),
        "ema": None if state.ema is None else state.ema.state_dict(),
        "bad_steps": state.bad_steps,
        "micro_batch_size": state.micro_batch_size,
        "random": random,
        "config": config.model_dump(mode="json"),
    }


def restore_state(state: TrainingState, saved: dict[str, Any], config: TrainConfig) -> None:
    """Continue from a checkpoint's state; settings that differ are logged.

    torch's own generators are left to `restore_random_states`: building the rest of a run still uses them.

    Raises ShapeError when the basis has other sizes; CheckpointError when the optimizer is of another kind.
    """
    if (before := saved["optimizer_class"]) != (now := _class_name(state.optimizer)):
        raise CheckpointError(
            f"The checkpoint was written by {before}, but optimizer.name and the installed packages give {now}. Set "
            "optimizer.name as in the run's resolved.yaml and install what it used, or begin a new run.name with "
            "basis.start_from: <the checkpoint's basis.safetensors>."
        )
    for section, values in config.model_dump(mode="json").items():
        for name, value in values.items():
            if (before := saved["config"].get(section, {}).get(name)) != value:
                logger.warning("resuming with another %s.%s: %r instead of %r", section, name, value, before)
    state.model.load_trained_state(saved["trained"])
    load_optimizer_state(state.optimizer, saved["optimizer"])
    if state.ema is not None:
        state.ema.load_state_dict(saved["ema"] or {"updates": 0, "tensors": state.model.trained_state()})
    state.step, state.bad_steps = saved["step"], saved["bad_steps"]
    if saved["config"]["run"]["micro_batch_size"] == config.run.micro_batch_size:  # what was halved stays halved
        state.micro_batch_size = min(state.micro_batch_size, saved["micro_batch_size"])


def restore_random_states(states: dict[str, Any]) -> None:
    """Set torch's own generators."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def write_basis_file(path: Path, state: TrainingState, config: TrainConfig) -> None:
    """Write the basis that the nodes load: the EMA weights if there are any, the gain folded in, float16.

    Numbers beyond float16 are no reason to lose a checkpoint: the file is then bfloat16, with a warning.
    """
    layers = state.model.layers(None if state.ema is None else state.ema.tensors)
    facts = {
        "step": state.step,
        "name": config.run.name,
        "resolution_px": config.data.resolution_px,
        "max_tokens": config.text.max_tokens,
    }
    try:
        save_basis(path, layers, config.router_settings(), training=facts, dtype=torch.float16)
    except RangeError as error:
        logger.warning("%s is bfloat16, not float16: %s", path.name, error)
        save_basis(path, layers, config.router_settings(), training=facts, dtype=torch.bfloat16)


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


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
    Raises OutputError when it cannot be written; the earlier ones are untouched and nothing partial is left.
    """
    target = folder / f"step-{step:09d}"
    partial = folder / f"{_PARTIAL_PREFIX}{target.name}"
    try:
        _remove_partial(folder)
        partial.mkdir(parents=True)
        write_basis(partial / BASIS_FILE)
        with (partial / STATE_FILE).open("wb") as file:
            torch.save({"step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        earlier = list_checkpoints(folder)
        content = {
            "format": FORMAT_VERSION,
            "order": 1 + (_read_manifest(earlier[-1])["order"] if earlier else 0),
            "files": {path.name: (path.stat().st_size, _sha256(path)) for path in sorted(partial.iterdir())},
        }
        with (partial / MANIFEST_FILE).open("w", encoding="utf-8") as file:
            json.dump({**content, "sha256": _sha256_of_json(content)}, file)
            file.flush()
            os.fsync(file.fileno())
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
    for path in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    _remove_partial(folder)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints whose files have the right sizes, in the order of writing.

    That is not always the order of steps: a run resumed from an earlier checkpoint writes lower steps later.
    """
    found = []
    for path in _step_folders(folder):
        with suppress(CheckpointError):
            found.append((_read_manifest(path)["order"], path))
    return [path for _, path in sorted(found)]


def load_latest(folder: Path) -> dict[str, Any] | None:
    """Return the state of the newest undamaged checkpoint, or None when there is none at all.

    Raises CheckpointError when all are damaged; a new start would delete them.
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
    """Return the state of one checkpoint folder, on the CPU, after comparing all its files with the manifest.

    Raises CheckpointError when it is missing, damaged or of another format.
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


def _remove_partial(folder: Path) -> None:
    for path in folder.glob(f"{_PARTIAL_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _step_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if _FOLDER_NAME.fullmatch(path.name))


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest: `order` among the saves of its run, `files` as name → (size, SHA-256).

    Raises CheckpointError when it is missing, damaged or of another format, or a file does not have its size.
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
