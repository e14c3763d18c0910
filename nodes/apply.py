"""Node Apply Mixed LoRA to Kontext: chooses how to patch, patches a clone, and says what it did."""

from __future__ import annotations

from typing import Any, ClassVar

from ..lorweb_core.coefficients import Coefficients, count_mixes, require_coefficients_of
from ..lorweb_core.errors import ModelError
from . import host
from .forward_mode import patch_forward
from .sockets import BASIS, COEFFICIENTS, LoadedBasis
from .targets import Model, Target, find_targets
from .weights_mode import patch_weights

MODES = ("auto", "weights", "forward")
#: Mode `weights` makes the host keep every original; this much more than their size must be free.
_RAM_MARGIN = 1.2


class ApplyMixedLoRA:
    """Give a Kontext model the edit that the coefficients stand for."""

    DESCRIPTION = (
        "Adds the analogy's mixed LoRA to a FLUX.1-Kontext model. The incoming model is not changed. "
        "Stacks with ordinary LoRA loaders and with itself, in any order."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "apply_and_show"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    OUTPUT_TOOLTIPS = ("The model with the edit.", "Mode taken and why, layers matched, memory.")
    SEARCH_ALIASES: ClassVar[list[str]] = ["analogy", "lora", "lorweb", "kontext", "edit by example"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Describe the sockets and widgets to the host."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "FLUX.1-Kontext in any weight format: bf16, fp8, scaled fp8, GGUF."}),
                "basis": (BASIS, {"tooltip": "The basis that the coefficients were encoded with."}),
                "coefficients": (COEFFICIENTS, {"tooltip": "From Encode Analogy (CLIP)."}),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -4.0,
                        "max": 4.0,
                        "step": 0.05,
                        "tooltip": "Factor on the edit: 1 as trained, 0 the bare model, negative reverses.",
                    },
                ),
                "mode": (
                    list(MODES),
                    {
                        "default": "auto",
                        "tooltip": "weights: patch the weights, no cost per step, needs RAM for the originals. "
                        "forward: add the edit to the layers' outputs, exact on quantised models, one mix per "
                        "sample possible. auto: chooses, and the report says why.",
                    },
                ),
            }
        }

    def apply_and_show(
        self, model: Model, basis: LoadedBasis, coefficients: Coefficients, strength: float, mode: str
    ) -> dict[str, Any]:
        """Return the same as `apply`, with the report also shown on the node."""
        patched, report = self.apply(model, basis, coefficients, strength, mode)
        return {"ui": {"text": [report]}, "result": (patched, report)}

    def apply(
        self, model: Model, basis: LoadedBasis, coefficients: Coefficients, strength: float, mode: str
    ) -> tuple[Model, str]:
        """Return a patched clone of the model and the report."""
        mixes = require_coefficients_of(basis.basis, coefficients)
        targets = find_targets(model, basis.basis)
        taken, reason = choose_mode(mode, targets, mixes=count_mixes(mixes))
        patched = model.clone()
        if strength == 0.0:
            return patched, "Strength 0: the model is passed on unchanged."
        if taken == "weights":
            extra_bytes = patch_weights(patched, targets, mixes, strength=strength)
        else:
            extra_bytes = patch_forward(patched, targets, basis, mixes, strength=strength)
        return patched, _report(taken, reason, targets, basis, mixes, strength, extra_bytes)


def choose_mode(mode: str, targets: list[Target], *, mixes: int) -> tuple[str, str]:
    """Return the mode to take, `weights` or `forward`, and the reason in words.

    Raises: ModelError: when `weights` is asked for and there are several mixes.
    """
    if mode == "weights" and mixes > 1:
        raise ModelError(
            expected="one mix for mode weights, since the model has one set of weights",
            got=f"{mixes} mixes, one per analogy",
            remedy="Use mode forward (or auto), or encode one analogy only.",
        )
    if mode != "auto":
        return mode, "as asked"
    if mixes > 1:
        return "forward", f"{mixes} mixes, one per sample"
    quantised = [target for target in targets if not target.is_plain]
    if quantised:
        weight = quantised[0].module.weight
        kind = type(weight).__name__ if not str(weight.dtype).startswith("torch.float8") else str(weight.dtype)
        return "forward", f"{len(quantised)} of {len(targets)} weights are quantised ({kind})"
    needed, free = sum(target.weight_bytes for target in targets), host.free_ram_bytes()
    if free > _RAM_MARGIN * needed:
        return "weights", f"plain weights, {_gigabytes(free)} RAM free for {_gigabytes(needed)} of originals"
    return "forward", f"{_gigabytes(free)} RAM free is too little to keep {_gigabytes(needed)} of originals"


def _report(
    mode: str,
    reason: str,
    targets: list[Target],
    loaded: LoadedBasis,
    coefficients: Coefficients,
    strength: float,
    extra_bytes: int,
) -> str:
    basis = loaded.basis
    if mode == "weights":
        originals = sum(target.weight_bytes for target in targets)
        memory = f"{_gigabytes(extra_bytes)} of patches, {_gigabytes(originals)} of originals kept by the host"
        change = f"a new mix makes the host patch all {len(targets)} weights again"
    else:
        memory = f"{_gigabytes(extra_bytes)} of adapters beside the model"
        change = "a new mix reloads nothing"
    lines = [
        f"Mode: {mode} ({reason})",
        f"Basis: {basis.name}, id {basis.basis_id}",
        f"Layers: {len(basis.layers)} matched on {len(targets)} weights, none missing",
        f"Mixes: {count_mixes(coefficients)}, strength {strength:g}",
        f"Memory: {memory}",
        f"Changing the analogy: {change}",
        *basis.report,
    ]
    return "\n".join(lines)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
