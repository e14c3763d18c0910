"""Node Save Mixed LoRA: one analogy as an ordinary LoRA file."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from ..lorweb_core.coefficients import Coefficients, count_mixes, require_coefficients_of
from ..lorweb_core.errors import printable
from ..lorweb_core.export import EXPORT_DTYPES, export_mixed_lora
from . import host
from .sockets import BASIS, COEFFICIENTS, STRENGTH, LoadedBasis

_logger = logging.getLogger(__name__)


class SaveMixedLoRA:
    DESCRIPTION = (
        "Writes the mixed LoRA of each analogy as an ordinary LoRA file below the output folder. Move it to "
        "models/loras; any LoRA loader (also Nunchaku's) and diffusers can read it, without the basis or the images."
    )
    CATEGORY = "LoRWeB"
    FUNCTION = "save"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("The written files, one line per analogy.",)
    SEARCH_ALIASES: ClassVar[list[str]] = ["save lora", "export lora", "analogy", "lorweb"]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "basis": (BASIS, {"tooltip": "The basis that the coefficients were encoded with."}),
                "coefficients": (COEFFICIENTS, {"tooltip": "From Encode Analogy (CLIP)."}),
                "filename_prefix": (
                    "STRING",
                    {"default": "loras/lorweb", "tooltip": "Folder and file name below the output folder."},
                ),
                "strength": (
                    "FLOAT",
                    {**STRENGTH, "tooltip": "Written into the file; the strength of the LoRA loader multiplies it."},
                ),
                "rank": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 256,
                        "tooltip": "0 keeps the whole mix (rank N·r). A smaller rank makes a smaller file: the best "
                        "approximation by SVD; the report says how much is kept.",
                    },
                ),
                "dtype": (list(EXPORT_DTYPES), {"default": "bf16", "tooltip": "fp32 files are twice as large."}),
            }
        }

    def save(
        self,
        basis: LoadedBasis,
        coefficients: Coefficients,
        filename_prefix: str,
        strength: float,
        rank: int,
        dtype: str,
    ) -> dict[str, Any]:
        """Write one file per analogy; return their paths and how much of each mix was kept."""
        mixes = require_coefficients_of(basis.basis, coefficients)
        folder, stem, counter = host.next_output_path(filename_prefix)
        count = count_mixes(mixes)
        progress = host.Progress(count * len(basis.basis.layers))
        paths, lines, adapters = [], [], basis.with_adapters()
        for index in range(count):
            path = folder / f"{stem}_{counter + index:05}_.safetensors"
            report = export_mixed_lora(
                path,
                adapters,
                {name: mix[index] for name, mix in mixes["layers"].items()},
                strength=strength,
                rank=rank,
                dtype=EXPORT_DTYPES[dtype],
                on_layer=progress.step,
            )
            paths.append(str(path))
            lines.append(f"{path.name}: {report.describe()}")
            _logger.info("Saved mixed LoRA %s: %s", printable(str(path)), report.describe())
        return {"ui": {"text": lines}, "result": ("\n".join(paths),)}
