"""LPIPS, the learned perceptual distance of two images, without torchvision.

    d(x, y) = Σ_l mean over positions of Σ_c w_l,c · (x̂_l,c − ŷ_l,c)²,   x̂_l = features of layer l ÷ their norm

The `lpips` package cannot be imported without torchvision, whose installation replaces torch. So the sum is computed
here; the heads w are read from that package's files (`pip install --no-deps lpips`), the AlexNet or VGG-16 weights from
the file that torchvision would download. Source: arXiv 1801.03924, version 0.1 of the heads.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .folder import EvaluationError

MIN_SIDE_PX = 35  # AlexNet's second pooling has nothing left below
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
#: Per network: (in, out, kernel, stride, padding) of each convolution, "pool", or "tap" after a ReLU that is compared.
_ALEXNET = (
    (3, 64, 11, 4, 2), "tap", "pool", (64, 192, 5, 1, 2), "tap", "pool", (192, 384, 3, 1, 1), "tap",
    (384, 256, 3, 1, 1), "tap", (256, 256, 3, 1, 1), "tap",
)  # fmt: skip
_VGG_WIDTHS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
_BACKBONE_HELP = (
    "Give --lpips-backbone the weights that torchvision names alexnet-owt-7be5be79.pth or vgg16-397923af.pth "
    "(or the same as .safetensors)."
)


@dataclass(frozen=True)
class Lpips:
    """A backbone (`alex` or `vgg`; convolutions, poolings, taps) with its heads, one [C] per tap."""

    name: str
    layers: tuple[nn.Module, ...]
    heads: tuple[Tensor, ...]

    @torch.no_grad()
    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return LPIPS [B] of images [B, H, W, 3], float 0-1, with sides of at least MIN_SIDE_PX."""
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
    """Return LPIPS from a backbone file; the first convolution shows whether it is AlexNet or VGG-16.

    Args:
        backbone: torchvision's state dict, .pth or .safetensors; pickled code is never run.
        heads: `alex.pth` or `vgg.pth` of the lpips package; None looks for the installed package.
    Raises EvaluationError if a file is missing or holds something else.
    """
    weights = _read(backbone, _BACKBONE_HELP)
    first = weights.get("features.0.weight")
    shapes = {"[64, 3, 11, 11]": "alex", "[64, 3, 3, 3]": "vgg"}
    name = "" if first is None else shapes.get(str(list(first.shape)), "")
    if not name:
        raise EvaluationError(f"{backbone} does not hold the weights of AlexNet or VGG-16. {_BACKBONE_HELP}")
    if heads is None:
        spec = importlib.util.find_spec("lpips")  # found, not imported: importing it needs torchvision
        if spec is None or not spec.submodule_search_locations:
            raise EvaluationError(
                "LPIPS needs the heads of the package lpips, which is not installed. Install it alone with "
                "`pip install --no-deps lpips` (with its dependencies it replaces torch), or give --lpips-heads."
            )
        heads = Path(spec.submodule_search_locations[0]) / "weights" / "v0.1" / f"{name}.pth"
    head_weights = _read(heads, "Install the heads with `pip install --no-deps lpips`, or give --lpips-heads.")
    plan: list[tuple[int, ...] | str] = list(_ALEXNET)
    if name == "vgg":
        plan = []
        for widths in _VGG_WIDTHS:
            plan += ["pool"] if plan else []
            plan += [(wide_in, wide_out, 3, 1, 1) for wide_in, wide_out in pairwise(widths)]
            plan.append("tap")
    layers: list[nn.Module] = []
    index = 0  # as torchvision counts: convolutions, ReLUs and poolings
    try:
        for item in plan:
            if isinstance(item, tuple):
                layer = nn.Conv2d(item[0], item[1], item[2], item[3], item[4]).requires_grad_(False)
                layer.load_state_dict({part: weights[f"features.{index}.{part}"] for part in ("weight", "bias")})
                layers.append(layer)
                index += 2
            else:
                layers.append(nn.Identity() if item == "tap" else nn.MaxPool2d(3 if name == "alex" else 2, 2))
                index += item == "pool"
        found = tuple(head_weights[f"lin{i}.model.1.weight"].flatten().float() for i in range(5))
    except (KeyError, RuntimeError) as error:
        raise EvaluationError(
            f"{backbone.name} and {heads.name} are not one {name} network: {' '.join(str(error).split())[:200]}. "
            f"{_BACKBONE_HELP}"
        ) from error
    return Lpips(name, tuple(layers), found)


def _read(path: Path, advice: str) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EvaluationError(f"{path} cannot be read as a file of weights: {reason}. {advice}") from error
    return weights if isinstance(weights, dict) else {}
