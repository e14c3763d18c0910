"""One analogy, shaped: temperature, the strongest adapters only, strength by part of the model.

In this order, each per layer and with A = Σ_n |c_n| of the incoming layer:

    temperature T   |c_n| ← A · |c_n|^(1/T) / Σ_m |c_m|^(1/T)    T < 1 sharpens, T > 1 evens out
    top_k           all but the k largest |c_n| ← 0; renormalized, the rest is scaled back to A
    part strengths  c ← c · Π strength of every part that the layer belongs to

With one head a temperature is exactly the router's own, softmax(scores / T). A softmax layer has A = 1; keeping A
instead of 1 lets adjustments follow each other. Part strengths end up in the numbers, so layers need not sum to 1.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .coefficients import (
    Coefficients,
    LayerStack,
    is_all_finite,
    require_whole_coefficients,
    stack_layers,
    unstack_layers,
    with_layers,
)
from .errors import SettingsError, ShapeError
from .layer_names import LayerName, parse_layer_name

THIRDS = ("early", "middle", "late")
#: Parts that a strength can be given to. A layer takes the product of all that it belongs to.
PART_NAMES = ("modulation", "attention", "mlp", "context", *THIRDS, "double", "single")

#: Named sets of part strengths; what is not listed is 1.
PRESETS: dict[str, dict[str, float]] = {
    "as encoded": {},
    "modulation only": {"attention": 0.0, "mlp": 0.0},
    "attention only": {"modulation": 0.0, "mlp": 0.0},
    "mlp only": {"modulation": 0.0, "attention": 0.0},
    "no modulation": {"modulation": 0.0},
    "no context stream": {"context": 0.0},
    "early blocks only": {"middle": 0.0, "late": 0.0},
    "middle blocks only": {"early": 0.0, "late": 0.0},
    "late blocks only": {"early": 0.0, "middle": 0.0},
    "double blocks only": {"single": 0.0},
    "single blocks only": {"double": 0.0},
    "gentle early blocks": {"early": 0.5, "middle": 0.75},
    "gentle late blocks": {"middle": 0.75, "late": 0.5},
}
DEFAULT_PRESET = "as encoded"


def adjust_coefficients(
    coefficients: Mapping[str, Any],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    renormalize: bool = True,
    part_strengths: Mapping[str, float] | None = None,
    preset: str = DEFAULT_PRESET,
) -> Coefficients:
    """Return adjusted coefficients; the defaults, and top_k ≥ N, give the same numbers bit for bit.

    Args:
        coefficients: B mixes; not changed.
        temperature: T > 0; 1 leaves all as it is.
        top_k: how many adapters a layer keeps, by magnitude (of equal ones the first); 0 keeps all.
        renormalize: scale what top_k keeps so that each layer keeps its Σ|c|.
        part_strengths: part of `PART_NAMES` → factor, any real number.
        preset: one of `PRESETS`; multiplied with the part strengths.
    Raises:
        SettingsError: for an unknown part or preset, a temperature ≤ 0, a negative top_k, a strength that is not
            finite or makes numbers infinite, or a temperature for a tanh basis.
        ShapeError: for damaged coefficients, or a temperature where a layer's numbers have both signs.
    """
    whole = require_whole_coefficients(coefficients)
    strengths = combine_strengths(part_strengths or {}, preset)
    _require_shaping(temperature, top_k, str(whole["settings"].get("activation", "softmax")))
    factors = part_factors(whole["layers"], strengths)
    adjusted = []
    for stack in stack_layers(whole["layers"]):
        values = stack.values
        if temperature != 1.0:
            values = apply_temperature(LayerStack(stack.names, values), temperature)
        if 0 < top_k < values.shape[-1]:
            values = keep_strongest(values, top_k, renormalize=renormalize)
        scale = torch.tensor([factors[name] for name in stack.names], dtype=torch.float64).to(values.dtype)
        adjusted.append(LayerStack(stack.names, values * scale[:, None, None]))
        _require_finite(adjusted[-1], stack, strengths)
    return with_layers(whole, unstack_layers(adjusted, whole["layers"]))


def apply_temperature(stack: LayerStack, temperature: float) -> Tensor:
    """Return A · |c|^(1/T) / Σ|c|^(1/T) with c's sign, [L, B, N].

    Raises: ShapeError: when a layer has numbers of both signs, whose powers are not defined.
    """
    values = stack.values
    has_both_signs = (values.amin(-1) < 0) & (values.amax(-1) > 0)  # [L, B]
    if bool(has_both_signs.any()):
        layer = int(has_both_signs.any(-1).nonzero()[0])
        raise ShapeError(
            expected="coefficients of one sign in each layer, whose powers c^(1/T) exist",
            got=f"negative and positive ones in {stack.names[layer]}",
            remedy="Adjust the temperature before a blend with weights outside of 0…1, or leave it at 1.",
        )
    magnitude = values.abs()
    amount = magnitude.sum(-1, keepdim=True)
    highest = magnitude.amax(-1, keepdim=True)
    # Divided by the largest first, so that a low temperature cannot underflow all of them; 0/0 stays 0.
    powers = torch.where(highest > 0, magnitude / highest, 0.0).pow(1.0 / temperature)
    share = torch.where(highest > 0, powers / powers.sum(-1, keepdim=True), 0.0)
    return torch.sign(values) * share * amount


def keep_strongest(values: Tensor, top_k: int, *, renormalize: bool) -> Tensor:
    """Return values [..., N] on the CPU with all but the k largest magnitudes zero, 0 < k < N; of equal ones the first
    stay.
    """
    magnitude = values.abs()
    place = values.shape[-1] - top_k
    # numpy finds the k-th largest of many short rows in a fraction of the time that torch takes to sort them.
    limit = torch.from_numpy(np.partition(magnitude.numpy(), place, axis=-1)[..., place, None])
    is_kept = magnitude >= limit
    if int(is_kept.sum()) > top_k * limit.numel():  # equal ones at the limit
        order = magnitude.argsort(dim=-1, descending=True, stable=True)
        is_kept = torch.zeros_like(is_kept).scatter_(-1, order[..., :top_k], True)
    kept = torch.where(is_kept, values, 0.0)
    if not renormalize:
        return kept
    remaining = kept.abs().sum(-1, keepdim=True)
    return torch.where(remaining > 0, kept * (magnitude.sum(-1, keepdim=True) / remaining), kept)


def combine_strengths(part_strengths: Mapping[str, float], preset: str) -> dict[str, float]:
    """Return a strength for every part: the preset's times the given one.

    Raises: SettingsError: for unknown names and strengths that are not finite.
    """
    if preset not in PRESETS:
        raise _unknown("preset", [preset], PRESETS)
    unknown = [name for name in part_strengths if name not in PART_NAMES]
    if unknown:
        raise _unknown("parts of the model", unknown, PART_NAMES)
    infinite = [name for name, strength in part_strengths.items() if not math.isfinite(strength)]
    if infinite:
        raise SettingsError(
            expected="finite part strengths",
            got=", ".join(f"{name} {part_strengths[name]}" for name in infinite),
            remedy="Use a number such as 0 (off), 1 (as trained) or 1.5.",
        )
    return {name: float(part_strengths.get(name, 1.0)) * PRESETS[preset].get(name, 1.0) for name in PART_NAMES}


def part_factors(layer_names: Iterable[str], strengths: Mapping[str, float]) -> dict[str, float]:
    """Return layer name → product of the strengths of its parts; 1 for layers outside of the blocks."""
    names = list(layer_names)
    if all(strengths.get(part, 1.0) == 1.0 for part in PART_NAMES):
        return dict.fromkeys(names, 1.0)
    parsed = {name: parse_layer_name(name) for name in names}
    block_counts: dict[str, int] = {}
    for name in parsed.values():
        block_counts[name.block_kind] = max(block_counts.get(name.block_kind, 0), name.block_index + 1)
    factors = {}
    for layer_name, name in parsed.items():
        parts = parts_of_layer(name, block_count=block_counts[name.block_kind])
        factors[layer_name] = math.prod([strengths.get(part, 1.0) for part in parts])
    return factors


def parts_of_layer(name: LayerName, *, block_count: int) -> list[str]:
    """Return the parts of `PART_NAMES` that a layer belongs to; none for one outside of the blocks.

    Args:
        name: the layer.
        block_count: how many blocks its block list has (highest index + 1); each list is cut into three thirds.
    """
    if name.block_kind == "other":
        return []
    third = THIRDS[int(3 * (name.block_index + 0.5) / block_count)]
    context = ["context"] if name.is_context else []
    return [*([name.part] if name.part in PART_NAMES else []), *context, third, name.block_kind]


def _require_shaping(temperature: float, top_k: int, activation: str) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise SettingsError(
            expected="a temperature above 0",
            got=f"{temperature:g}",
            remedy="Use 1 for the trained value, less to sharpen, more to even out; top_k 1 keeps one adapter only.",
        )
    if isinstance(top_k, bool) or int(top_k) != top_k or top_k < 0:
        raise SettingsError(
            expected="top_k to be a whole number of at least 0",
            got=repr(top_k),
            remedy="Use 0 to keep all adapters, or how many to keep.",
        )
    if temperature != 1.0 and activation != "softmax":
        raise SettingsError(
            expected="temperature 1 for a basis whose coefficients are no softmax",
            got=f"{temperature:g} for one with {activation}, which has no temperature",
            remedy="Leave the temperature at 1; top_k and part strengths work.",
        )


def _require_finite(adjusted: LayerStack, before: LayerStack, strengths: Mapping[str, float]) -> None:
    """Raise when finite numbers have become infinite, with the strengths that were given."""
    if is_all_finite(adjusted.values):
        return
    layer = next(index for index, values in enumerate(adjusted.values) if not is_all_finite(values))
    given = ", ".join(f"{part} {strength:g}" for part, strength in strengths.items() if strength != 1.0)
    raise SettingsError(
        expected=f"part strengths that keep coefficients within float32, up to {torch.finfo(torch.float32).max:.2g}",
        got=f"{given or 'all strengths 1'} for coefficients of up to {float(before.values[layer].abs().max()):.2g} "
        f"in {before.names[layer]}",
        remedy="Use smaller strengths, or an analogy with smaller numbers; those of a softmax are at most 1.",
    )


def _unknown(what: str, names: list[str], known: Iterable[str]) -> SettingsError:
    choices = list(known)
    close = difflib.get_close_matches(names[0].lower(), choices, n=1, cutoff=0.5)
    return SettingsError(
        expected=f"{what} among {', '.join(choices)}",
        got=", ".join(map(repr, names)),
        remedy=f"Did you mean {close[0]!r}?" if close else "Choose from these names.",
    )
