"""YAML files and command-line overrides → a `TrainConfig`, with every mistake told at once.

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

_MAX_EXTENDS = 8
_MAX_SECTIONS = 3
#: Described with the nearest known name, which takes a millisecond each.
_MAX_MISTAKES = 50
SHIPPED = Path(__file__).parent


class ConfigError(LoRWeBError):
    """A configuration has mistakes; all of them are in the message.

    Attributes:
        mistakes: one line each: dotted name, what is wrong.
    """

    def __init__(self, source: str, mistakes: Sequence[str]) -> None:
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) != 1 else ''}"
        listed = "".join(f"\n  - {printable(mistake)}" for mistake in mistakes)
        message = f"{printable(source)} has {count}:{listed}\nCorrect the file or the command line (name=value)."
        super().__init__(message)
        self.args = (message,)  # one line per mistake
        self.mistakes = tuple(mistakes)


def read_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Return the configuration of a file with `section.name=value` overrides.

    Args:
        path: YAML file; a bare name such as `paper.yaml`, or `paper`, also finds the shipped ones.
        overrides: each `dotted.name=value`, value in YAML.
    Raises: ConfigError: with all mistakes of file and overrides.
    """
    values = _read_yaml(_find(Path(path)))
    mistakes = _apply_overrides(values, overrides)
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(str(path), mistakes + [_describe(item) for item in error.errors()[:_MAX_MISTAKES]]) from error
    if mistakes:
        raise ConfigError(str(path), mistakes)
    return config


def write_config(path: Path, config: TrainConfig) -> None:
    """Write the resolved configuration, every value spelled out; reading it back gives an equal one."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text_atomically(path, f"# Every value of this run, as resolved from file and command line.\n{text}")


def _find(name: Path, *, folder: Path = Path()) -> Path:
    """The file of that name in a folder, else the shipped one of a bare name."""
    path = folder / name
    if len(name.parts) != 1 or (path.exists() and not path.is_dir()):
        return path
    shipped = [SHIPPED / f"{name}{suffix}" for suffix in ("", ".yaml")]
    return next((file for file in shipped if file.is_file()), path)


def _read_yaml(path: Path, depth: int = 0) -> dict[str, Any]:
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
    return _merge(_read_yaml(_find(Path(str(parent)), folder=path.parent), depth + 1), values)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    mistakes = []
    for override in overrides:
        name, separator, text = override.partition("=")
        *sections, last = name.split(".")
        if not separator or not 1 <= len(sections) <= _MAX_SECTIONS:
            mistakes.append(f"{override[:80]!r}: expected section.name=value")
            continue
        try:
            value = parse_yaml(text, f"{override[:80]!r}:")
        except FileError as error:
            mistakes.append(str(error))
            continue
        target = values
        for section in sections:
            if not isinstance(target.get(section), dict):
                target[section] = {}
            target = target[section]
        target[last] = value
    return mistakes


def _describe(item: Mapping[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    name = ".".join(location)
    if item["type"] == "extra_forbidden":
        return f"{name}: unknown name{_nearest(location)}"
    if item["type"] == "missing":
        return f"{name}: has no default and must be given"
    message = str(item["msg"]).removeprefix("Value error, ")
    shown = "" if item["type"] == "value_error" else f" (got {item['input']!r:.60})"
    return f"{name}: {message}{shown}" if name else message + shown


def _nearest(location: Sequence[str]) -> str:
    section: type[BaseModel] | None = TrainConfig
    for part in location[:-1]:
        section = _sections(section).get(part) if section else None
    names = dotted_names()
    siblings = list(section.model_fields) if section else []
    near = difflib.get_close_matches(location[-1], siblings, n=1) or [
        dotted for dotted in names if dotted.rpartition(".")[2] == location[-1]
    ]
    near = near or difflib.get_close_matches(".".join(location), names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(siblings)}"


def dotted_names() -> list[str]:
    """Return every name of the tree, `section.name`."""
    return [f"{name}.{item}" for name, section in _sections(TrainConfig).items() for item in section.model_fields]


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields of a model that are models themselves."""
    annotations = {name: field.annotation for name, field in model.model_fields.items()}
    return {
        name: annotation
        for name, annotation in annotations.items()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel)
    }
