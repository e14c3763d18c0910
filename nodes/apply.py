"""Node Apply Mixed LoRA to Kontext: patches a clone of the model in one of two modes, and reports what it did.

Mode `forward` is the right one for nearly everybody: exact on every weight format, and a new analogy costs nothing.
Mode `weights` changes the weights themselves, for nodes that save, merge or extract the model.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..lorweb_core.coefficients import Coefficients, count_mixes, require_coefficients_of
from ..lorweb_core.settings_sources import trained_text_tokens
from .forward_mode import patch_forward
from .host import Model
from .sockets import BASIS, COEFFICIENTS, STRENGTH, LoadedBasis
from .targets import find_targets
from .weights_mode import patch_weights

MODES = ("forward", "weights")
#: T5 tokens per prompt, padding included, unless T5 Tokenizer Options changes it.
_HOST_TEXT_TOKENS = 256
#: Settings that determine which coefficients an analogy gets.
_ROUTER_FIELDS = ("activation", "heads", "reduction", "query_mode")


class ApplyMixedLoRA:
    DESCRIPTION = (
        "Adds the mixed LoRA of the analogy to a FLUX.1-Kontext model. The input model is not changed. Can be combined "
        "with ordinary LoRA loaders and with other Apply nodes, in any order."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "apply_and_show"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    OUTPUT_TOOLTIPS = ("The model with the edit.", "Mode, matched layers, memory, and what the mode costs.")
    SEARCH_ALIASES: ClassVar[list[str]] = ["analogy", "lora", "lorweb", "kontext", "edit by example"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "FLUX.1-Kontext in any weight format: bf16, fp8, scaled fp8, GGUF."}),
                "basis": (BASIS, {"tooltip": "The basis that the coefficients were encoded with."}),
                "coefficients": (COEFFICIENTS, {"tooltip": "From Encode Analogy (CLIP)."}),
                "strength": (
                    "FLOAT",
                    {
                        **STRENGTH,
                        "tooltip": "Strength of the edit: 1 as trained, 0 the unpatched model; negative values reverse "
                        "the edit.",
                    },
                ),
                "mode": (
                    list(MODES),
                    {
                        "default": "forward",
                        "tooltip": "forward: add the edit to the layer outputs; exact on quantized models, and each "
                        "sample of a batch can have its own mix. weights: patch the weights, for nodes that save, "
                        "merge or extract the model.",
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
        patched = model.clone()
        if strength == 0.0:
            return patched, "Strength 0: the model is passed on unchanged."
        if mode == "weights":
            targets = find_targets(model, basis.with_adapters())
            patch_bytes = patch_weights(patched, targets, mixes, strength=strength)
            costs = [
                f"Memory: {patch_bytes / 1e9:.2f} GB of patches, and the originals of {len(targets)} weights",
                f"Slow: a new analogy makes the host patch all {len(targets)} weights again; weights that it streams "
                "into the GPU are patched again in every step",
            ]
            quantized = [target for target in targets if not target.is_plain]
            if quantized:
                kind = quantized[0].weight_kind
                again = (
                    "adds the edit again in every step" if kind == "GGMLTensor" else "rounds them again with the edit"
                )
                costs.append(f"Quantized: {len(quantized)} of {len(targets)} weights ({kind}), and the host {again}")
        else:
            bank_bytes = patch_forward(patched, targets, basis, mixes, strength=strength)
            costs = [
                f"Memory: {bank_bytes / 1e9:.2f} GB of adapters beside the model; a new analogy reloads nothing",
                "Weights: unchanged. Nodes that save, merge or extract the model stop; for these use mode weights, "
                "or Save Mixed LoRA",
            ]
        lines = [
            f"Mode: {mode}",
            f"Basis: {basis.basis.name}, id {basis.basis.basis_id}",
            f"Layers: {len(basis.basis.layers)} matched on {len(targets)} weights, none missing",
            f"Mixes: {count_mixes(mixes)}, strength {strength:g}",
        ]
        # The id of a basis does not change with its sidecar, so coefficients of the same id may mean another mix.
        settings, made_with = basis.basis.settings, mixes["settings"]
        others = [
            f"{name} {made_with[name]} (the basis has {getattr(settings, name)})"
            for name in _ROUTER_FIELDS
            if name in made_with and made_with[name] != getattr(settings, name)
        ]
        if others:
            lines.append(
                f"Coefficients made with other settings: {', '.join(others)}. Encode the analogy again to use the "
                "settings of the basis."
            )
        lines += _describe_text(trained_text_tokens(basis.basis.metadata))
        return patched, "\n".join([*lines, *costs, *basis.basis.report])


def _describe_text(tokens: int | None) -> list[str]:
    """Return a line on the prompt length in training, which the prompt nodes before Apply should match."""
    if tokens is None:
        return []
    if tokens == 1:
        return ["Text: trained without text; use Empty Prompt (No Text) as the prompt"]
    hint = f"T5 Tokenizer Options before the prompt needs min_length {tokens}"
    if tokens == _HOST_TEXT_TOKENS:
        hint = f"no T5 Tokenizer Options is needed, or one with min_length {tokens}"
    return [f"Text: trained with {tokens} T5 tokens per prompt, ComfyUI pads to {_HOST_TEXT_TOKENS}: {hint}"]
