"""What several commands share: argument types, printing, progress bars, and that no input is overwritten."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from ..basis import Basis
from ..checkpoint import load_basis
from ..errors import OutputError, printable


def add_settings_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--settings YAML`."""
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="YAML",
        help="settings that go before the basis' own: a config.yaml, or any of activation, heads, reduction, "
        "query_mode, encoder, base_model",
    )


def finite_number(text: str) -> float:
    """Return a number; argparse type."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number; got {text}")
    return number


def whole_number(text: str) -> int:
    """Return a whole number of at least 0; argparse type."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0; got {text}")
    return int(text)


def safetensors_path(text: str) -> Path:
    """Return the path of a .safetensors file to write; argparse type."""
    path = Path(text)
    if path.suffix != ".safetensors":
        raise argparse.ArgumentTypeError(f"expected a name that ends in .safetensors; got {text}")
    return path


def show(text: str) -> None:
    """Print a result. Files come from strangers, so that the terminal obeys no control characters in their texts."""
    print(printable(text, keep="\n\t"))


def load_with_progress(path: Path, settings: Path | None) -> Basis:
    """Return a basis, with a progress bar on stderr."""
    with progress_bar("reading", "layer") as on_progress:
        return load_basis(path, settings=settings, on_progress=on_progress)


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function (done, total) that draws a bar on stderr; nothing is drawn where stderr is no terminal."""
    with tqdm(desc=title, unit=unit, disable=None, leave=False) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_progress


def require_separate(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise an OutputError when a file to write is one of the files to read, or two outputs are one file."""
    read = [path for path in inputs if path is not None]
    written: list[Path] = []
    for output in outputs:
        clash = next((path for path in (*read, *written) if _is_same_file(output, path)), None)
        if clash is not None:
            raise OutputError(
                expected="an output of its own name",
                got=f"{output}, which is also {'an input' if clash in read else 'another output'}",
                remedy="Choose another name.",
            )
        written.append(output)


def _is_same_file(first: Path, second: Path) -> bool:
    if first.exists() and second.exists():
        return first.samefile(second)
    return os.path.normcase(os.path.realpath(first)) == os.path.normcase(os.path.realpath(second))
