"""Mode `weights`: the mixed LoRA becomes a patch of the host's weights, W + up @ down.

Costs nothing per step. The host keeps the originals of all patched weights in memory and patches every target
again whenever the mix changes.
"""

from __future__ import annotations

from typing import Any

from ..lorweb_core.coefficients import Coefficients
from ..lorweb_core.errors import ModelError
from ..lorweb_core.mixing import mix_layer
from . import host
from .targets import Model, Target


def patch_weights(model: Model, targets: list[Target], coefficients: Coefficients, *, strength: float) -> int:
    """Add the mixed LoRA of the first (only) mix to a cloned model's patches.

    Args:
        model: a clone that may be changed.
        targets: what to patch.
        coefficients: of one analogy.
        strength: handed to the host as the patches' strength.
    Returns: bytes that the patches hold beyond the basis itself (the folded sides).
    Raises: ModelError: when the host did not take every patch.
    """
    patches: dict[Any, Any] = {}
    folded_bytes = 0
    progress = host.Progress(len(targets))
    for target in targets:
        for part in target.parts:
            mixed = mix_layer(part.layer, coefficients["layers"][part.layer_name][0])
            patches[_patch_key(target, part.start, part.length, "weight")] = host.make_lora_patch(mixed.up, mixed.down)
            folded = mixed.down if part.layer.in_features <= part.layer.out_features else mixed.up
            folded_bytes += folded.numel() * folded.element_size()
            if mixed.bias is not None:
                patches[_patch_key(target, part.start, part.length, "bias")] = ("diff", (mixed.bias,))
        progress.step()
    _require_all_taken(patches, model.add_patches(patches, strength))
    return folded_bytes


def _patch_key(target: Target, start: int, length: int, parameter: str) -> Any:  # noqa: ANN401 - str, or (str, slice)
    key = f"{target.module_name}.{parameter}"
    return key if length == target.module.out_features else (key, (0, start, length))


def _require_all_taken(patches: dict[Any, Any], taken: list[Any]) -> None:
    refused = [str(key) for key in set(patches) - set(taken)]
    if refused:
        raise ModelError(
            expected=f"the model to take {len(patches)} patches",
            got=f"{len(refused)} refused (such as {', '.join(sorted(refused)[:3])})",
            remedy="Use mode forward, and report this with the names of the nodes between loader and Apply.",
        )
