"""Which weights of the host's model a basis acts on.

A layer name of the basis (diffusers) leads to a weight key of the host and, where the host fuses q, k, v and the MLP,
to a slice of that weight's rows. Everything is checked here, before anything is patched: the kind of model, missing
layers, sizes. The slices come from the host's own table, the sizes from its modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ..lorweb_core.basis import Basis, LayerBasis
from ..lorweb_core.errors import ModelError
from . import host
from .host import Model

_PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Linear(Protocol):
    """What the host's Linears have in common, whatever the format of their weight."""

    weight: torch.Tensor
    in_features: int
    out_features: int

    def forward(self, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        """Return the layer's output."""


@dataclass(frozen=True, eq=False)
class TargetPart:
    """One layer of the basis inside one Linear of the host: output rows `start` … `start + length`."""

    layer_name: str
    layer: LayerBasis
    start: int
    length: int


@dataclass(frozen=True, eq=False)
class Target:
    """One Linear of the host's model and the layers of the basis that act on it.

    Attributes:
        module_name: path from the host's model, such as `diffusion_model.double_blocks.0.img_attn.qkv`.
        module: the Linear, of whatever class the host chose for its weight format.
        parts: layers of the basis, by first row.
    """

    module_name: str
    module: Linear
    parts: tuple[TargetPart, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the weight is an ordinary float tensor, which a patch does not quantize again."""
        weight = self.module.weight
        return type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.dtype in _PLAIN_DTYPES

    @property
    def weight_kind(self) -> str:
        """The weight's number format, for reports."""
        weight = self.module.weight
        return str(weight.dtype) if str(weight.dtype).startswith("torch.float8") else type(weight).__name__


def find_targets(model: Model, basis: Basis) -> list[Target]:
    """Return the Linears of a Kontext model that a basis acts on, each with its parts.

    Raises ModelError for a model that is not FLUX.1, a missing layer, or sizes that do not fit.
    """
    _require_flux(model)
    table = host.map_weight_targets(model)
    missing = [name for name in basis.layers if table.get(f"{name}.weight") is None]
    if missing:
        raise ModelError(
            f"The basis {basis.name} acts on {len(basis.layers)} layers, but the model lacks {len(missing)} of them "
            f"(such as {', '.join(missing[:3])}). Connect the base model that the basis was trained on."
        )
    by_module: dict[str, list[TargetPart]] = {}
    for name, layer in basis.layers.items():
        # An entry is a weight key, (key, (0, start, length)), or (key, None, function); the function brings rows into
        # the host's order, which differs from diffusers' in the final layer.
        entry = table[f"{name}.weight"]
        weight_key, rows, *reorders = (entry, None) if isinstance(entry, str) else entry
        for reorder in reorders:
            layer = _reorder_rows(layer, reorder)
        start, length = (0, layer.out_features) if rows is None else rows[1:]
        part = TargetPart(name, layer, start, length)
        by_module.setdefault(weight_key.removesuffix(".weight"), []).append(part)
    targets = [
        Target(name, model.get_model_object(name), tuple(sorted(parts, key=lambda part: part.start)))
        for name, parts in by_module.items()
    ]
    for target in targets:
        for part in target.parts:
            needed = (part.layer.in_features, part.layer.out_features)
            offered = (target.module.in_features, part.length)
            if needed != offered or part.start + part.length > target.module.out_features:
                raise ModelError(
                    f"The basis has {part.layer_name} with {needed[0]} → {needed[1]} features, the model has "
                    f"{offered[0]} → {offered[1]} ({target.module_name}). Connect the base model that the basis was "
                    "trained on."
                )
    return targets


def text_widths(model: Model) -> tuple[int, int]:
    """Return the widths of text tokens and of the pooled text in a Kontext model; ModelError if it is not FLUX.1."""
    _require_flux(model)
    config = model.model.model_config.unet_config
    return config["context_in_dim"], config["vec_in_dim"]


def _reorder_rows(layer: LayerBasis, reorder: Callable[[torch.Tensor], torch.Tensor]) -> LayerBasis:
    """Return the layer with the rows of its delta [out, in] reordered by a function of the first dimension."""
    lora_up = reorder(layer.lora_up.transpose(0, 1)).transpose(0, 1)
    bias = None if layer.lora_bias is None else reorder(layer.lora_bias.t()).t()
    return replace(layer, lora_up=lora_up, lora_bias=bias)


def _require_flux(model: Model) -> None:
    if type(getattr(model.model, "diffusion_model", None)).__name__ == "ComfyFluxWrapper":
        raise ModelError(
            "This is a Nunchaku model, whose fused kernels have no layers to patch. Write the analogy with Save Mixed "
            "LoRA and load that file with Nunchaku's own LoRA loader."
        )
    if not host.is_flux(model):
        kind = getattr(getattr(model.model, "model_config", None), "unet_config", {}).get("image_model")
        raise ModelError(
            f"The connected model is {type(model.model).__name__}{f' (image_model {kind})' if kind else ''}, not "
            "FLUX.1-Kontext. Load flux1-dev-kontext with Load Diffusion Model (or Unet Loader GGUF)."
        )
