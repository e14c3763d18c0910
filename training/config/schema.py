"""All values of a training run as one frozen, typed tree: the names a YAML file and the command line accept.

`reading` reads files and overrides into it and reports all errors at once. The shipped YAML files explain each value
with its unit, cost and origin; here are types, defaults and limits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lorweb_core.settings import CLIP_ENCODER_ID, KONTEXT_ID, RouterSettings

# A value beyond these limits is a typing error, and its effect would depend on the optimizer or the machine.
MAX_COUNT = 999_999_999  # names of checkpoint folders have nine digits
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Natural = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Batch = Annotated[int, Field(ge=1, le=4096)]
Size = Annotated[int, Field(ge=1, le=4096)]
Decay = Annotated[float, Field(ge=0, le=0.999999)]  # above, 1 - decay is 0 in float32
Rate = Annotated[float, Field(ge=1e-12, le=10)]

#: Query modes that embed the 2×2 grid instead of single images; their embeddings are not cached.
GRID_QUERY_MODES = ("aa'bb'", "caa'bb'", "caa'b", "caa'")


class _Section(BaseModel):
    """Frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class BaseModelConfig(_Section):
    """The frozen base: where it comes from and the precision it computes in."""

    model: str = KONTEXT_ID
    components: str | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    quantize: Literal["none", "int8", "nf4"] = "none"
    compile: bool = False


class BasisConfig(_Section):
    """The basis that is trained: its sizes, its router and the Linears it is attached to."""

    basis_size: Size = 32
    rank: Size = 4
    key_dim: Size = 128
    activation: Literal["softmax", "tanh"] = "softmax"
    query_mode: Literal["cat-aa'b", "aa'bb'", "caa'bb'", "caa'b", "caa'", "ca'-ca", "ca'-ca+cb"] = "cat-aa'b"
    coefficient_gain: Annotated[float, Field(ge=1e-3, le=4096)] | Literal["basis_size"] = 1.0
    include: tuple[str, ...] = ("*",)
    start_from: Path | None = None

    @model_validator(mode="after")
    def _total_rank_is_limited(self) -> BasisConfig:
        if self.basis_size * self.rank > 4096:
            raise ValueError(f"basis_size x rank ({self.basis_size} x {self.rank}) must be at most 4096")
        return self

    @property
    def gain(self) -> float:
        """The factor on all coefficients as a number."""
        return float(self.basis_size if self.coefficient_gain == "basis_size" else self.coefficient_gain)


class EncoderConfig(_Section):
    """The frozen image encoder whose embeddings the router reads; it computes in float32."""

    model: str = CLIP_ENCODER_ID


class TextConfig(_Section):
    """The prompts."""

    caption_source: Literal["a", "b", "task", "none"] = "a"
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 512


class DataConfig(_Section):
    """The image pairs: which, at what size, which are held out, and where computed embeddings are kept."""

    index: Path
    resolution_px: Annotated[int, Field(ge=16, le=2048, multiple_of=16)] = 256
    hold_out_tasks: Natural | tuple[str, ...] = 0
    hold_out_pairs: Natural = 1
    workers: Annotated[int, Field(ge=0, le=256)] = 4
    cache: Path | None = None


class FlowConfig(_Section):
    """Noise levels and loss."""

    timesteps: Literal["bell", "uniform", "logit_normal", "shifted"] = "bell"
    copied_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0


class OptimizerConfig(_Section):
    """The optimizer and its learning rates."""

    name: Literal["adamw", "adamw8bit"] = "adamw8bit"
    learning_rate: Rate = 1e-3
    router_learning_rate: Rate | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    ema_decay: Decay | None = None


class RunConfig(_Section):
    """Name, length and batches of the run, and where it computes."""

    name: Annotated[str, Field(pattern=r"^[\w][\w.\- ]*$")] = "lorweb"
    folder: Path = Path("runs")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Positive = 10_000
    batch_size: Batch = 6
    micro_batch_size: Batch = 6
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"


class CheckpointConfig(_Section):
    """Checkpoints on disk."""

    every: Positive = 250
    keep: Positive = 2


class ValidationConfig(_Section):
    """Losses at fixed noise, generated images with PSNR and SSIM, and router health; also at step 0 and at the end."""

    every: Natural = 500
    examples: tuple[Path, ...] = ()
    images: Natural = 4
    image_steps: Annotated[int, Field(ge=1, le=1000)] = 20


class TrackingConfig(_Section):
    """Metrics besides the run's own files."""

    wandb_project: str | None = None
    log_every: Positive = 10


class TrainConfig(_Section):
    """A whole training run."""

    base: BaseModelConfig = BaseModelConfig()
    basis: BasisConfig = BasisConfig()
    encoder: EncoderConfig = EncoderConfig()
    text: TextConfig = TextConfig()
    data: DataConfig
    flow: FlowConfig = FlowConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _a_sharded_base_is_not_quantized(self) -> TrainConfig:
        if self.run.strategy == "fsdp" and self.base.quantize != "none":
            raise ValueError("run.strategy fsdp shards a bfloat16 base: set base.quantize: none, or use ddp")
        return self

    @property
    def run_folder(self) -> Path:
        """Where everything of this run is written."""
        return self.run.folder / self.run.name

    @property
    def caches_embeddings(self) -> bool:
        """Whether image embeddings are computed once, before training, and read from `data.cache`."""
        return self.data.cache is not None and self.basis.query_mode not in GRID_QUERY_MODES

    def router_settings(self) -> RouterSettings:
        """The routing settings that are written into the basis file."""
        return RouterSettings(
            activation=self.basis.activation,
            query_mode=self.basis.query_mode,
            encoder_id=_public_name(self.encoder.model),
            base_model=_public_name(self.base.model),
        )


def _public_name(model: str) -> str:
    """A Hugging Face id as it is, the last part of a local path: shared files contain no paths of this machine."""
    is_path = Path(model).exists() or model.count("/") != 1
    return Path(model).name if is_path else model
