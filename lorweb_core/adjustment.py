"""Adjusting one analogy: temperature, the strongest adapters only, strength by part of the model.

In this order, per layer, with A = Σ_n |c_n| of the incoming layer:

    temperature T   |c_n| ← A · |c_n|^(1/T) / Σ_m |c_m|^(1/T)    T < 1 sharpens, T > 1 evens out
    top_k           all but the k largest |c_n| ← 0; renormalized, the rest is scaled back to A
    part strengths  c ← c · Π strength of every part that the layer belongs to

With one head a temperature is exactly the router's own, softmax(scores / T). A softmax layer has A = 1; keeping A
instead of 1 lets several adjustments be combined. Part strengths end up in the numbers, so layers need not sum to 1.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .coefficients import Coefficients, is_all_finite, require_whole_coefficients, with_layers
from .errors import SettingsError, ShapeError
from .layer_names import parse_layer_name

THIRDS = ("early", "middle", "late")
#: Parts that can have a strength; a layer is scaled by the product over all parts it belongs to.
PART_NAMES = ("modulation", "attention", "mlp", "context", *THIRDS, "double", "single")


def adjust_coefficients(
    coefficients: Mapping[str, Any],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    renormalize: bool = True,
    part_strengths: Mapping[str, float] | None = None,
) -> Coefficients:
    """Return adjusted coefficients; the defaults, and top_k ≥ N, change no bit.

    Args:
        temperature: T > 0; 1 changes nothing.
        top_k: how many adapters a layer keeps, by magnitude (of equal ones the first); 0 keeps all.
        renormalize: scale what top_k keeps so that each layer keeps its Σ|c|.
        part_strengths: part of `PART_NAMES` → factor, any real number.
    Raises:
        SettingsError: for an unknown part, a temperature ≤ 0 or for a tanh basis, a negative top_k, or a strength that
            is not finite or overflows float32.
        ShapeError: for damaged coefficients, or a temperature where a layer's numbers have both signs.
    """
    whole = require_whole_coefficients(coefficients)
    strengths = dict(part_strengths or {})
    for name, strength in strengths.items():
        if name not in PART_NAMES:
            close = difflib.get_close_matches(name.lower(), PART_NAMES, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise SettingsError(f"{name!r} is not a part of the model; the parts are {', '.join(PART_NAMES)}.{hint}")
        if not math.isfinite(strength):
            raise SettingsError(f"The strength of {name} is {strength}. Use a finite number: 0 is off, 1 as trained.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise SettingsError(
            f"The temperature is {temperature:g}, but must be above 0. Use 1 for the trained value, less to sharpen, "
            "more to even out; top_k 1 keeps a single adapter."
        )
    if isinstance(top_k, bool) or int(top_k) != top_k or top_k < 0:
        raise SettingsError(f"top_k is {top_k!r}. Use 0 to keep all adapters, or how many to keep.")
    activation = whole["settings"].get("activation", "softmax")
    if temperature != 1.0 and activation != "softmax":
        raise SettingsError(
            f"The temperature is {temperature:g}, but this basis uses {activation}, which has no temperature. Leave "
            "the temperature at 1; top_k and part strengths work."
        )
    parts = parts_of_layers(whole["layers"])
    adjusted = {}
    for name, given in whole["layers"].items():
        values = given
        if temperature != 1.0:
            if bool(((values.amin(-1) < 0) & (values.amax(-1) > 0)).any()):
                raise ShapeError(
                    f"Layer {name} has negative and positive coefficients, which have no temperature. Adjust the "
                    "temperature before a blend with weights outside of 0…1, or leave it at 1."
                )
            values = _apply_temperature(values, temperature)
        if 0 < top_k < values.shape[-1]:
            values = _keep_strongest(values, top_k, renormalize=renormalize)
        values = values * math.prod(strengths.get(part, 1.0) for part in parts[name])
        if not is_all_finite(values):
            changed = ", ".join(f"{part} {strength:g}" for part, strength in strengths.items() if strength != 1.0)
            raise SettingsError(
                f"The part strengths ({changed or 'all 1'}) overflow float32 in {name}, whose coefficients reach "
                f"{float(given.abs().max()):.2g}. Use smaller strengths, or an analogy with smaller numbers."
            )
        adjusted[name] = values
    return with_layers(whole, adjusted)


def _apply_temperature(values: Tensor, temperature: float) -> Tensor:
    """A · |c|^(1/T) / Σ|c|^(1/T) with the sign of c, [B, N]."""
    magnitude = values.abs()
    highest = magnitude.amax(-1, keepdim=True)
    # Divided by the largest first, so that a low temperature cannot underflow all of them; 0/0 stays 0.
    powers = torch.where(highest > 0, magnitude / highest, 0.0).pow(1.0 / temperature)
    share = torch.where(highest > 0, powers / powers.sum(-1, keepdim=True), 0.0)
    return torch.sign(values) * share * magnitude.sum(-1, keepdim=True)


def _keep_strongest(values: Tensor, top_k: int, *, renormalize: bool) -> Tensor:
    """Return values [..., N] with all but the k largest magnitudes zero, 0 < k < N; of equal ones the first."""
    magnitude = values.abs()
    strongest = magnitude.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
    kept = torch.zeros_like(values).scatter(-1, strongest, values.gather(-1, strongest))
    if not renormalize:
        return kept
    remaining = kept.abs().sum(-1, keepdim=True)
    return torch.where(remaining > 0, kept * (magnitude.sum(-1, keepdim=True) / remaining), kept)


def parts_of_layers(layer_names: Iterable[str]) -> dict[str, list[str]]:
    """Return layer name → the parts of `PART_NAMES` that it belongs to; none outside the blocks.

    Each list of blocks, whose length is the highest block index + 1, is cut into thirds.
    """
    parsed = {layer_name: parse_layer_name(layer_name) for layer_name in layer_names}
    block_counts: dict[str, int] = {}
    for name in parsed.values():
        block_counts[name.block_kind] = max(block_counts.get(name.block_kind, 0), name.block_index + 1)
    parts: dict[str, list[str]] = {}
    for layer_name, name in parsed.items():
        parts[layer_name] = []
        if name.block_kind != "other":
            third = THIRDS[int(3 * (name.block_index + 0.5) / block_counts[name.block_kind])]
            named = [name.part, "context" if name.is_context else "", third, name.block_kind]
            parts[layer_name] = [part for part in named if part in PART_NAMES]
    return parts
