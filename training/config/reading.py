"""YAML files and command-line overrides → a `TrainConfig`, with all errors reported at once.

extends: paper.yaml          # optional: another file beside this one, or a shipped one, whose values are the start
optimizer:
  learning_rate: 3e-4        # the same on the command line: optimizer.learning_rate=3e-4
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lorweb_core.errors import FileError, LoRWeBError, printable
from lorweb_core.files import parse_yaml, read_yaml, write_text_atomically

from .schema import TrainConfig

SHIPPED = Path(__file__).parent
_MAX_EXTENDS = 8
#: Errors that are listed: the search for the nearest known name takes a millisecond each.
_MAX_ERRORS = 50
_SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation for name, field in TrainConfig.model_fields.items() if isinstance(field.annotation, type)
}


class ConfigError(LoRWeBError):
    """A configuration has errors; all of them are in the message.

    Attributes:
        errors: one line each: dotted name, what is wrong.
    """

    def __init__(self, source: str, errors: Sequence[str]) -> None:
        count = f"{len(errors)} error{'s' if len(errors) != 1 else ''}"
        listed = "".join(f"\n  - {printable(error)}" for error in errors)
        message = f"{printable(source)} has {count}:{listed}\nCorrect the file or the command line (name=value)."
        super().__init__(message)
        self.args = (message,)  # one line per error
        self.errors = tuple(errors)


def read_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Return the configuration of a file with `section.name=value` overrides.

    Args:
        path: YAML file; a bare name such as `paper.yaml`, or `paper`, also finds the shipped ones.
        overrides: each `section.name=value`, value in YAML.
    Raises ConfigError with all errors of file and overrides.
    """
    values = _read_file(_find(Path(path)))
    errors = []
    for override in overrides:
        name, separator, text = override.partition("=")
        section, _, item = name.partition(".")
        if not (separator and section and item):
            errors.append(f"{override[:80]!r} is not of the form section.name=value")
            continue
        if not isinstance(values.get(section), dict):
            values[section] = {}
        try:
            values[section][item] = parse_yaml(text, f"{override[:80]!r}:")
        except FileError as error:
            errors.append(str(error))
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(str(path), errors + [_describe(item) for item in error.errors()[:_MAX_ERRORS]]) from error
    if errors:
        raise ConfigError(str(path), errors)
    return config


def write_config(path: Path, config: TrainConfig) -> None:
    """Write the resolved configuration with all values; reading it back gives an equal one."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text_atomically(path, f"# All values of this run, as resolved from file and command line.\n{text}")


def dotted_names() -> list[str]:
    """Return every name, `section.name`."""
    return [f"{section}.{item}" for section, model in _SECTIONS.items() for item in model.model_fields]


def _find(name: Path, *, folder: Path = Path()) -> Path:
    """The file of that name in a folder, else the shipped one of a bare name."""
    path = folder / name
    if len(name.parts) != 1 or (path.exists() and not path.is_dir()):
        return path
    shipped = [SHIPPED / f"{name}{suffix}" for suffix in ("", ".yaml")]
    return next((file for file in shipped if file.is_file()), path)


def _read_file(path: Path, depth: int = 0) -> dict[str, Any]:
    """The values of a file over those of the files that it extends."""
    try:
        values = read_yaml(path) or {}
    except FileError as error:
        names = ", ".join(sorted(file.name for file in SHIPPED.glob("*.yaml")))
        raise ConfigError(str(path), [f"{error} Shipped files: {names}"]) from error
    if not isinstance(values, dict):
        raise ConfigError(str(path), [f"must be sections with names and values, is a {type(values).__name__}"])
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if depth >= _MAX_EXTENDS:
        raise ConfigError(str(path), [f"extends: more than {_MAX_EXTENDS} files deep; does a file extend itself?"])
    merged = _read_file(_find(Path(str(parent)), folder=path.parent), depth + 1)
    for section, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(section), dict)
        merged[section] = {**merged[section], **value} if both else value
    return merged


def _describe(item: Mapping[str, Any]) -> str:
    """One error of pydantic's in a line, with the nearest known name for an unknown one."""
    location = [str(part) for part in item["loc"]]
    name = ".".join(location)
    if item["type"] == "extra_forbidden":
        section, known = _SECTIONS.get(location[0]) if len(location) > 1 else TrainConfig, dotted_names()
        siblings = list(section.model_fields) if section else []
        near = difflib.get_close_matches(location[-1], siblings, n=1)
        near = near or [dotted for dotted in known if dotted.rpartition(".")[2] == location[-1]]
        near = near or difflib.get_close_matches(name, known, n=1)
        return f"{name}: unknown name" + (f"; did you mean {near[0]}?" if near else f"; known: {', '.join(siblings)}")
    if item["type"] == "missing":
        return f"{name}: has no default and must be given"
    message = str(item["msg"]).removeprefix("Value error, ")
    shown = "" if item["type"] == "value_error" else f" (got {item['input']!r:.60})"
    return f"{name}: {message}{shown}" if name else message + shown
