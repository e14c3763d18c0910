"""LPIPS, the learned perceptual distance of two pictures, without torchvision.

    d(x, y) = Σ_l mean over positions of Σ_c w_l,c · (x̂_l,c − ŷ_l,c)²,   x̂_l = features of layer l ÷ their norm

The `lpips` package cannot be imported without torchvision (and pulls it in, and another torch with it), so the sum is
written out here; the heads w are read from that package's files (`pip install --no-deps lpips`), the AlexNet or VGG-16
weights from the file torchvision would download. Source: arXiv 1801.03924, version 0.1 of the heads.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .errors import EvaluationError

MIN_SIDE_PX = 35  # AlexNet's second pooling has nothing left below
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
#: (in, out, kernel, stride, padding) of each convolution, "pool", or "tap" after the ReLU whose output is compared.
_ALEXNET = (
    (3, 64, 11, 4, 2), "tap", "pool", (64, 192, 5, 1, 2), "tap", "pool", (192, 384, 3, 1, 1), "tap",
    (384, 256, 3, 1, 1), "tap", (256, 256, 3, 1, 1), "tap",
)  # fmt: skip
_VGG_STAGES = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))
#: shape of the first convolution → network.
_NETWORKS = {"[64, 3, 11, 11]": "alex", "[64, 3, 3, 3]": "vgg"}
_BACKBONE_HELP = (
    "Give --lpips-backbone the weights that torchvision names alexnet-owt-7be5be79.pth or vgg16-397923af.pth "
    "(or the same as .safetensors)."
)


@dataclass(frozen=True)
class Lpips:
    """A backbone with its heads.

    Attributes:
        name: `alex` or `vgg`.
        layers: convolutions, poolings and taps in order.
        heads: one [C] per tap, not negative.
    """

    name: str
    layers: tuple[nn.Module, ...]
    heads: tuple[Tensor, ...]

    @torch.no_grad()
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return LPIPS per picture, [B]; 0 for equal pictures.

        Args:
            first, second: [B, H, W, 3], float 0–1, of one size, sides of at least MIN_SIDE_PX.
        """
        pairs = zip(self._features(first), self._features(second), self.heads, strict=True)
        per_layer = [((x - y) ** 2 * head[:, None, None]).sum(1).mean((1, 2)) for x, y, head in pairs]
        return torch.stack(per_layer).sum(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        x = (images.float().permute(0, 3, 1, 2) * 2 - 1 - shift) / scale
        taps = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, nn.Identity):
                taps.append(x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON))
            elif isinstance(layer, nn.Conv2d):
                x = functional.relu(x)
        return taps


def load_lpips(backbone: Path, heads: Path | None = None) -> Lpips:
    """Return LPIPS from a backbone file; AlexNet or VGG-16 is told by its first convolution.

    Args:
        backbone: torchvision's state dict, .pth or .safetensors; pickled code is never run.
        heads: `alex.pth` or `vgg.pth` of the lpips package; None looks for the installed package.
    Raises: EvaluationError: when a file is missing or holds something else.
    """
    weights = _read(backbone, _BACKBONE_HELP)
    first = weights.get("features.0.weight")
    name = "" if first is None else _NETWORKS.get(str(list(first.shape)), "")
    if not name:
        raise EvaluationError(
            expected=f"the weights of AlexNet or VGG-16 in {backbone}",
            got=f"tensors such as {', '.join(list(weights)[:3]) or 'none'}",
            remedy=_BACKBONE_HELP,
        )
    heads_file = heads or _installed_heads(name)
    head_weights = _read(heads_file, "Install the heads with `pip install --no-deps lpips`, or name them.")
    layers = _build_layers(_ALEXNET if name == "alex" else _vgg_plan(), 3 if name == "alex" else 2)
    try:
        _load_convolutions(layers, weights)
        found = tuple(head_weights[f"lin{i}.model.1.weight"].flatten().float() for i in range(5))
    except (KeyError, RuntimeError) as error:
        raise EvaluationError(
            expected=f"{backbone.name} and {heads_file.name} to be one {name} network",
            got=" ".join(str(error).split())[:200],
            remedy=_BACKBONE_HELP,
        ) from error
    return Lpips(name, layers, found)


def _installed_heads(name: str) -> Path:
    spec = importlib.util.find_spec("lpips")  # found, not imported: importing it needs torchvision
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise EvaluationError(
            expected="the heads of LPIPS, which the package lpips brings",
            got="no such package",
            remedy="Install it alone: `pip install --no-deps lpips` (with dependencies it replaces torch).",
        )
    return Path(places[0]) / "weights" / "v0.1" / f"{name}.pth"


def _read(path: Path, remedy: str) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise EvaluationError(
            expected=f"a file of weights at {path}", got=" ".join(str(error).split())[:200], remedy=remedy
        ) from error
    return weights if isinstance(weights, dict) else {}


def _vgg_plan() -> tuple[tuple[int, int, int, int, int] | str, ...]:
    plan: list[tuple[int, int, int, int, int] | str] = []
    for stage, (wide_in, wide_out, count) in enumerate(_VGG_STAGES):
        plan += ["pool"] if stage else []
        plan += [(wide_in if i == 0 else wide_out, wide_out, 3, 1, 1) for i in range(count)]
        plan.append("tap")
    return tuple(plan)


def _build_layers(plan: tuple[tuple[int, int, int, int, int] | str, ...], pool_px: int) -> tuple[nn.Module, ...]:
    layers: list[nn.Module] = []
    for item in plan:
        if isinstance(item, str):
            layers.append(nn.Identity() if item == "tap" else nn.MaxPool2d(pool_px, 2))
        else:
            layers.append(nn.Conv2d(item[0], item[1], item[2], item[3], item[4]).requires_grad_(False))
    return tuple(layers)


def _load_convolutions(layers: tuple[nn.Module, ...], weights: Mapping[str, Tensor]) -> None:
    """Fill the convolutions; torchvision counts convolutions, ReLUs and poolings, but no taps."""
    place = 0
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.load_state_dict({part: weights[f"features.{place}.{part}"] for part in ("weight", "bias")})
            place += 2
        elif isinstance(layer, nn.MaxPool2d):
            place += 1
