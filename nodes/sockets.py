"""The values on our sockets, and the check of inputs that every node does first.

`LORWEB_BASIS` carries a `LoadedBasis`, `LORWEB_COEFFICIENTS` the plain dict of `lorweb_core.coefficients`, and
`LORWEB_LAYOUT` a `lorweb_core.grid.Layout`. The host checks the types of links, but accepts any literal that is posted
for a socket, and anything from a node whose output type matches every other.
"""

from __future__ import annotations

import functools
import inspect
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..lorweb_core.basis import Basis
from ..lorweb_core.errors import LoRWeBError, printable
from ..lorweb_core.grid import Layout

BASIS = "LORWEB_BASIS"
COEFFICIENTS = "LORWEB_COEFFICIENTS"
LAYOUT = "LORWEB_LAYOUT"
#: Widget options of everything that scales an edit.
STRENGTH = {"default": 1.0, "min": -4.0, "max": 4.0, "step": 0.05}


class LoadedBasis(list[Tensor]):
    """A basis and the adapter banks made from it; both are freed together with the loader's output.

    Once a bank holds the adapters, they are dropped here and read from the file again when something else needs them.
    It is a list of all its tensors because the host's cache measures the tensors that it finds in lists.

    Args:
        basis: the tensors and settings.
        read_again: returns the same basis from its file, or raises; None keeps the adapters in memory.

    Attributes:
        basis: keys, projections and settings; the adapters may be shapes only (on the meta device).
        banks: key → the host's patcher of a bank of adapters, made by `forward_mode`.
    """

    def __init__(self, basis: Basis, read_again: Callable[[], Basis] | None = None) -> None:
        super().__init__()
        self.basis = basis
        self.banks: dict[Any, Any] = {}
        self._read_again = read_again
        self._list_tensors()

    def with_adapters(self) -> Basis:
        """Return the basis with its adapters in memory."""
        if self._read_again is None or not any(layer.lora_down.is_meta for layer in self.basis.layers.values()):
            return self.basis
        return replace(self.basis, layers=self._read_again().layers)

    def drop_adapters(self) -> None:
        """Keep the shapes of the adapters only; the banks have the numbers."""
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


#: Socket or widget type → what it needs, in words, and whether a value is that.
_NEEDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    BASIS: ("the output of Load LoRWeB Basis", lambda value: isinstance(value, LoadedBasis)),
    COEFFICIENTS: ("coefficients, such as those of Encode Analogy", lambda value: isinstance(value, Mapping)),
    LAYOUT: ("the layout of Build Analogy Grid", lambda value: isinstance(value, Layout)),
    "IMAGE": ("images, such as those of Load Image", lambda value: isinstance(value, torch.Tensor)),
    "MODEL": ("a model, such as that of Load Diffusion Model", lambda value: hasattr(value, "model_options")),
    "CLIP_VISION": ("an image encoder from Load CLIP Vision", lambda value: hasattr(value, "encode_image")),
    "FLOAT": ("a finite number", lambda value: isinstance(value, Real) and math.isfinite(value)),
    "INT": ("a whole number", lambda value: isinstance(value, Integral)),
    "STRING": ("a text", lambda value: isinstance(value, str)),
    "BOOLEAN": ("true or false", lambda value: isinstance(value, Integral)),
}


_ADD_AGAIN = "Delete the node from the workflow and add it again."


def guard(node: type[Any], title: str) -> None:
    """Make a node's function check the values on its sockets first, and explain an out-of-memory error.

    Only for RAM: an out-of-memory error of the GPU passes, since the host answers it by unloading its models.
    """
    function = getattr(node, node.FUNCTION)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        try:
            bound = signature.bind(*arguments, **named)
        except TypeError as error:  # the host passes a link to an input that the node does not have
            raise LoRWeBError(f"{title} {error}. {_ADD_AGAIN}") from error
        inputs = {**bound.arguments, **bound.kwargs}
        sections = node.INPUT_TYPES()
        unknown = bound.kwargs.keys() - {name for specs in sections.values() for name in specs}
        if unknown:  # the same, where the node's function takes any name
            raise LoRWeBError(f"{title} got an unexpected input {', '.join(map(repr, sorted(unknown)))}. {_ADD_AGAIN}")
        for section, specs in sections.items():
            for name, (kind, *_) in specs.items():
                if section == "required" or inputs.get(name) is not None:
                    _require_kind(name, kind, inputs.get(name), is_list=hasattr(node, "INPUT_IS_LIST"))
        try:
            return function(*arguments, **named)
        except (MemoryError, RuntimeError) as error:
            is_gpu = isinstance(error, torch.OutOfMemoryError)
            if is_gpu or not (isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)):
                raise
            raise LoRWeBError(
                f"{title}: there is not enough memory (RAM) for this step. Close other programs, or use smaller or "
                "fewer images at once, a smaller basis or fewer mixes. No unfinished file is left."
            ) from error

    setattr(node, node.FUNCTION, guarded)


def _require_kind(name: str, kind: str | list[str], value: object, *, is_list: bool) -> None:
    """Raise unless a value, or each of a list of them, is what the socket's type says."""
    if isinstance(kind, list):
        choices = ", ".join(kind[:10]) or "(nothing yet: add a file and press R)"
        needed, fits = f"one of the list: {choices}{' …' if len(kind) > 10 else ''}", kind.__contains__
    else:
        needed, fits = _NEEDS[kind]
    values = value if is_list and isinstance(value, list) else [value]
    wrong = [item for item in values if not fits(item)]
    if wrong or not values:
        got = printable(reprlib.repr(wrong[0])) if wrong else "an empty list"
        raise LoRWeBError(f"The input {name} got {got}. It needs {needed}.")
