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
    """Adjusted coefficients; the defaults, and top_k ≥ N, give the same numbers bit for bit.

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
    factors = part_factors(whole["layers"], strengths)
    adjusted = []
    for stack in stack_layers(whole["layers"]):
        values = stack.values
        if temperature != 1.0:
            values = apply_temperature(LayerStack(stack.names, values), temperature)
        if 0 < top_k < values.shape[-1]:
            values = keep_strongest(values, top_k, renormalize=renormalize)
        scale = torch.tensor([factors[name] for name in stack.names], dtype=torch.float64).to(values.dtype)
        values = values * scale[:, None, None]
        if not is_all_finite(values):
            layer = next(index for index, mix in enumerate(values) if not is_all_finite(mix))
            given = ", ".join(f"{part} {strength:g}" for part, strength in strengths.items() if strength != 1.0)
            raise SettingsError(
                f"The part strengths ({given or 'all 1'}) overflow float32 in {stack.names[layer]}, whose coefficients "
                f"reach {float(stack.values[layer].abs().max()):.2g}. Use smaller strengths, or an analogy with "
                "smaller numbers."
            )
        adjusted.append(LayerStack(stack.names, values))
    return with_layers(whole, unstack_layers(adjusted, whole["layers"]))


def apply_temperature(stack: LayerStack, temperature: float) -> Tensor:
    """A · |c|^(1/T) / Σ|c|^(1/T) with the sign of c, [L, B, N]; ShapeError if a layer has numbers of both signs."""
    values = stack.values
    has_both_signs = (values.amin(-1) < 0) & (values.amax(-1) > 0)  # [L, B]
    if bool(has_both_signs.any()):
        layer = int(has_both_signs.any(-1).nonzero()[0])
        raise ShapeError(
            f"Layer {stack.names[layer]} has negative and positive coefficients, which have no temperature. Adjust the "
            "temperature before a blend with weights outside of 0…1, or leave it at 1."
        )
    magnitude = values.abs()
    amount = magnitude.sum(-1, keepdim=True)
    highest = magnitude.amax(-1, keepdim=True)
    # Divided by the largest first, so that a low temperature cannot underflow all of them; 0/0 stays 0.
    powers = torch.where(highest > 0, magnitude / highest, 0.0).pow(1.0 / temperature)
    share = torch.where(highest > 0, powers / powers.sum(-1, keepdim=True), 0.0)
    return torch.sign(values) * share * amount


def keep_strongest(values: Tensor, top_k: int, *, renormalize: bool) -> Tensor:
    """Values [..., N] on the CPU with all but the k largest magnitudes zero, 0 < k < N; of equal ones the first."""
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


def part_factors(layer_names: Iterable[str], strengths: Mapping[str, float]) -> dict[str, float]:
    """Layer name → product of the strengths of its parts; 1 for layers outside the blocks."""
    parsed = {name: parse_layer_name(name) for name in layer_names}
    block_counts: dict[str, int] = {}
    for name in parsed.values():
        block_counts[name.block_kind] = max(block_counts.get(name.block_kind, 0), name.block_index + 1)
    factors = {}
    for layer_name, name in parsed.items():
        parts = parts_of_layer(name, block_count=block_counts[name.block_kind])
        factors[layer_name] = math.prod([strengths.get(part, 1.0) for part in parts])
    return factors


def parts_of_layer(name: LayerName, *, block_count: int) -> list[str]:
    """The parts of `PART_NAMES` that a layer belongs to; none outside the blocks.

    `block_count` is how many blocks its block list has (highest index + 1); each list is cut into thirds.
    """
    if name.block_kind == "other":
        return []
    third = THIRDS[int(3 * (name.block_index + 0.5) / block_count)]
    context = ["context"] if name.is_context else []
    return [*([name.part] if name.part in PART_NAMES else []), *context, third, name.block_kind]
