"""Our own header key `lorweb`: everything about a basis that its tensors cannot tell, as one JSON object.

    {"format_version": 1, "basis_size": 32, "rank": 4, "key_dim": 128, "heads": 1, "activation": "softmax",
     "reduction": "mean", "query_mode": "cat-aa'b", "encoder": {"id": "…", "revision": "…"}, "base_model": "…",
     "training": {…}}

A size is null when layers differ. The list is append-only: a reader ignores fields it does not know, and refuses a
newer format_version, which means that old fields changed their meaning. `training` holds free facts for people.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from .errors import CheckpointError, FileError
from .files import parse_json
from .settings import RouterSettings
from .sidecar import StatedSettings, read_plain_form

METADATA_KEY = "lorweb"
FORMAT_VERSION = 1
#: T5 tokens per prompt of diffusers' Kontext pipeline, with which the reference trains.
PIPELINE_TOKENS = 512


def encode_header_settings(
    settings: RouterSettings, sizes: Mapping[str, Collection[int]], training: Mapping[str, Any] | None
) -> str:
    """Return the header key's text.

    Args:
        settings: of the basis.
        sizes: basis_size, rank, key_dim → the values found among the layers; several become null.
        training: free facts, such as step and data set; must be JSON.
    """
    content = {
        "format_version": FORMAT_VERSION,
        **{name: next(iter(values)) if len(values) == 1 else None for name, values in sizes.items()},
        "heads": settings.heads,
        "activation": settings.activation,
        "reduction": settings.reduction,
        "query_mode": settings.query_mode,
        "encoder": {"id": settings.encoder_id, "revision": settings.encoder_revision},
        "base_model": settings.base_model,
        "training": dict(training or {}),
    }
    return json.dumps(content, ensure_ascii=False)


def read_header_settings(metadata: Mapping[str, str], file_name: str) -> StatedSettings | None:
    """Return what the header key says, or None when the file has none.

    Raises:
        FileError, CheckpointError: when it is no JSON object, or of a newer format.
        SettingsError: when a value is of the wrong kind.
    """
    if METADATA_KEY not in metadata:
        return None
    content = parse_json(metadata[METADATA_KEY], f"The header key {METADATA_KEY} of {file_name}")
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is not int or version < 1:
        text = metadata[METADATA_KEY][:80]
        raise CheckpointError(
            f"The header key {METADATA_KEY} of {file_name} has no format_version: {text!r}. Get the file again."
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file_name} has format_version {version}, and this version reads up to {FORMAT_VERSION}. "
            "Update this node pack."
        )
    known = {name: content[name] for name in _FIELDS if name in content}
    return read_plain_form(known, f"the header of {file_name}")


#: What is read of it; `encode_header_settings` writes these.
_FIELDS = ("basis_size", "rank", "key_dim", "heads", "activation", "reduction", "query_mode", "encoder", "base_model")


def read_training_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the training facts of our header key, or the reference's `training_info`, or nothing."""
    for key, field in ((METADATA_KEY, "training"), ("training_info", None)):
        try:
            content = parse_json(metadata.get(key, "{}"), key)
        except FileError:
            continue
        facts = content.get(field) if field and isinstance(content, dict) else content
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
