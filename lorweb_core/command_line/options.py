"""What several commands share: option types, printing, progress bars, and that no input is overwritten."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from ..basis import Basis
from ..checkpoint import load_basis
from ..errors import OutputError, printable


def finite(value: float | list[float] | None) -> float | list[float] | None:
    """Check that every number given to an option is finite; typer callback."""
    for number in value if isinstance(value, list) else [value]:
        if number is not None and not math.isfinite(number):
            raise typer.BadParameter(f"{number:g} is not a finite number.")
    return value


def safetensors_path(path: Path | None) -> Path | None:
    """Check the name of a file to write; typer callback."""
    if path is not None and path.suffix != ".safetensors":
        raise typer.BadParameter(f"{path} does not end in .safetensors.")
    return path


Output = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT", callback=safetensors_path, help=".safetensors file to write.")
]
_SETTINGS_HELP = (
    "Settings that override those of the basis: a config.yaml, or any of activation, heads, reduction, query_mode, "
    "encoder, base_model."
)
Settings = Annotated[Path | None, typer.Option(metavar="YAML", help=_SETTINGS_HELP)]


def show(text: str) -> None:
    """Print a result; control characters that a file brings along are written out."""
    print(printable(text, keep="\n\t"))


def load_with_progress(path: Path, settings: Path | None) -> Basis:
    """Load a basis with a progress bar on stderr."""
    with progress_bar("reading", "layer") as on_progress:
        return load_basis(path, settings=settings, on_progress=on_progress)


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function (done, total) that updates a bar on stderr; there is no bar if stderr is not a terminal."""
    with tqdm(desc=title, unit=unit, disable=None, leave=False) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_progress


def require_separate(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise an OutputError if an output is also an input, or two outputs are the same file."""
    used = [(path, "an input") for path in inputs if path is not None]
    for output in outputs:
        for path, role in used:
            if _is_same_file(output, path):
                raise OutputError(f"{output} is also {role}. Choose another name for the output.")
        used.append((output, "another output"))


def _is_same_file(first: Path, second: Path) -> bool:
    if first.exists() and second.exists():
        return first.samefile(second)
    return os.path.normcase(os.path.realpath(first)) == os.path.normcase(os.path.realpath(second))
