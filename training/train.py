"""Train a LoRWeB basis.

\b
    python -m training.train --config paper.yaml data.index=mydata/pairs.jsonl run.name=mine
    python -m training.train --config paper.yaml … --check            validate everything, load no weights
    python -m training.train --config paper.yaml … --resume latest    continue after a crash, Ctrl-C or preemption
    torchrun --nproc-per-node 3 -m training.train --config paper.yaml …

Everything of a run is in <run.folder>/<run.name>: resolved.yaml, metrics.jsonl, tensorboard/, checkpoints/,
validation/, and at the end <run.name>.safetensors for ComfyUI.

\b
Exit codes:
    0    success
    1    --check found errors
    2    an error in the command line, the config, the data or a model
    3    stopped by a signal before the last step
    130  interrupted twice, or before the run began
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lorweb_core.console import make_main, new_app
from lorweb_core.errors import ModelError

from .config.reading import read_config
from .config.schema import TrainConfig
from .console import show, silence_libraries
from .run.checkpoints import write_basis_file
from .run.distributed import Processes
from .run.lock import run_lock
from .run.memory import is_out_of_memory
from .run.preflight import preflight_report
from .run.session import assemble
from .run.signals import EXIT_STOPPED, StoppedAtOnceError, listen_for_signals

logger = logging.getLogger(__name__)
EXIT_CHECK_FAILED = 1
app = new_app(__doc__)
main = make_main(
    app, "python -m training.train", log_format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO,
    interrupted="interrupted; --resume latest continues from the last checkpoint",
)  # fmt: skip


@app.command(help=__doc__)
def train_command(
    config: Annotated[str, typer.Option(help="YAML file, or a shipped one such as paper.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="section.name=value", help="Values that replace the file's.")
    ] = None,
    resume: Annotated[str | None, typer.Option(metavar="latest|FOLDER", help="Continue from a checkpoint.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check config, data, disk and memory; load no weights.")
    ] = False,
) -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)
    silence_libraries()
    values = read_config(config, overrides or ())
    if check:
        report = preflight_report(values)
        show(*report.text().splitlines())
        raise typer.Exit(EXIT_CHECK_FAILED if report.errors else 0)
    try:
        result = train(values, resume=resume)
    except StoppedAtOnceError as error:
        print(f"stopped: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_STOPPED) from error
    raise typer.Exit(EXIT_STOPPED if result.basis_file is None else 0)


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        step: updates done.
        losses: of the steps made by this call of `train`, in order.
        basis_file: the finished file, or None when the run was stopped before its last step.
    """

    step: int
    losses: tuple[float, ...]
    basis_file: Path | None


def train(config: TrainConfig, *, resume: str | None = None) -> RunResult:
    """Train as configured, in this process or in all processes that torchrun started.

    Args:
        config: of the run.
        resume: `latest`, a checkpoint folder, or None to start.
    Raises LoRWeBError for everything that a user can get wrong.
    """
    with listen_for_signals() as stop:
        logger.info("run folder: %s", config.run_folder)
        processes = Processes(config.run.device, strategy=config.run.strategy)
        if not processes.is_main:
            logging.getLogger("training").setLevel(logging.WARNING)
        try:
            with run_lock(config.run_folder) if processes.is_main else nullcontext():
                loop, state = assemble(config, processes, stop, resume=resume)
                config = loop.config  # adapted to the base
                try:
                    loop.run(state)
                finally:
                    loop.batches.close()
                    loop.monitor.close()
                if state.step < config.run.steps:
                    logger.warning(
                        "stopped at step %d of %d; continue with --resume latest", state.step, config.run.steps
                    )
                    return RunResult(state.step, tuple(loop.losses), None)
                file = config.run_folder / f"{config.run.name}.safetensors"
                if processes.is_main:
                    write_basis_file(file, state, config)
                    logger.info("done. For ComfyUI copy %s to ComfyUI/models/lorweb/", file)
                processes.wait()
                return RunResult(state.step, tuple(loop.losses), file)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # Outside of a training step, which halves the micro-batch.
            raise ModelError(
                f"Out of memory ({str(error)[:150]}). --check shows what takes how much; set base.quantize: int8 or "
                "nf4, optimizer.name: adamw8bit, a smaller basis, or fewer validation.images; then continue with "
                "--resume latest."
            ) from error
        finally:
            processes.close()


def leave(code: int) -> None:
    """Exit; a stopped run does not wait for threads that still download or compile."""
    if code == EXIT_STOPPED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
