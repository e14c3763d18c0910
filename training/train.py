"""Train a LoRWeB basis.

    python -m training.train --config paper.yaml data.index=mydata/pairs.jsonl run.name=mine
    python -m training.train --config paper.yaml … --check            validate everything, load no weights
    python -m training.train --config paper.yaml … --resume latest    go on after a crash, Ctrl-C or pre-emption
    torchrun --nproc-per-node 3 -m training.train --config paper.yaml …

Everything of a run lies in `<run.folder>/<run.name>`: resolved.yaml, metrics.jsonl, tensorboard/, checkpoints/,
validation/, and at the end `<run.name>.safetensors` for ComfyUI. Exit codes: 0 fine, 1 `--check` found something to
correct, 2 a mistake, 3 stopped by a signal before the last step, 130 interrupted twice.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorweb_core.encoder import find_encoder_folder
from lorweb_core.errors import CheckpointError, LoRWeBError, ModelError, OutputError, SettingsError

from .base.flow import read_schedule
from .base.source import find_source
from .base.text import has_text_encoders
from .config.reading import read_config, write_config
from .config.schema import TrainConfig
from .console import let_terminal_replace, log_to_terminal, show, silence_libraries
from .run.checkpoints import load_checkpoint, load_latest, restore_random_states
from .run.data import training_batches
from .run.distributed import Processes
from .run.inputs import input_digests, warn_of_changes
from .run.lock import run_lock
from .run.loop import Callbacks, Loop, TrainingState
from .run.memory import is_out_of_memory
from .run.monitor import Monitor, require_trackers
from .run.preflight import preflight_report
from .run.session import CheckpointSaver, build_encoders, build_state, restore_state, write_basis_file
from .run.signals import (
    EXIT_STOPPED,
    StoppedAtOnceError,
    StopRequest,
    leave_lost_children_to_the_loader,
    listen_for_signals,
)
from .run.validation import ValidationCallback, Validator, leave_if

logger = logging.getLogger(__name__)
EXIT_TO_CORRECT, EXIT_MISTAKE, EXIT_INTERRUPTED = 1, 2, 130


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        step: updates done.
        losses: of the steps of this process's call, in order.
        basis_file: the finished file, or None when the run was stopped before its last step.
        world_size: how many processes took part.
    """

    step: int
    losses: tuple[float, ...]
    basis_file: Path | None
    world_size: int


def train(config: TrainConfig, *, resume: str | None = None) -> RunResult:
    """Train as the configuration says.

    Args:
        config: of the run.
        resume: `latest`, a checkpoint folder, or None to start.
    Returns: how it ended.
    Raises: LoRWeBError: every mistake a user can make, with its remedy.
    """
    with listen_for_signals() as stop:
        logger.info("run folder: %s", config.run_folder)
        processes = Processes(config.run.device, strategy=config.run.strategy)
        if not processes.is_main:
            logging.getLogger("training").setLevel(logging.WARNING)
        try:
            with run_lock(config.run_folder) if processes.is_main else nullcontext():
                return _run(config, processes, stop, resume)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Outside of a step's forward and backward pass, which halve the micro-batch.
            raise ModelError(
                f"Out of memory ({str(error)[:150]}). See with --check what needs how much; set base.quantize: int8 or "
                "nf4, optimizer.name: adamw8bit, a smaller basis, or fewer validation.images; then --resume latest."
            ) from error
        finally:
            processes.close()


def _run(config: TrainConfig, processes: Processes, stop: StopRequest, resume: str | None) -> RunResult:
    loop, state = assemble(config, processes, stop, resume=resume)
    try:
        loop.run(state)
    finally:
        loop.batches.close()
        loop.monitor.close()
    return RunResult(state.step, tuple(loop.losses), _finish(loop.config, state, processes), processes.world_size)


def assemble(
    config: TrainConfig, processes: Processes, stop: StopRequest, *, resume: str | None = None
) -> tuple[Loop, TrainingState]:
    """Return the loop and the state it starts from, everything loaded.

    Raises: LoRWeBError: every mistake a user can make, with its remedy.
    """
    _require_equal_shares(config, processes)
    if processes.is_main:
        require_trackers(config.tracking)  # before the minutes that the base takes
    saved = _find_saved(config, resume)
    processes.wait()
    source = find_source(config.base.model, config.base.components)
    if not has_text_encoders(source.components):  # the prompt is one zero token then, and the basis file says so
        config = config.model_copy(update={"text": config.text.model_copy(update={"max_tokens": 1})})
    if processes.is_main:
        config.run_folder.mkdir(parents=True, exist_ok=True)
        write_config(config.run_folder / "resolved.yaml", config)
    torch.manual_seed(config.run.seed)
    data, encoder, query_dim = build_encoders(config, source, processes)
    encoder_folder = find_encoder_folder(config.encoder.model, local_files_only=True)
    inputs = input_digests(data.records, source, encoder_folder) if processes.is_main else None
    state = build_state(config, source, query_dim, processes)
    if saved is not None:
        restore_state(state, saved, config)
        if inputs is not None:
            warn_of_changes(saved["inputs"], inputs)
    _require_one_step(state.step, processes)
    schedule = read_schedule(source.components)
    validator = Validator(
        data.validation, encoder, config.validation, schedule, config.run.seed,
        pause=lambda: leave_if(processes.any(stop.reason is not None)),
    )  # fmt: skip
    if processes.is_main:
        _tell_start(config, state.step, resume=resume, is_resumed=saved is not None)
    is_done = state.step >= config.run.steps  # no bar and no trackers for a run that has nothing left to do
    monitor = Monitor(config, first_step=state.step, is_main=processes.is_main and not is_done)
    batches = training_batches(
        data, config, first_step=state.step, rank=processes.rank, world_size=processes.world_size
    )
    leave_lost_children_to_the_loader()
    if saved is not None:  # last: whatever is built draws from them
        restore_random_states(saved["random"])
    is_saved = saved is not None and resume == "latest"
    callbacks = Callbacks(
        save=CheckpointSaver(config, processes, inputs, saved_step=state.step if is_saved else None),
        validate=ValidationCallback(validator, config, monitor, processes),
    )
    module = processes.wrap(state.model)
    return Loop(config, processes, module, encoder, batches, monitor, stop, callbacks), state


def _require_equal_shares(config: TrainConfig, processes: Processes) -> None:
    if config.run.batch_size % processes.world_size:
        raise SettingsError(
            expected=f"run.batch_size to be a multiple of the {processes.world_size} processes",
            got=str(config.run.batch_size),
            remedy="Change run.batch_size or the number of processes.",
        )


def _find_saved(config: TrainConfig, resume: str | None) -> dict[str, Any] | None:
    """The state to go on from; a run that exists already is never overwritten without being asked to."""
    folder = config.run_folder / "checkpoints"
    if resume == "latest":
        return load_latest(folder)
    if resume is not None:
        return load_checkpoint(Path(resume))
    if any(folder.glob("step-*")):  # damaged ones too
        raise OutputError(
            f"{config.run_folder} holds the checkpoints of an earlier run. Continue it with --resume latest, or choose "
            "another run.name."
        )
    return None


def _tell_start(config: TrainConfig, step: int, *, resume: str | None, is_resumed: bool) -> None:
    """Say where the run begins, in a line before the bar: there a misspelled run.name shows."""
    steps = config.run.steps
    if step >= steps:
        logger.info("nothing to do: step %d of %d is done", step, steps)
    elif is_resumed:
        logger.info("resumed at step %d of %d", step, steps)
    elif resume is not None:
        logger.info("starting at step 0 of %d: no checkpoint in %s yet", steps, config.run_folder / "checkpoints")


def _require_one_step(step: int, processes: Processes) -> None:
    """All processes must go on from the same checkpoint; on a disk of its own, a second machine would begin anew."""
    if processes.any(processes.mean(step) != step):
        raise CheckpointError(
            expected="all processes to go on from the same step",
            got=f"step {step} in process {processes.rank}, another one elsewhere",
            remedy="Set run.folder to a place that all machines share, or copy its checkpoints to each of them.",
        )


def _finish(config: TrainConfig, state: TrainingState, processes: Processes) -> Path | None:
    """Write the finished file and say where to copy it; for a stopped run, say how to go on."""
    if state.step < config.run.steps:
        logger.warning("stopped at step %d of %d; go on with --resume latest", state.step, config.run.steps)
        return None
    path = config.run_folder / f"{config.run.name}.safetensors"
    if processes.is_main:
        write_basis_file(path, state, config)
        logger.info("done. For ComfyUI copy %s to ComfyUI/models/lorweb/", path)
    processes.wait()
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    let_terminal_replace()
    text = (__doc__ or "").splitlines()
    examples = "\n".join(line[2:] for line in text if line.startswith("    "))
    parser = argparse.ArgumentParser(
        prog="python -m training.train", description="".join(text[:1]), epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--config", required=True, help="YAML file, or a shipped one such as paper.yaml")
    parser.add_argument("--resume", metavar="latest|FOLDER", help="go on from a checkpoint")
    parser.add_argument("--check", action="store_true", help="validate config, data, disk and memory; load no weights")
    parser.add_argument("overrides", nargs="*", metavar="section.name=value", help="values that replace the file's")
    options = parser.parse_intermixed_args(arguments)
    log_to_terminal(logging.INFO, "%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    silence_libraries()
    try:
        config = read_config(options.config, options.overrides)
        if options.check:
            report = preflight_report(config)
            show(*report.text().splitlines())
            return 0 if report.is_good else EXIT_TO_CORRECT
        result = train(config, resume=options.resume)
    except LoRWeBError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except StoppedAtOnceError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted; --resume latest goes on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_STOPPED if result.basis_file is None else 0


if __name__ == "__main__":
    code = main()
    if code == EXIT_STOPPED:  # without waiting for threads that still download or compile
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
