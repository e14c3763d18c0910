"""One analogy's mixed LoRA as an ordinary LoRA file that stock ComfyUI and stock diffusers load.

    transformer.<layer>.lora_A.weight [R, in]     transformer.<layer>.lora_B.weight [out, R]     (scale 1, no alpha)

R is N·r, or less when a rank is asked for. The header says where the LoRA comes from. A basis with per-adapter biases
cannot be written as an ordinary LoRA and is refused. Reducing the rank never forms the full product:

    up = Q_u R_u,   downᵀ = Q_d R_d,   R_u R_dᵀ = U S Vᵀ   (R × R)   ⇒   up @ down = (Q_u U) S (Q_d V)ᵀ

Keeping the largest singular values is optimal in the Frobenius norm (Eckart–Young). The split √S · √S balances the
two factors, which half precision needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .basis import Basis, LayerBasis
from .errors import CheckpointError, OutputError, SettingsError
from .mixing import mix_layer
from .safetensors_file import stream_safetensors

EXPORT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
METADATA_KEY = "lorweb_mix"


@dataclass(frozen=True, eq=False)
class ReducedPair:
    """up [out, k] @ down [k, in], float32; kept_energy is Σ_kept s² ÷ Σ_all s², 1.0 for a zero matrix."""

    down: Tensor
    up: Tensor
    kept_energy: float


def reduce_rank(down: Tensor, up: Tensor, *, rank: int) -> ReducedPair:
    """Return the best rank-`rank` (1 or more) approximation of up [out, R] @ down [R, in].

    Source: SVD of a product through QR of its factors, Golub & Van Loan, Matrix Computations, section 8.6.
    """
    up_basis, up_core = torch.linalg.qr(up.float())
    down_basis, down_core = torch.linalg.qr(down.float().t())
    left, singular_values, right = torch.linalg.svd(up_core @ down_core.t(), full_matrices=False)
    root = singular_values[:rank].sqrt()
    energy = singular_values.double().square()
    total = float(energy.sum())
    return ReducedPair(
        down=root[:, None] * (right[:rank] @ down_basis.t()),
        up=(up_basis @ left[:, :rank]) * root,
        kept_energy=float(energy[:rank].sum()) / total if total else 1.0,
    )


def balance_pair(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return (down, up) of equal product in float32, with rows of down and columns of up equally long.

    Coefficients near zero folded into small weights would fall below half precision's range on one side alone.
    """
    down, up = down.float(), up.float()
    down_norms, up_norms = down.norm(dim=1), up.norm(dim=0)
    is_used = (down_norms > 0) & (up_norms > 0)
    ratio = torch.where(is_used, (up_norms / down_norms.clamp_min(1e-30)).sqrt(), torch.ones_like(up_norms))
    return down * ratio[:, None], up / ratio


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote: the highest rank of a layer, and layer name → share of the delta's energy kept, 0…1."""

    path: Path
    rank: int
    kept_energy: Mapping[str, float]

    def describe(self) -> str:
        """Return one line: layers, rank, and the energy kept."""
        worst = min(self.kept_energy, key=lambda name: self.kept_energy[name])
        mean = sum(self.kept_energy.values()) / len(self.kept_energy)
        return (
            f"{len(self.kept_energy)} layers, rank {self.rank}, energy kept {mean:.2%} on average, "
            f"{self.kept_energy[worst]:.2%} at worst ({worst})"
        )


def export_mixed_lora(
    path: Path,
    basis: Basis,
    coefficients: Mapping[str, Tensor],
    *,
    strength: float = 1.0,
    rank: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    on_layer: Callable[[], object] = lambda: None,
) -> ExportReport:
    """Write the mixed LoRA of one analogy as an ordinary LoRA, whole or not at all.

    Args:
        coefficients: layer name → [N].
        rank: ranks kept per layer; 0 keeps all N·r.
        on_layer: called after each layer (progress, interruption).
    Raises:
        CheckpointError: for a basis with biases.
        SettingsError: for a negative rank.
        OutputError: when the file cannot be written, or numbers leave float32's or the dtype's range.
    """
    if rank < 0:
        raise SettingsError(f"rank is {rank}. Use rank 0 to keep all, or a positive number.")
    biased = [name for name, layer in basis.layers.items() if layer.lora_bias is not None]
    if biased:
        raise CheckpointError(
            f"{len(biased)} layers of this basis have per-adapter biases (such as {biased[0]}), for which an ordinary "
            "LoRA file has no place. Use Apply Mixed LoRA to Kontext, which adds the biases itself."
        )
    entries: dict[str, tuple[tuple[int, int], torch.dtype]] = {}
    for name, layer in basis.layers.items():
        kept_rank = layer.total_rank
        if 0 < rank < layer.total_rank:
            kept_rank = min(rank, layer.in_features, layer.out_features)
        entries[f"transformer.{name}.lora_A.weight"] = (kept_rank, layer.in_features), dtype
        entries[f"transformer.{name}.lora_B.weight"] = (layer.out_features, kept_rank), dtype
    kept_energy: dict[str, float] = {}

    def make_tensors() -> Iterator[Tensor]:
        for name, layer in basis.layers.items():
            down, up, kept_energy[name] = _factor(name, layer, coefficients[name], strength=strength, rank=rank)
            yield down
            yield up
            on_layer()

    provenance = {
        "format_version": 1,
        "basis_id": basis.basis_id,
        "basis_name": basis.name,
        "base_model": basis.settings.base_model,
        "strength": strength,
        "rank": rank,
    }
    stream_safetensors(path, entries, make_tensors(), {"format": "pt", METADATA_KEY: json.dumps(provenance)})
    ranks = [shape[0] for key, (shape, _) in entries.items() if key.endswith("lora_A.weight")]
    return ExportReport(path=path, rank=max(ranks), kept_energy=kept_energy)


def _factor(
    name: str, layer: LayerBasis, coefficients: Tensor, *, strength: float, rank: int
) -> tuple[Tensor, Tensor, float]:
    """Return down, up and the share of energy kept; raises OutputError when numbers leave float32's range."""
    mixed = mix_layer(layer, coefficients, strength=strength)
    if mixed.down.isfinite().all() and mixed.up.isfinite().all():
        with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]  # the product overflowed
            if 0 < rank < layer.total_rank:
                reduced = reduce_rank(mixed.down, mixed.up, rank=rank)
                down, up, kept = reduced.down, reduced.up, reduced.kept_energy
            else:
                down, up = balance_pair(mixed.down, mixed.up)
                kept = 1.0
            if down.isfinite().all() and up.isfinite().all():
                return down, up, kept
    raise OutputError(
        f"The mix of layer {name} overflows float32 at strength {strength:g}. Use a smaller strength, or smaller "
        "coefficients."
    )
