"""Mode `weights`: the mixed LoRA becomes a patch of the host's weights, W + up @ down.

Nodes that save, merge or extract a model see it. The host keeps the original of every patched weight in memory, patches
all of them again whenever the mix changes, and rounds the result to the weights' own number format.
"""

from __future__ import annotations

from typing import Any

from ..lorweb_core.coefficients import Coefficients, count_mixes
from ..lorweb_core.errors import ModelError
from ..lorweb_core.mixing import mix_layer
from . import host
from .host import Model
from .targets import Target


def patch_weights(model: Model, targets: list[Target], coefficients: Coefficients, *, strength: float) -> int:
    """Add the mixed LoRA of the only mix to a cloned model's patches, with `strength` as the patches' strength.

    Returns the bytes that the patches hold beyond the basis itself (the sides with the coefficients folded in).
    Raises ModelError for several mixes, or if the host did not take every patch.
    """
    if count_mixes(coefficients) > 1:
        raise ModelError(
            f"There are {count_mixes(coefficients)} mixes, one per analogy, but a model has one set of weights. "
            "Use mode forward, or encode one analogy only."
        )
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
    refused = sorted(str(key) for key in set(patches) - set(model.add_patches(patches, strength)))
    if refused:
        raise ModelError(
            f"The model refused {len(refused)} of {len(patches)} patches (such as {', '.join(refused[:3])}). "
            "Use mode forward, and report this with the names of the nodes between loader and Apply."
        )
    return folded_bytes


def _patch_key(target: Target, start: int, length: int, parameter: str) -> Any:  # noqa: ANN401 - str, or (str, slice)
    key = f"{target.module_name}.{parameter}"
    return key if length == target.module.out_features else (key, (0, start, length))
