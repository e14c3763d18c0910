"""Which weights of the host's model a basis acts on.

A layer name of the basis (diffusers) leads to a weight key of the host and, where the host fuses q, k, v and the
MLP, to a slice of that weight's rows. Everything is checked here, before anything is patched: the model's kind,
missing targets, shapes. The slices come from the host's own table, sizes from the modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..lorweb_core.basis import Basis, LayerBasis
from ..lorweb_core.errors import ModelError
from . import host

_PLAIN_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Model = Any  # the host's ModelPatcher


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
    """One Linear of the host's model and the basis' layers that act on it.

    Attributes:
        module_name: path from the host's model, such as `diffusion_model.double_blocks.0.img_attn.qkv`.
        module: the Linear, of whatever class the host chose for its weight format.
        parts: layers of the basis, by starting row.
    """

    module_name: str
    module: Linear
    parts: tuple[TargetPart, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the weight is an ordinary float tensor that can be changed without rounding it anew."""
        weight = self.module.weight
        return type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.dtype in _PLAIN_DTYPES

    @property
    def weight_kind(self) -> str:
        """The weight's number format, for people."""
        weight = self.module.weight
        return str(weight.dtype) if str(weight.dtype).startswith("torch.float8") else type(weight).__name__


def find_targets(model: Model, basis: Basis) -> list[Target]:
    """Return the Linears of a Kontext model that a basis acts on, each with its parts.

    Raises: ModelError: for a model that is not FLUX.1, a target that is missing, or sizes that do not fit.
    """
    _require_flux(model)
    table = host.map_weight_targets(model)
    by_module: dict[str, list[TargetPart]] = {}
    missing = []
    for name, layer in basis.layers.items():
        entry = table.get(f"{name}.weight")
        if entry is None:
            missing.append(name)
            continue
        module_name, part = _locate(entry, name, layer)
        by_module.setdefault(module_name, []).append(part)
    _require_none_missing(basis, missing)
    targets = [
        Target(name, model.get_model_object(name), tuple(sorted(parts, key=lambda part: part.start)))
        for name, parts in by_module.items()
    ]
    for target in targets:
        _require_fitting(target)
    return targets


def text_widths(model: Model) -> tuple[int, int]:
    """Return how wide a Kontext model wants text tokens and the pooled text.

    Raises: ModelError: for a model that is not FLUX.1.
    """
    _require_flux(model)
    config = model.model.model_config.unet_config
    return config["context_in_dim"], config["vec_in_dim"]


def describe_module(model: Model) -> str:
    """Return a short name of what a MODEL holds, for messages."""
    config = getattr(getattr(model.model, "model_config", None), "unet_config", {})
    kind = config.get("image_model")
    return f"{type(model.model).__name__}" + (f" (image_model {kind})" if kind else "")


def _locate(entry: Any, layer_name: str, layer: LayerBasis) -> tuple[str, TargetPart]:  # noqa: ANN401
    """Return the Linear that an entry of the host's table leads to, and the layer's part of it.

    An entry is a weight key, (key, (0, start, length)), or (key, None, function): the function brings a weight's rows
    into the host's order, which differs from diffusers' in the final layer.
    """
    weight_key, rows, *reorders = (entry, None) if isinstance(entry, str) else entry
    for reorder in reorders:
        layer = _reorder_rows(layer, reorder)
    start, length = (0, layer.out_features) if rows is None else rows[1:]
    return weight_key.removesuffix(".weight"), TargetPart(layer_name, layer, start, length)


def _reorder_rows(layer: LayerBasis, reorder: Callable[[torch.Tensor], torch.Tensor]) -> LayerBasis:
    """Return the layer with the rows of its delta [out, in] reordered by a function of the first dimension."""
    lora_up = reorder(layer.lora_up.transpose(0, 1)).transpose(0, 1)
    bias = None if layer.lora_bias is None else reorder(layer.lora_bias.t()).t()
    return replace(layer, lora_up=lora_up, lora_bias=bias)


def _require_flux(model: Model) -> None:
    if type(getattr(model.model, "diffusion_model", None)).__name__ == "ComfyFluxWrapper":
        raise ModelError(
            expected="a FLUX.1-Kontext model with ordinary modules",
            got="a Nunchaku model, whose fused kernels hide them",
            remedy="Write the analogy with Save Mixed LoRA and load that file with Nunchaku's own LoRA loader.",
        )
    if not host.is_flux_kontext_capable(model):
        raise ModelError(
            expected="a FLUX.1-Kontext model",
            got=describe_module(model),
            remedy="Load flux1-dev-kontext with Load Diffusion Model (or Unet Loader GGUF) and connect it here.",
        )


def _require_none_missing(basis: Basis, missing: list[str]) -> None:
    if missing:
        raise ModelError(
            expected=f"a model that has all {len(basis.layers)} layers of the basis {basis.name}",
            got=f"one without {len(missing)} of them (such as {', '.join(missing[:3])})",
            remedy="Connect the base model that the basis was trained on; depth and layer names must agree.",
        )


def _require_fitting(target: Target) -> None:
    in_features, out_features = target.module.in_features, target.module.out_features
    for part in target.parts:
        needed = (part.layer.in_features, part.layer.out_features)
        offered = (in_features, part.length)
        if needed != offered or part.start + part.length > out_features:
            raise ModelError(
                expected=f"a layer {part.layer_name} of {needed[0]} → {needed[1]} features, as in the basis",
                got=f"{offered[0]} → {part.length} ({target.module_name})",
                remedy="Connect the base model that the basis was trained on.",
            )
