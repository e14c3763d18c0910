"""Mode `forward`: the mixed LoRA is added to the output of each Linear; the base weights are not touched.

    y = base(x);   h = (x @ downᵀ) ∘ (strength · c);   y[rows of a part] += h_part @ up_part

`down` stacks the parts of a fused module (q, k, v, MLP), so that x is read once. Each sample may have its own c. It
works on every weight format, and quantized weights are not rounded again. The adapters live in a bank that the host
loads next to the model; a new mix only changes c, so nothing is reloaded.

The edit is the host's object patch of each Linear's `forward`. It calls the patch of an earlier node, or else the
class' own forward, and never the `forward` of the live module: that may be an injection of another node or of an
earlier prompt, which the host removes before sampling. Such an injection wraps our patch by itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter

from ..lorweb_core.coefficients import Coefficients, count_mixes
from ..lorweb_core.errors import ModelError, ShapeError
from ..lorweb_core.mixing import expand_to_ranks, per_sample_scale, project_and_scale, stacked_down, stacked_up
from . import host
from .host import Model
from .sockets import LoadedBasis
from .targets import Linear, Target, find_targets

_ADDITIONAL_MODELS_KEY = "lorweb"


class LoRWeBAdapters(torch.nn.ModuleList):
    """The bank: a `BankEntry` for each target. This class name appears in the host's log."""


class BankEntry(torch.nn.Module):
    """The stacked adapters of one Linear, as frozen parameters that the host can count and move.

    `down` [R, in] with R = Σ_parts N·r; `up_0`, `up_1`, … [N·r, out of the part], in the order of the target's parts.
    """

    def __init__(self, target: Target, dtype: torch.dtype) -> None:
        super().__init__()
        downs = [stacked_down(part.layer).to(dtype) for part in target.parts]
        self.down = Parameter(downs[0] if len(downs) == 1 else torch.cat(downs), requires_grad=False)
        self.rows: list[tuple[int, int]] = []
        self.ranks: list[int] = []
        for index, part in enumerate(target.parts):
            up = stacked_up(part.layer).to(dtype)
            self.register_parameter(f"up_{index}", Parameter(up, requires_grad=False))
            self.rows.append((part.start, part.length))
            self.ranks.append(part.layer.total_rank)

    def add_contribution(self, output: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        """Return output [B, ..., out] + the mix's contribution for x [B, ..., in], scale [mixes, R].

        Writes into `output`: it is fresh from the wrapped forward.
        """
        flat_hidden = project_and_scale(x, self.down, scale).flatten(0, -2)
        flat_output = output.flatten(0, -2)
        first = 0
        for index, ((start, length), rank) in enumerate(zip(self.rows, self.ranks, strict=True)):
            up = getattr(self, f"up_{index}").to(x)
            part = flat_output[:, start : start + length]
            part.addmm_(flat_hidden[:, first : first + rank].to(output.dtype), up.to(output.dtype))
            first += rank
        return flat_output.view(output.shape)


class Contribution:
    """What one Apply adds to one Linear: a bank entry with this Apply's own coefficients.

    Args:
        entry: the adapters.
        scale: [mixes, R] float32 on the CPU, strength included.
        bias: [mixes, out] float32 on the CPU, or None.
    """

    def __init__(self, entry: BankEntry, scale: Tensor, bias: Tensor | None) -> None:
        self._entry = entry
        self._scale = self._cast_scale = scale
        self._bias = self._cast_bias = bias

    def add_to(self, output: Tensor, x: Tensor) -> Tensor:
        """Return output + contribution for the Linear's input x."""
        if self._cast_scale.device != x.device or self._cast_scale.dtype != x.dtype:
            self._cast_scale = self._scale.to(x)
            self._cast_bias = None if self._bias is None else self._bias.to(output)
        result = self._entry.add_contribution(output, x, self._cast_scale)
        return result if self._cast_bias is None else result + per_sample_scale(self._cast_bias, x)


def patch_forward(
    model: Model, targets: list[Target], loaded: LoadedBasis, coefficients: Coefficients, *, strength: float
) -> int:
    """Wrap the forward of every target of a cloned model; wraps of earlier nodes are kept inside ours.

    The coefficients are of one analogy, or one per sample of the latent batch. A bank is made if `loaded` has none for
    this model's devices and dtype. Returns the bytes of the bank that the host loads beside the model.
    """
    bank = _find_or_make_bank(model, targets, loaded)
    for target, entry in zip(targets, bank.model, strict=True):
        name = f"{target.module_name}.forward"
        contribution = _make_contribution(target, entry, coefficients, strength)
        model.add_object_patch(name, _wrap_forward(target.module, model.object_patches.get(name), contribution))
    mixes = count_mixes(coefficients)
    if mixes > 1:
        host.watch_latent_batches(model, lambda batch: _require_latent_per_mix(batch, mixes))
    host.watch_weight_readers(model, _refuse_weight_readers)
    present = model.get_additional_models_with_key(_ADDITIONAL_MODELS_KEY)
    if not any(bank.is_clone(other) for other in present):
        model.set_additional_models(_ADDITIONAL_MODELS_KEY, [*present, bank])
    return bank.model_size()


def _wrap_forward(
    module: Linear, earlier: Callable[..., Tensor] | None, contribution: Contribution
) -> Callable[..., Tensor]:
    def forward_with_contribution(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        output = earlier(x, *args, **kwargs) if earlier else type(module).forward(module, x, *args, **kwargs)
        return contribution.add_to(output, x)

    return forward_with_contribution


def _make_contribution(target: Target, entry: BankEntry, coefficients: Coefficients, strength: float) -> Contribution:
    mixes = {part.layer_name: strength * coefficients["layers"][part.layer_name] for part in target.parts}
    scale = torch.cat([expand_to_ranks(part.layer, mixes[part.layer_name]) for part in target.parts], dim=-1)
    if all(part.layer.lora_bias is None for part in target.parts):
        return Contribution(entry, scale, None)
    bias = torch.zeros(scale.shape[0], target.module.out_features)
    for part in target.parts:
        if part.layer.lora_bias is not None:
            rows = slice(part.start, part.start + part.length)
            bias[:, rows] = mixes[part.layer_name] @ part.layer.lora_bias.float()
    return Contribution(entry, scale, bias)


def _require_latent_per_mix(batch: int, mixes: int) -> None:
    """Refuse a sampling step with any other number of latents than mixes.

    Only with equal numbers is mix i certainly for latent i: the model does not learn which rows of a larger batch it
    is given.
    """
    if batch != mixes:
        raise ShapeError(
            f"There are {mixes} mixes, one per analogy, and mix i is for latent i, but the latent batch has {batch}. "
            f"Connect a latent batch of {mixes}; to sample only some of them, or one several times, encode the "
            "analogies in that number and order."
        )


def _refuse_weight_readers(*_args: object, **_kwargs: object) -> NoReturn:
    raise ModelError(
        "This node reads the model's weights, but Apply Mixed LoRA in mode forward leaves them unchanged: the edit "
        "would be lost. Set Apply to mode weights, or write the edit with Save Mixed LoRA."
    )


def _refuse_multigpu(*_args: object, **_kwargs: object) -> NoReturn:
    raise ModelError(
        "Apply Mixed LoRA in mode forward works on one GPU only, but this model is split over several. "
        "Set Apply to mode weights, or remove the MultiGPU node."
    )


def _find_or_make_bank(model: Model, targets: list[Target], loaded: LoadedBasis) -> Model:
    dtype = host.compute_dtype(model)
    key = (dtype, str(model.load_device), str(model.offload_device), tuple(target.module_name for target in targets))
    if key not in loaded.banks:
        entries = LoRWeBAdapters()
        progress = host.Progress(len(targets))
        for target in find_targets(model, loaded.with_adapters()):
            entries.append(BankEntry(target, dtype))
            progress.step()
        bank = host.make_model_patcher(entries, load_device=model.load_device, offload_device=model.offload_device)
        bank.cached_patcher_init = (_refuse_multigpu, ())  # with which the host makes copies for other GPUs
        itself = weakref.ref(bank)
        bank.clone = lambda *_args, **_kwargs: itself()  # nothing patches a bank, and the host would lose its clones
        loaded.banks[key] = bank
        loaded.drop_adapters()
    return loaded.banks[key]
