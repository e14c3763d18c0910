"""What travels on the pack's own sockets.

`LORWEB_BASIS` carries a `LoadedBasis`, `LORWEB_COEFFICIENTS` the plain dict of `lorweb_core.coefficients`, and
`LORWEB_LAYOUT` a `lorweb_core.grid.Layout`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..lorweb_core.basis import Basis

BASIS = "LORWEB_BASIS"
COEFFICIENTS = "LORWEB_COEFFICIENTS"
LAYOUT = "LORWEB_LAYOUT"


@dataclass(eq=False)
class LoadedBasis:
    """A basis and the adapter banks already made from it; both go when the loader's output goes.

    Attributes:
        basis: the tensors and settings.
        banks: what `forward_mode` keeps so that a new mix reloads nothing; key → the host's patcher of a bank.
    """

    basis: Basis
    banks: dict[Any, Any] = field(default_factory=dict)
