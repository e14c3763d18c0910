"""What travels on sockets, and what every node checks at its border.

`LORWEB_BASIS` carries a `LoadedBasis`, `LORWEB_COEFFICIENTS` the plain dict of `lorweb_core.coefficients`, and
`LORWEB_LAYOUT` a `lorweb_core.grid.Layout`. The host checks the types of links but takes any literal that is posted
for a socket, and anything over a link of a node whose output fits every type.
"""

from __future__ import annotations

import functools
import inspect
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch

from ..lorweb_core.basis import Basis
from ..lorweb_core.errors import LoRWeBError, printable
from ..lorweb_core.grid import Layout

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


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


#: Socket or widget type → what it needs, and whether a value is that.
_NEEDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    BASIS: ("the output of Load LoRWeB Basis", lambda value: isinstance(value, LoadedBasis)),
    COEFFICIENTS: ("coefficients, such as those of Encode Analogy", lambda value: isinstance(value, Mapping)),
    LAYOUT: ("the layout of Build Analogy Grid", lambda value: isinstance(value, Layout)),
    "IMAGE": ("images, such as those of Load Image", lambda value: isinstance(value, torch.Tensor)),
    "MODEL": ("a model, such as that of Load Diffusion Model", lambda value: hasattr(value, "model_options")),
    "CLIP_VISION": ("an image encoder from Load CLIP Vision", lambda value: hasattr(value, "encode_image")),
    "FLOAT": ("a finite number", _is_finite),
    "INT": ("a whole number", lambda value: isinstance(value, Integral)),
    "STRING": ("a text", lambda value: isinstance(value, str)),
    "BOOLEAN": ("true or false", lambda value: isinstance(value, Integral)),
}


def guard(node: type[Any], title: str) -> None:
    """Have a node's function check first what its sockets received, and say so when memory runs out.

    An out-of-memory error of the GPU passes: the host answers it by unloading its models.
    """
    function = getattr(node, node.FUNCTION)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def guarded(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        try:
            inputs = signature.bind(*arguments, **named).arguments
        except TypeError as error:  # the host passes a link to an input that the node does not have
            raise LoRWeBError(f"{title} {error}. Delete the node from the workflow and add it again.") from error
        for section, specs in node.INPUT_TYPES().items():
            for name, (kind, *_) in specs.items():
                if section == "required" or inputs.get(name) is not None:
                    _require_kind(name, kind, inputs[name], is_list=hasattr(node, "INPUT_IS_LIST"))
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


def _require_kind(name: str, kind: Any, value: Any, *, is_list: bool) -> None:  # noqa: ANN401
    """Raise unless a value, or each of a list of them, is what the socket's type says."""
    if isinstance(kind, list):
        choices = ", ".join(kind[:10]) or "(nothing yet: add a file and press R)"
        needed, fits = f"one of the list: {choices}{' …' if len(kind) > 10 else ''}", kind.__contains__
    else:
        needed, fits = _NEEDS[kind]
    values = value if is_list else [value]
    wrong = [item for item in values if not fits(item)]
    if wrong or not values:
        got = printable(reprlib.repr(wrong[0])) if wrong else "an empty list"
        raise LoRWeBError(f"The input {name} got {got}. It needs {needed}.")
