"""Where the settings of a basis file come from: the first source that states a setting decides it.

1. an explicit YAML file; 2. our header key `lorweb`; 3. a sidecar: `<name>.yaml` beside the file, or `config.yaml` when
the file is the only .safetensors of its folder; 4. defaults from shapes.

YAML is read in the reference's form or as a plain mapping with our names, any subset of the fields below:

    config: {process: [{network: {linear: 4, network_kwargs: {lora_softmax: true, query_mode: cat-aa'b, …}}}]}
    activation: softmax

The header key is one JSON object, {"format_version": 1, "basis_size": 32, "activation": "softmax", "encoder": {"id":
"…", "revision": "…"}, …, "training": {…}}: fields are only ever added, and a newer format_version is refused.

Sizes come from the tensors alone: the published config.yaml may say `linear: 1` beside tensors of rank 4, since the
reference takes them from its command line. Where a source differs, and what was assumed, is reported. `linear_alpha`
is ignored: the scale is always 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from .basis import LayerBasis
from .errors import CheckpointError, FileError, SettingsError
from .files import parse_json, read_yaml
from .settings import RouterSettings

#: Our name → the name in the reference's network_kwargs, "" where it has none (`rank` is `linear`, beside them).
_REFERENCE_NAMES = {
    "activation": "lora_softmax",
    "heads": "lora_heads",
    "reduction": "mixing_coeffs_type",
    "query_mode": "query_mode",
    "encoder": "external_query_model",
    "base_model": "",
    # The tensors decide the rest, and a source that differs is reported.
    "basis_size": "loras_num",
    "rank": "",
    "key_dim": "lora_keys_dim",
    "query_projection": "query_projection_type",
    "external_query": "external_query",
}
_SIZES = ("basis_size", "rank", "key_dim")
_FACTS = (*_SIZES, "query_projection", "external_query")
#: Settings without which coefficients would be guesses.
_NEEDED = ("activation", "heads", "reduction", "query_mode", "encoder_id")

METADATA_KEY = "lorweb"
FORMAT_VERSION = 1
#: T5 tokens per prompt of diffusers' Kontext pipeline, with which the reference trains.
PIPELINE_TOKENS = 512
#: Widths of common image embeddings that are divisible by 3 although they are not three joined ones.
_SINGLE_EMBEDDING_WIDTHS = (768, 1152)


def resolve_settings(
    path: Path, metadata: Mapping[str, str], layers: Mapping[str, LayerBasis], explicit: Path | None
) -> tuple[RouterSettings, str, tuple[str, ...]]:
    """Return the settings of a basis file, their sources (for people), and lines on what was assumed or disagreed.

    Sidecars are looked for beside the file; the entries of an `explicit` YAML file go first. Raises SettingsError,
    CheckpointError or FileError for a source that is unusable or asks for an internal query.
    """
    report = []
    sources: list[tuple[str, dict[str, Any]]] = []
    if explicit is not None:
        sources.append((f"settings file {explicit.name}", read_settings_file(explicit)))
        if not set(sources[0][1]) - set(_FACTS):
            raise SettingsError(f"{explicit.name} states no router settings. Name the config.yaml of the basis.")
    if METADATA_KEY in metadata:
        sources.append((f"the header of {path.name}", _read_header_settings(metadata[METADATA_KEY], path.name)))
    sidecar = find_sidecar(path)
    if sidecar:
        try:
            sources.append((f"settings file {sidecar.name}", read_settings_file(sidecar)))
        except (FileError, SettingsError) as error:
            if not all(any(name in stated for _, stated in sources) for name in _NEEDED):
                raise
            report.append(f"{path.name}: {sidecar.name} was not needed and is unusable: {error}")

    projections = {"none" if layer.query_projection is None else "linear" for layer in layers.values()}
    facts: dict[str, list[Any]] = {
        **_distinct_sizes(layers),
        "query_projection": sorted(projections),
        "external_query": [True],
    }
    may_be_internal = all(layer.query_dim == layer.in_features for layer in layers.values())
    values: dict[str, Any] = {}
    used: list[str] = []
    for source, stated in sources:
        wrong = {name: stated[name] for name in _FACTS if name in stated and stated[name] not in facts[name]}
        if wrong.get("external_query") is False and may_be_internal:
            raise SettingsError(
                f"{source} says external_query: false: the query is pooled from each layer's own input, and the "
                "coefficients change with every step. Use a basis whose query comes from an image encoder."
            )
        if wrong:
            found = {name: "/".join(map(str, facts[name])) for name in wrong}
            report.append(f"{path.name}: the tensors have {_list(found)}; {source} says {_list(wrong)}.")
        router = {name: value for name, value in stated.items() if name not in _FACTS}
        overruled = {name: value for name, value in router.items() if values.get(name, value) != value}
        if overruled and explicit is None:
            report.append(f"{path.name}: {source} says {_list(overruled)}, but {used[0]} counts.")
        if not router.keys() <= values.keys():
            used.append(source)
        values = router | values

    width = next(iter(layers.values())).query_dim
    is_joined = width % 3 == 0 and width not in _SINGLE_EMBEDDING_WIDTHS
    defaults = asdict(RouterSettings(query_mode="cat-aa'b" if is_joined else "aa'bb'"))
    assumed = {name: defaults[name] for name in _NEEDED if name not in values}
    settings = RouterSettings(**values, **assumed)
    require_fitting(settings, layers)
    if assumed:
        read = " and ".join(source for source, _ in sources) or "header or sidecar"
        report.append(
            f"{path.name}: {len(assumed)} settings not stated by {read}; assumed {_list(assumed)}. "
            f"To be sure, put its config.yaml beside it as {path.stem}.yaml."
        )
        if assumed.get("query_mode") == "aa'bb'":
            report.append(
                f"{path.name}: query width {width} is one image embedding; which single-image query mode was trained "
                "cannot be read from the file."
            )
        if not sidecar and path.with_name("config.yaml").is_file():
            count = len(_bases_beside(path))
            report.append(f"{path.name}: config.yaml was not read, since the folder holds {count} .safetensors files.")
        used.append("defaults")
    return settings, " and ".join(used), tuple(report)


def require_fitting(settings: RouterSettings, layers: Mapping[str, LayerBasis]) -> None:
    """Raise a SettingsError unless heads divide the keys and the query mode divides the query width."""
    for name, layer in layers.items():
        if layer.key_dim % settings.heads:
            raise SettingsError(
                f"heads is {settings.heads}, which does not divide the key width {layer.key_dim} of layer {name}. "
                "Correct heads in the settings; the published basis uses 1."
            )
        if layer.query_dim % settings.embeddings_per_query:
            raise SettingsError(
                f"query_mode is {settings.query_mode}, which joins {settings.embeddings_per_query} embeddings of equal "
                f"width, but the query width is {layer.query_dim}. Set the query_mode that the basis was trained with."
            )


def _distinct_sizes(layers: Mapping[str, LayerBasis]) -> dict[str, list[int]]:
    return {name: sorted({getattr(layer, name) for layer in layers.values()}) for name in _SIZES}


def find_sidecar(path: Path) -> Path | None:
    """Return the YAML file that belongs to a basis file, if there is one."""
    own, shared = path.with_suffix(".yaml"), path.with_name("config.yaml")
    if own.is_file():
        return own
    return shared if shared.is_file() and len(_bases_beside(path)) == 1 else None


def _bases_beside(path: Path) -> list[Path]:
    return [file for file in path.parent.iterdir() if file.suffix.lower() == ".safetensors"]


def _list(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {str(value)[:80]}" for name, value in values.items())


def read_settings_file(path: Path) -> dict[str, Any]:
    """Return what a YAML file says, in the reference's form or the plain one; an empty dict if it contains no settings.

    The names are those of `RouterSettings` and `_FACTS`. Raises FileError when it is unreadable or not YAML,
    SettingsError for unknown names or unusable values.
    """
    content = read_yaml(path)
    source = f"settings file {path.name}"
    if not isinstance(content, dict):
        return {}
    if not {"config", "job"} & set(content):
        return _read_plain_form(content, source)
    # The reference's form, any of whose sections may be missing.
    config = content.get("config")
    processes = config.get("process") if isinstance(config, dict) else None
    processes = processes if isinstance(processes, list) else ()
    networks = [process.get("network") for process in processes if isinstance(process, dict)]
    network = next((network for network in networks if isinstance(network, dict)), {})
    arguments = network.get("network_kwargs")
    arguments = arguments if isinstance(arguments, dict) else {}
    plain = {ours: arguments.get(theirs) for ours, theirs in _REFERENCE_NAMES.items() if theirs}
    plain["rank"] = network.get("linear")
    for name in ("activation", "external_query"):
        if plain[name] is not None:
            truth = {"true": True, "1": True, "false": False, "0": False}.get(str(_as_number(plain[name])).lower())
            if truth is None:
                value = repr(plain[name])[:80]
                raise SettingsError(f"{source}: {_REFERENCE_NAMES[name]} is {value}. Write true or false.")
            plain[name] = ("softmax" if truth else "tanh") if name == "activation" else truth
    return _read_plain_form(plain, source)


def _read_header_settings(text: str, file_name: str) -> dict[str, Any]:
    content = parse_json(text, f"The header key {METADATA_KEY} of {file_name}")
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        raise CheckpointError(
            f"The header key {METADATA_KEY} of {file_name} has no format_version: {text[:80]!r}. Get the file again."
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file_name} has format_version {version}, and this version reads up to {FORMAT_VERSION}. "
            "Update this node pack."
        )
    known = {name: value for name, value in content.items() if name in _REFERENCE_NAMES}
    return _read_plain_form(known, f"the header of {file_name}")


def _read_plain_form(content: Mapping[Any, Any], source: str) -> dict[str, Any]:
    known = (*_REFERENCE_NAMES, "format_version", "training")
    for name in islice(content, 20):
        nearest = get_close_matches(str(name), known, n=1)
        if name not in known and (nearest or set(known) & set(content)):
            advice = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(known)}."
            raise SettingsError(f"{source} has an unknown field {str(name)[:80]!r}; {advice}")
    stated = {name: content[name] for name in _REFERENCE_NAMES if content.get(name) is not None}
    encoder = stated.pop("encoder", None)
    if isinstance(encoder, dict):
        stated |= {"encoder_id": encoder.get("id"), "encoder_revision": str(encoder.get("revision") or "")}
    elif encoder is not None:
        stated["encoder_id"] = encoder
    stated |= {name: _as_number(stated[name]) for name in ("heads", *_FACTS) if name in stated}
    try:
        RouterSettings(**{name: value for name, value in stated.items() if name not in _FACTS})
    except SettingsError as error:
        raise SettingsError(f"{source}: {error}") from error
    return stated


def _as_number(value: object) -> object:
    """4 for 4.0 and "4", as YAML written by others has them; anything else as it is."""
    if isinstance(value, float | str):
        with suppress(ValueError, OverflowError):
            number = float(value)
            return int(number) if number.is_integer() else value
    return value


def encode_header_settings(
    settings: RouterSettings, layers: Mapping[str, LayerBasis], training: Mapping[str, Any] | None
) -> str:
    """Return the text of the header key: settings, sizes (null where layers differ), training facts."""
    content = {
        "format_version": FORMAT_VERSION,
        **{name: values[0] if len(values) == 1 else None for name, values in _distinct_sizes(layers).items()},
        "heads": settings.heads,
        "activation": settings.activation,
        "reduction": settings.reduction,
        "query_mode": settings.query_mode,
        "encoder": {"id": settings.encoder_id, "revision": settings.encoder_revision},
        "base_model": settings.base_model,
        "training": dict(training or {}),
    }
    return json.dumps(content, ensure_ascii=False)


def read_training_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the training facts of our header key, or the reference's `training_info`, or nothing."""
    for key, part in ((METADATA_KEY, "training"), ("training_info", None)):
        try:
            content = parse_json(metadata.get(key, "{}"), key)
        except FileError:
            continue
        facts = content.get(part) if part and isinstance(content, dict) else content
        if isinstance(facts, dict) and facts:
            return facts
    return {}


def trained_text_tokens(metadata: Mapping[str, str]) -> int | None:
    """Return the T5 tokens per prompt in training, pads included; None where a file of ours does not say.

    The base attends to pads, so another number of them is another prompt. 1: trained without text.
    """
    stated = read_training_facts(metadata).get("max_tokens")
    if type(stated) is int and 1 <= stated <= PIPELINE_TOKENS:
        return stated
    return None if METADATA_KEY in metadata else PIPELINE_TOKENS
