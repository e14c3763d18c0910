"""The base with its basis attached: one module whose `forward` is the whole differentiable part of a step.

router → slices → transformer → loss, all inside one `forward`, so that data parallelism sees every trained weight.
Only the basis is trained: `adapters` (down, up) and `router` (keys, query projections). As a `LayerBasis` mapping it
goes in and out of files; the gain is folded into the up matrices there, so files stay compatible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorweb_core.basis import Basis, LayerBasis
from lorweb_core.errors import ShapeError
from lorweb_core.settings import RouterSettings

from ..base.flow import (
    add_noise,
    sample_losses,
    velocity_target,
)
from ..base.transformer import Conditioning, predict_velocity
from .linear import StackedRouter, attach_linears, hand_out_coefficients, take_coefficients_back, target_layers

_RESUME_REMEDY = "Resume with the config of the run (resolved.yaml in its folder), or start a new run."
_START_REMEDY = (
    "Set basis_size, rank, key_dim, include and query_mode of basis as the run that wrote the file had them, "
    "or leave out basis.start_from."
)


@dataclass(frozen=True)
class BasisShape:
    """Sizes of a new basis.

    Attributes:
        basis_size: N.
        rank: r.
        key_dim: K.
        query_dim: Q.
        coefficient_gain: factor on all coefficients in training; folded on saving.
    """

    basis_size: int
    rank: int
    key_dim: int
    query_dim: int
    coefficient_gain: float = 1.0


class TrainableKontext(nn.Module):
    """A frozen Kontext transformer with a LoRWeB basis on the selected Linears.

    Args:
        transformer: a diffusers `FluxTransformer2DModel`, possibly quantized; its Linears are replaced in place.
        shape: sizes of the basis.
        settings: how queries become coefficients.
        include: patterns (`*` matches anything) of layer names to train.
        dtype: master dtype of the adapters.
        seed: of the initialization; equal on all processes.
        device: where the basis lives; without it the base's.
    Raises: ModelError: when no Linear matches.
    """

    def __init__(
        self,
        transformer: nn.Module,
        shape: BasisShape,
        settings: RouterSettings,
        *,
        include: Iterable[str] = ("*",),
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.transformer = transformer.requires_grad_(False)
        self.shape = shape
        names = target_layers(transformer, include=tuple(include))
        device = device or _device_of(transformer)
        self.linears = attach_linears(
            transformer, names, basis_size=shape.basis_size, rank=shape.rank, dtype=dtype, device=device
        )
        self.router = StackedRouter(
            len(names), shape.basis_size, shape.key_dim, query_dim=shape.query_dim, settings=settings,
            gain=shape.coefficient_gain, device=device,
        )  # fmt: skip
        self._initialize(seed)

    def _initialize(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for linear in self.linears.values():
            linear.initialize(generator)
        self.router.initialize(generator)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return all down and up matrices."""
        return [parameter for linear in self.linears.values() for parameter in (linear.down, linear.up)]

    def router_parameters(self) -> list[nn.Parameter]:
        """Return keys and query projections."""
        return [self.router.query_projection, self.router.keys]

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return everything that is trained."""
        return self.adapter_parameters() + self.router_parameters()

    def trained_state(self) -> dict[str, Tensor]:
        """Return every trained tensor by a stable name: `<layer>.down`, `<layer>.up`, `router.…` (not copies)."""
        state = {f"{name}.{part}": getattr(linear, part) for name, linear in self.linears.items() for part in _PARTS}
        return state | {"router.query_projection": self.router.query_projection, "router.keys": self.router.keys}

    def load_trained_state(self, state: Mapping[str, Tensor], *, remedy: str = _RESUME_REMEDY) -> None:
        """Copy tensors of `trained_state` back.

        Args:
            state: tensors by name.
            remedy: what to do when they do not fit.
        Raises: ShapeError: when names or shapes differ from this model's.
        """
        own = self.trained_state()
        differing = [name for name in sorted(own.keys() | state.keys()) if _shape(own, name) != _shape(state, name)]
        if differing:
            raise ShapeError(
                expected=f"{len(own)} trained tensors as the config describes them",
                got=f"{len(differing)} that are missing, unexpected or of another shape, first {differing[:3]}",
                remedy=remedy,
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def layers(self, state: Mapping[str, Tensor] | None = None) -> dict[str, LayerBasis]:
        """Return the basis by layer name on the CPU, with the gain folded into the up matrices.

        Args:
            state: tensors as of `trained_state`, e.g. their moving average; without it the current ones.
        """
        given = self.trained_state() if state is None else state
        tensors = {name: tensor.detach().cpu() for name, tensor in given.items()}
        gain = self.shape.coefficient_gain
        sizes = (self.shape.basis_size, self.shape.rank)
        projections = tensors["router.query_projection"].unflatten(0, (len(self.linears), -1))
        keys = tensors["router.keys"]
        return {
            name: LayerBasis(
                lora_down=tensors[f"{name}.down"].unflatten(0, sizes),
                lora_up=(tensors[f"{name}.up"] * gain).unflatten(0, sizes).transpose(1, 2),
                keys=keys[index],
                query_projection=projections[index],
            )
            for index, name in enumerate(self.linears)
        }

    def load_basis(self, basis: Basis) -> None:
        """Start from a trained basis; its gain is taken out again.

        Raises: ShapeError: when layers or sizes differ.
        """
        state: dict[str, Tensor] = {}
        for name, layer in basis.layers.items():
            state[f"{name}.down"] = layer.lora_down.flatten(0, 1)
            state[f"{name}.up"] = layer.lora_up.transpose(1, 2).flatten(0, 1) / self.shape.coefficient_gain
        ordered = [basis.layers[name] for name in self.linears if name in basis.layers]
        projections = [layer.query_projection for layer in ordered if layer.query_projection is not None]
        if projections and len({layer.keys.shape for layer in ordered}) == 1:
            state["router.query_projection"] = torch.cat(projections)
            state["router.keys"] = torch.stack([layer.keys for layer in ordered])
        self.load_trained_state(state, remedy=_START_REMEDY)

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        sigmas: Tensor,
        weights: Tensor,
        conditioning: Conditioning,
        copied_weight: float = 1.0,
    ) -> Tensor:
        """Return the loss of every sample, [B] float32.

        Args:
            latents: [B, C, h, w] of the grid a | a′ over b | b′.
            noise: [B, C, h, w].
            sigmas: [B].
            weights: [B], w(σ).
            conditioning: context, text and query.
            copied_weight: weight of the three quadrants that the context already shows.
        """
        prediction = self.predict(add_noise(latents, noise, sigmas), sigmas, conditioning)
        target = velocity_target(latents, noise)
        return sample_losses(prediction, target, weights, copied_weight=copied_weight)

    def predict(self, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted velocity [B, C, h, w] at noisy latents [B, C, h, w] and sigmas [B]."""
        if conditioning.query_embedding is not None:
            hand_out_coefficients(self.linears, self.router(conditioning.query_embedding))
        return predict_velocity(self.transformer, noisy, sigmas, conditioning)

    def predict_base(self, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """Return what the base alone predicts."""
        take_coefficients_back(self.linears)
        return predict_velocity(self.transformer, noisy, sigmas, conditioning)


_PARTS = ("down", "up")


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
