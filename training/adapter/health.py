"""Router health: how evenly the router uses the basis, and whether it distinguishes analogies.

From coefficients [M layers, B analogies, N adapters]. A validation writes `router.png` for people, and the numbers to
`router.json` and `numbers.json`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..base.sheets import write_label

_DEAD_SHARE = 0.1
_CELL_PX, _NAME_PX, _HEAD_PX = 13, 280, 320


@dataclass(frozen=True)
class RouterHealth:
    """Health of the router at one validation."""

    entropy: float  # mean over layers and analogies, divided by ln N: 1 = all adapters alike, 0 = one adapter
    dead_adapters: float  # share of (layer, adapter) pairs that never get a tenth of an even share
    spread: float  # mean standard deviation over analogies, times N; 0 = the router ignores the images
    drift: float  # mean absolute change since the last validation, times N; NaN at the first
    use: Tensor  # [M, N], mean share of each adapter

    def numbers(self) -> dict[str, float]:
        """Return the metrics to log, without NaN."""
        values = {f"router/{name}": getattr(self, name) for name in ("entropy", "dead_adapters", "spread", "drift")}
        return {name: value for name, value in values.items() if not math.isnan(value)}


def router_health(coefficients: Tensor, before: Tensor | None = None) -> RouterHealth:
    """Return the health of coefficients [M, B, N] (without gain); `before` are those of the last validation."""
    shares = coefficients.abs().float()
    shares = shares / shares.sum(-1, keepdim=True).clamp_min(1e-12)
    count = shares.shape[-1]
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum(-1).mean()
    return RouterHealth(
        entropy=float(entropy) / math.log(count) if count > 1 else 1.0,
        dead_adapters=float((shares.amax(1) < _DEAD_SHARE / count).float().mean()),
        spread=float(coefficients.std(1, correction=0).mean() * count),
        drift=math.nan if before is None else float((coefficients - before).abs().mean() * count),
        use=shares.mean(1),
    )


def draw_use(health: RouterHealth, layer_names: Sequence[str], path: Path) -> None:
    """Save a heat map: a row per layer, a column per adapter; white = unused, black = four times an even share."""
    share = (health.use * health.use.shape[1] / 4).clamp(0, 1)
    gray = torch.round(255 * (1 - share)).to(torch.uint8).cpu().numpy()
    heat_map = Image.fromarray(np.kron(gray, np.ones((_CELL_PX, _CELL_PX), dtype=np.uint8)))
    image = Image.new("RGB", (_NAME_PX + max(heat_map.width, _HEAD_PX), 2 * _CELL_PX + 4 + heat_map.height), "white")
    write_label(image, "use of each adapter: white none, black 4x even", (_NAME_PX, 0), _HEAD_PX, font_px=_CELL_PX - 1)
    for adapter in range(0, gray.shape[1], 4):
        write_label(
            image, str(adapter), (_NAME_PX + adapter * _CELL_PX, _CELL_PX + 2), 4 * _CELL_PX, font_px=_CELL_PX - 2
        )
    for row, name in enumerate(layer_names):
        top = 2 * _CELL_PX + 3 + row * _CELL_PX
        write_label(image, name, (4, top), _NAME_PX - 8, font_px=_CELL_PX - 2)
    image.paste(heat_map, (_NAME_PX, 2 * _CELL_PX + 4))
    image.save(path)
