"""What travels on the pack's own sockets.

`LORWEB_BASIS` carries a `LoadedBasis`, `LORWEB_COEFFICIENTS` the plain dict of `lorweb_core.coefficients`, and
`LORWEB_LAYOUT` a `lorweb_core.grid.Layout`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..lorweb_core.basis import Basis

BASIS = "LORWEB_BASIS"
COEFFICIENTS = "LORWEB_COEFFICIENTS"
LAYOUT = "LORWEB_LAYOUT"


class LoadedBasis(list[Tensor]):
    """A basis and the adapter banks made from it; both go when the loader's output goes.

    Once a bank holds the adapters they are dropped here, and read again by whoever needs them otherwise. A list of all
    its tensors, because the host's cache counts the tensors that it finds in lists.

    Args:
        basis: the tensors and settings.
        read_again: returns the same basis from its file, or raises; None keeps the adapters.

    Attributes:
        basis: keys, projections and settings; the adapters may be shapes only (on the meta device).
        banks: what `forward_mode` keeps so that a new mix reloads nothing; key → the host's patcher of a bank.
    """

    def __init__(self, basis: Basis, read_again: Callable[[], Basis] | None = None) -> None:
        super().__init__()
        self.basis = basis
        self.banks: dict[Any, Any] = {}
        self._read_again = read_again
        self._list_tensors()

    def with_adapters(self) -> Basis:
        """Return the basis with its adapters in memory."""
        layers = self.basis.layers.values()
        if self._read_again is None or not any(layer.lora_down.is_meta for layer in layers):
            return self.basis
        return replace(self.basis, layers=self._read_again().layers)

    def drop_adapters(self) -> None:
        """Leave the adapters to the banks."""
        if self._read_again is not None:
            layers = {
                name: replace(layer, lora_down=layer.lora_down.to("meta"), lora_up=layer.lora_up.to("meta"))
                for name, layer in self.basis.layers.items()
            }
            self.basis = replace(self.basis, layers=layers)
        self._list_tensors()

    def _list_tensors(self) -> None:
        layers = self.basis.layers.values()
        own = [t for layer in layers for t in vars(layer).values() if isinstance(t, Tensor) and not t.is_meta]
        self[:] = own + [parameter for bank in self.banks.values() for parameter in bank.model.parameters()]
