"""Router settings as files state them: the reference's `config.yaml`, or a plain mapping with our own names.

    config: {process: [{network: {linear: 4, network_kwargs: {lora_softmax: true, query_mode: cat-aa'b, …}}}]}
    activation: softmax      # the plain form, any subset; our header key is the same as JSON (`header_settings`)

Sizes in them are only compared with the tensors, which decide (`settings_sources`). `linear_alpha` is ignored: the
scale is always 1. Source: the format's description in the README (spec 6).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from .errors import SettingsError
from .files import read_yaml
from .settings import RouterSettings

#: Our names and those in the reference's network_kwargs (`rank` stands beside them, as `linear`).
_REFERENCE_NAMES = {
    "activation": "lora_softmax",
    "heads": "lora_heads",
    "reduction": "mixing_coeffs_type",
    "query_mode": "query_mode",
    "encoder": "external_query_model",
    "basis_size": "loras_num",
    "key_dim": "lora_keys_dim",
    "query_projection": "query_projection_type",
    "external_query": "external_query",
}
_ROUTER_FIELDS = ("activation", "heads", "reduction", "query_mode", "encoder", "base_model")
#: Facts that the tensors decide.
_TENSOR_FIELDS = ("basis_size", "rank", "key_dim", "query_projection", "external_query")
#: Fields of our header that say nothing about routing.
_OTHER_FIELDS = ("format_version", "training")


@dataclass(frozen=True)
class StatedSettings:
    """What one source says about a basis; anything may be missing.

    Attributes:
        source: where it stands, for messages ("settings file config.yaml").
        router: field of `RouterSettings` → value.
        facts: basis_size, rank, key_dim, query_projection, external_query → value, whatever it is.
    """

    source: str
    router: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_settings_file(path: Path) -> StatedSettings:
    """Return what a YAML file says, in the reference's form or the plain one; nothing when it is about other things.

    Raises:
        FileError: when it is unreadable or not YAML.
        SettingsError: for router settings that do not exist or have values that none can have.
    """
    content = read_yaml(path)
    source = f"settings file {path.name}"
    content = content if isinstance(content, dict) else {}
    is_reference_form = bool({"config", "job"} & set(content))
    return read_plain_form(_from_reference_form(content, source) if is_reference_form else content, source)


def read_plain_form(content: Mapping[Any, Any], source: str) -> StatedSettings:
    """Return what a mapping with our names says; nothing when it has none of them.

    Raises: SettingsError: for misspelled names and values that no basis can have.
    """
    known = (*_ROUTER_FIELDS, *_TENSOR_FIELDS, *_OTHER_FIELDS)
    for name in islice(content, 20):
        nearest = get_close_matches(str(name), known, n=1)
        if name not in known and (nearest or set(known) & set(content)):
            advice = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}."
            raise SettingsError(f"{source} has an unknown field {str(name)[:80]!r}; {advice}")
    stated = {name: value for name, value in content.items() if value is not None}
    router = {name: stated[name] for name in _ROUTER_FIELDS if name in stated}
    if "heads" in router:
        router["heads"] = _as_number(router["heads"])
    encoder = router.pop("encoder", None)
    if isinstance(encoder, dict):
        router |= {"encoder_id": encoder.get("id"), "encoder_revision": str(encoder.get("revision") or "")}
    elif encoder is not None:
        router["encoder_id"] = encoder
    try:
        RouterSettings(**router)
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from error
    return StatedSettings(source, router, {n: _as_number(stated[n]) for n in _TENSOR_FIELDS if n in stated})


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


def _from_reference_form(content: Mapping[Any, Any], source: str) -> dict[str, Any]:
    """Return the plain form of a config.yaml; its sections may be missing, as the command line can give them."""
    config = content.get("config")
    processes = config.get("process") if isinstance(config, dict) else None
    networks = [process.get("network") for process in processes or () if isinstance(process, dict)]
    network = next((network for network in networks if isinstance(network, dict)), {})
    arguments = network.get("network_kwargs")
    arguments = arguments if isinstance(arguments, dict) else {}
    plain = {ours: arguments[theirs] for ours, theirs in _REFERENCE_NAMES.items() if arguments.get(theirs) is not None}
    plain["rank"] = network.get("linear")
    for name in ("activation", "external_query"):
        if name in plain:
            truth = {"true": True, "1": True, "false": False, "0": False}.get(str(_as_number(plain[name])).lower())
            if truth is None:
                value = repr(plain[name])[:80]
                raise SettingsError(f"{source}: {_REFERENCE_NAMES[name]} is {value}. Write true or false.")
            plain[name] = ("softmax" if truth else "tanh") if name == "activation" else truth
    return plain


def _as_number(value: object) -> object:
    """Return 4 for 4.0 and "4", as YAML written by others has them; anything else as it is."""
    if isinstance(value, float | str):
        with suppress(ValueError, OverflowError):
            number = float(value)
            return int(number) if number.is_integer() else value
    return value
