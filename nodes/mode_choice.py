"""Which mode Apply takes, and what mode `weights` costs in memory.

    auto = forward   for several mixes, quantised weights, a model too large for its device, or no room for originals
           weights   otherwise

Patching for good needs the whole model on its load device: weights that the host streams in would be patched again in
every step. And the host keeps each patched weight's original on the offload device, where 1.2 times their size must be
there; originals that already lie there count, so that the second analogy is judged as the first was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..lorweb_core.errors import ModelError
from . import host
from .targets import Model, Target

#: This much more than the originals' size must be there for them.
_MARGIN = 1.2


@dataclass(frozen=True)
class Originals:
    """The unpatched weights that the host keeps in mode `weights`.

    Attributes:
        total_bytes: all that are kept once every target is patched; 0 where the host keeps none.
        held_bytes: of these, what already lies on the device.
        device: where they are kept.
    """

    total_bytes: int
    held_bytes: int
    device: torch.device

    @property
    def place(self) -> str:
        """The device's name for people."""
        return "RAM" if self.device.type == "cpu" else str(self.device)

    def have_room(self, free_bytes: int) -> bool:
        """Return whether they can all be kept, with a margin, when this much of the device is free."""
        return not self.total_bytes or free_bytes + self.held_bytes > _MARGIN * self.total_bytes

    def describe(self, free_bytes: int) -> str:
        """Return their size and the room for them, in words."""
        if not self.total_bytes:
            return "the host keeps no originals"
        there = f", {gigabytes(self.held_bytes)} of it already there" if self.held_bytes else ""
        return f"{gigabytes(self.total_bytes)} of originals for {self.place}{there}, {gigabytes(free_bytes)} free"


def choose_mode(mode: str, model: Model, targets: list[Target], *, mixes: int) -> tuple[str, str]:
    """Return the mode to take, `weights` or `forward`, and the reason in words.

    Raises: ModelError: when `weights` is asked for and there are several mixes.
    """
    if mode == "weights" and mixes > 1:
        raise ModelError(
            expected="one mix for mode weights, since the model has one set of weights",
            got=f"{mixes} mixes, one per analogy",
            remedy="Use mode forward (or auto), or encode one analogy only.",
        )
    if mode != "auto":
        return mode, "as asked"
    if mixes > 1:
        return "forward", f"{mixes} mixes, one per sample"
    quantised = describe_quantised(targets)
    if quantised:
        return "forward", quantised
    shortage = describe_shortage(model)
    if shortage:
        return "forward", shortage
    originals = find_originals(model, targets)
    free_bytes = host.free_bytes(originals.device)
    if originals.have_room(free_bytes):
        return "weights", f"plain weights; {originals.describe(free_bytes)}"
    return "forward", f"too little room; {originals.describe(free_bytes)}"


def find_originals(model: Model, targets: list[Target]) -> Originals:
    """Return what the host keeps of a model's targets in mode `weights`, and where."""
    kept = [] if host.streams_weights(model) else [target for target in targets if not target.is_patched_while_used]
    return Originals(
        total_bytes=sum(target.weight_bytes for target in kept),
        held_bytes=sum(target.weight_bytes for target in kept if _is_held(model, target)),
        device=model.offload_device,
    )


def describe_quantised(targets: list[Target]) -> str:
    """Return how many weights are quantised and how, or "" when all are plain."""
    quantised = [target for target in targets if not target.is_plain]
    if not quantised:
        return ""
    return f"{len(quantised)} of {len(targets)} weights are quantised ({quantised[0].weight_kind})"


def describe_shortage(model: Model) -> str:
    """Return why the host cannot hold the whole model on its load device, or "" when it can or nobody knows."""
    room = host.room_for_weights(model)
    if room is None or model.model_size() <= room:
        return ""
    return (
        f"{gigabytes(model.model_size())} of weights do not fit {model.load_device} whole, {gigabytes(room)} usable; "
        "what is streamed in would be patched again in every step"
    )


def gigabytes(size: float) -> str:
    """Return a number of bytes for people."""
    return f"{size / 1e9:.2f} GB"


def _is_held(model: Model, target: Target) -> bool:
    """Whether a target's original takes room on the offload device now: as a backup, or as the idle weight itself."""
    if f"{target.module_name}.weight" in model.backup:
        return True
    on_offload_device = target.module.weight.device == model.offload_device
    return on_offload_device and model.load_device != model.offload_device
