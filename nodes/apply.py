"""Node Apply Mixed LoRA to Kontext: chooses how to patch, patches a clone, and says what it did."""

from __future__ import annotations

from typing import Any, ClassVar

from ..lorweb_core.coefficients import Coefficients, count_mixes, require_coefficients_of
from ..lorweb_core.header_settings import trained_text_tokens
from ..lorweb_core.settings import RouterSettings
from .forward_mode import patch_forward
from .mode_choice import choose_mode, describe_quantised, describe_shortage, find_originals, gigabytes
from .sockets import BASIS, COEFFICIENTS, LoadedBasis
from .targets import Model, Target, find_targets
from .weights_mode import patch_weights

MODES = ("auto", "weights", "forward")
#: T5 tokens per prompt, pads included, unless T5 Tokenizer Options says otherwise.
_HOST_TEXT_TOKENS = 256
#: Settings that decide which coefficients an analogy gets.
_ROUTER_FIELDS = ("activation", "heads", "reduction", "query_mode")


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
        taken, reason = choose_mode(mode, model, targets, mixes=count_mixes(mixes))
        patched = model.clone()
        if strength == 0.0:
            return patched, "Strength 0: the model is passed on unchanged."
        if taken == "weights":
            extra_bytes = patch_weights(patched, targets, mixes, strength=strength)
        else:
            extra_bytes = patch_forward(patched, targets, basis, mixes, strength=strength)
        memory = _describe_memory(taken, model, targets, extra_bytes)
        lines = [
            f"Mode: {taken} ({reason})",
            f"Basis: {basis.basis.name}, id {basis.basis.basis_id}",
            f"Layers: {len(basis.basis.layers)} matched on {len(targets)} weights, none missing",
            f"Mixes: {count_mixes(mixes)}, strength {strength:g}",
            *_describe_other_router(basis.basis.settings, mixes),
            *_describe_text(trained_text_tokens(basis.basis.metadata)),
            *memory,
            *basis.basis.report,
        ]
        return patched, "\n".join(lines)


def _describe_other_router(settings: RouterSettings, coefficients: Coefficients) -> list[str]:
    """Return a line when the coefficients come from other router settings than the basis has by now.

    The basis' id does not change with its sidecar, so such coefficients fit in shape and mean another mix.
    """
    made_with = coefficients["settings"]
    others = [
        f"{name} {made_with[name]} (the basis has {getattr(settings, name)})"
        for name in _ROUTER_FIELDS
        if name in made_with and made_with[name] != getattr(settings, name)
    ]
    if not others:
        return []
    return [f"Coefficients made with other settings: {', '.join(others)}. Encode the analogy again to use the basis'."]


def _describe_text(tokens: int | None) -> list[str]:
    """Return a line on how long prompts were in training, which the prompt nodes before this one have to match."""
    if tokens is None:
        return []
    if tokens == 1:
        return ["Text: trained without; use Empty Prompt (No Text) as the prompt"]
    hint = f"T5 Tokenizer Options before the prompt needs min_length {tokens}"
    if tokens == _HOST_TEXT_TOKENS:
        hint = f"no T5 Tokenizer Options is needed, or one with min_length {tokens}"
    return [f"Text: trained with {tokens} T5 tokens a prompt, ComfyUI pads to {_HOST_TEXT_TOKENS}: {hint}"]


def _describe_memory(mode: str, model: Model, targets: list[Target], extra_bytes: int) -> list[str]:
    """Return the report's lines on memory and on what the mode costs later."""
    if mode == "forward":
        return [
            f"Memory: {gigabytes(extra_bytes)} of adapters beside the model",
            "Changing the analogy: a new mix reloads nothing",
        ]
    originals = find_originals(model, targets)
    kept = f"{gigabytes(originals.total_bytes)} of originals kept by the host in {originals.place}"
    return [
        f"Memory: {gigabytes(extra_bytes)} of patches, {kept if originals.total_bytes else 'no originals kept'}",
        f"Changing the analogy: a new mix makes the host patch all {len(targets)} weights again",
        *_warn_of_weights(model, targets),
    ]


def _warn_of_weights(model: Model, targets: list[Target]) -> list[str]:
    """Return what speaks against the mode `weights` that was asked for."""
    warnings = []
    quantised, shortage = describe_quantised(targets), describe_shortage(model)
    if quantised and any(target.is_patched_while_used for target in targets):
        warnings.append(f"Slow: {quantised}, and the host adds the patch again in every step. Mode forward costs less.")
    elif quantised:
        warnings.append(
            f"Noise: {quantised}, and the host rounds them anew with the edit; that noise can be as large as a small "
            "LoRA's whole effect. Mode forward leaves them as they are."
        )
    if shortage:
        warnings.append(f"Slow: {shortage}. Mode forward costs less.")
    return warnings
