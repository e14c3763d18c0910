"""Router settings in YAML: the reference's `config.yaml`, or a plain mapping with our header's field names.

    config: {process: [{network: {linear: 4, network_kwargs: {lora_softmax: true, query_mode: cat-aa'b, …}}}]}
    activation: softmax            # the plain form; any subset of heads, reduction, query_mode, encoder, base_model

Read with YAML's safe loader only. Here is what a file says; which source wins is `settings_sources`' subject.
Source: the format's description in the README (spec 6). `linear_alpha` is ignored: the scale is always 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from .errors import SettingsError
from .settings import RouterSettings

#: A sidecar is a page of text; more is another file.
MAX_BYTES = 1_000_000

_PLAIN_FIELDS = ("activation", "heads", "reduction", "query_mode", "encoder", "base_model")
_SIZE_FIELDS = ("basis_size", "rank", "key_dim")
#: Fields of our header that say nothing about routing.
_OTHER_FIELDS = ("format_version", "training")


@dataclass(frozen=True)
class StatedSettings:
    """What one source says about a basis; anything may be missing.

    Attributes:
        source: where it stands, for messages ("sidecar config.yaml").
        router: field of `RouterSettings` → value.
        sizes: basis_size, rank, key_dim → number, to be compared with the tensors.
        has_projection: whether layers project the query, when the source says so.
    """

    source: str
    router: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    has_projection: bool | None = None


def read_settings_file(path: Path) -> StatedSettings:
    """Return what a YAML file says, in the reference's form or the plain one.

    Raises: SettingsError: when it is unreadable, no YAML, neither form, asks for an internal query, or a value is of
        the wrong kind.
    """
    source = name_settings_file(path)
    content = _load_yaml(path)
    if isinstance(content, dict) and "config" in content:
        return _read_reference_form(content, source)
    if isinstance(content, dict) and content and not {"job", "process", "network"} & set(content):
        return read_plain_form(content, source)
    raise _no_settings(source, "config.process[0].network, or activation, heads, reduction, query_mode, encoder")


def name_settings_file(path: Path) -> str:
    """Return how messages and `StatedSettings.source` call a YAML file."""
    return f"settings file {path.name}"


def read_plain_form(content: Mapping[Any, Any], source: str) -> StatedSettings:
    """Return what a mapping with the header's field names says (see `header_settings`).

    Raises: SettingsError: for unknown fields and values of the wrong kind.
    """
    known = (*_PLAIN_FIELDS, *_SIZE_FIELDS, *_OTHER_FIELDS)
    unknown = [str(key) for key in content if key not in known]
    if unknown:
        nearest = get_close_matches(unknown[0], known, n=1)
        raise SettingsError(
            expected=f"fields of {source} to be among {', '.join(known)}",
            got=", ".join(unknown[:3]),
            remedy=f"Did you mean {nearest[0]}?" if nearest else "Remove what is not listed.",
        )
    router = {key: content[key] for key in _PLAIN_FIELDS if content.get(key) is not None}
    router |= _read_encoder(router.pop("encoder", None), source)
    if "heads" in router:
        router["heads"] = _whole_number(router["heads"], "heads", source)
    sizes = {key: _whole_number(content[key], key, source) for key in _SIZE_FIELDS if content.get(key) is not None}
    return StatedSettings(source, router, sizes)


def reference_config(settings: RouterSettings, *, basis_size: int, rank: int, key_dim: int, projects: bool) -> str:
    """Return the text of the `config.yaml` that the reference's inference insists on, with all its keys."""
    arguments = {
        "lora_keys_dim": key_dim,
        "lora_heads": settings.heads,
        "mixing_coeffs_type": settings.reduction,
        "external_query": True,
        "pooling_type": "avg",  # without effect here, but the key must exist
        "query_projection_type": "linear" if projects else "none",
        "external_query_model": settings.encoder_id,
        "loras_num": basis_size,
        "lora_softmax": settings.activation == "softmax",
        "query_mode": settings.query_mode,
    }
    network = {"type": "attlora", "linear": rank, "linear_alpha": rank, "network_kwargs": arguments}
    return yaml.safe_dump({"config": {"process": [{"network": network}]}}, sort_keys=False)


def _read_reference_form(content: Mapping[Any, Any], source: str) -> StatedSettings:
    network = _find_network(content, source)
    arguments = network.get("network_kwargs") or {}
    if not isinstance(arguments, dict):
        raise _wrong_value("network_kwargs", "a mapping", arguments, source)
    if _truth(arguments.get("external_query", True), "external_query", source) is False:
        raise SettingsError(
            expected=f"external_query: true in {source}",
            got="external_query: false (the query is pooled from each layer's own input)",
            remedy="Such coefficients change with every step and cannot be computed once per analogy; "
            "use a basis whose query comes from an image encoder.",
        )
    router: dict[str, Any] = _present(
        arguments, {"mixing_coeffs_type": "reduction", "query_mode": "query_mode", "external_query_model": "encoder_id"}
    )
    if arguments.get("lora_heads") is not None:
        router["heads"] = _whole_number(arguments["lora_heads"], "lora_heads", source)
    if arguments.get("lora_softmax") is not None:
        router["activation"] = "softmax" if _truth(arguments["lora_softmax"], "lora_softmax", source) else "tanh"
    stated_sizes = _present(arguments, {"loras_num": "basis_size", "lora_keys_dim": "key_dim"})
    stated_sizes |= _present(network, {"linear": "rank"})
    sizes = {name: _whole_number(value, name, source) for name, value in stated_sizes.items()}
    return StatedSettings(source, router, sizes, _read_projection(arguments, source))


def _present(mapping: Mapping[Any, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    return {ours: mapping[theirs] for theirs, ours in renamed.items() if mapping.get(theirs) is not None}


def _find_network(content: Mapping[Any, Any], source: str) -> Mapping[Any, Any]:
    config = content["config"]
    processes = config.get("process") if isinstance(config, dict) else None
    process = processes[0] if isinstance(processes, list) and processes else None
    network = process.get("network") if isinstance(process, dict) else None
    if not isinstance(network, dict):
        raise _no_settings(source, "config.process[0].network")
    return network


def _read_projection(arguments: Mapping[Any, Any], source: str) -> bool | None:
    projection = arguments.get("query_projection_type")
    if projection not in (None, "linear", "none"):
        raise _wrong_value("query_projection_type", "linear or none", projection, source)
    return None if projection is None else projection == "linear"


def _read_encoder(encoder: object, source: str) -> dict[str, str]:
    if encoder is None:
        return {}
    if isinstance(encoder, str):
        return {"encoder_id": encoder}
    if not isinstance(encoder, dict) or not isinstance(encoder.get("id"), str):
        raise _wrong_value("encoder", "a mapping with id and revision", encoder, source)
    revision = encoder.get("revision") or ""
    return {"encoder_id": encoder["id"], "encoder_revision": str(revision)}


def _load_yaml(path: Path) -> object:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise _no_settings(f"settings file {path.name}", f"at most {MAX_BYTES:,} bytes of YAML")
        return yaml.safe_load(text.decode("utf-8-sig"))
    except OSError as error:
        raise SettingsError(
            expected=f"a readable YAML file at {path}",
            got=error.strerror or str(error),
            remedy="Check the path and the file's permissions.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(
            expected=f"{path.name} to be YAML text",
            got=" ".join(str(error).split())[:120],
            remedy="Correct it there, or get the config.yaml that was written beside the basis again.",
        ) from error


def _whole_number(value: object, name: str, source: str) -> int:
    """Return a whole number also where YAML gave text or a float ("4", 4.0)."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not number.is_integer() or not 1 <= number < 2**31:
        raise _wrong_value(name, "a whole number of at least 1", value, source)
    return int(number)


def _truth(value: object, name: str, source: str) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise _wrong_value(name, "true or false", value, source)
    return value


def _wrong_value(name: str, expected: str, value: object, source: str) -> SettingsError:
    return SettingsError(
        expected=f"{name} in {source} to be {expected}", got=repr(value)[:80], remedy="Correct it in that file."
    )


def _no_settings(source: str, expected: str) -> SettingsError:
    return SettingsError(
        expected=f"{source} to have {expected}",
        got="something else",
        remedy="Put the basis' own config.yaml there, or move this file out of the basis' folder.",
    )
