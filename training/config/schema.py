"""The whole of a training run as one frozen, typed tree: what a YAML file and the command line may say.

`config_reading` reads files and overrides into it and tells all mistakes at once. The shipped files in `configs/`
explain each line with unit, cost and origin; here are types, defaults and limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lorweb_core.settings import CLIP_ENCODER_ID, KONTEXT_ID, RouterSettings

# Beyond these limits a value is a slip, and what it would do depends on the optimizer or the machine.
MAX_COUNT = 999_999_999  # names of checkpoint folders have nine digits
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Natural = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Batch = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, le=0.999999)]  # above, 1 - decay is 0 in float32
Rate = Annotated[float, Field(ge=1e-12, le=10)]
Weight = Annotated[float, Field(ge=0, le=1000)]
Sigma = Annotated[float, Field(gt=0, le=1)]


class _Section(BaseModel):
    """Frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class BaseModelConfig(_Section):
    """The frozen base: where it comes from and in which precision it computes."""

    model: str = KONTEXT_ID
    id: str | None = None
    revision: str | None = None
    components: str | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    quantize: Literal["none", "int8", "nf4"] = "none"
    gradient_checkpointing: bool = True
    compile: bool = False


class BasisConfig(_Section):
    """The basis that is learned: its sizes, its router and the Linears that get one."""

    basis_size: Annotated[int, Field(ge=1, le=4096)] = 32
    rank: Annotated[int, Field(ge=1, le=4096)] = 4
    key_dim: Annotated[int, Field(ge=1, le=4096)] = 128
    heads: Positive = 1
    activation: Literal["softmax", "tanh"] = "softmax"
    reduction: Literal["mean", "sum"] = "mean"
    query_mode: Literal["cat-aa'b", "aa'bb'", "caa'bb'", "caa'b", "caa'", "ca'-ca", "ca'-ca+cb"] = "cat-aa'b"
    coefficient_gain: Annotated[float, Field(ge=1e-3, le=4096)] | Literal["basis_size"] = 1.0
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"
    start_from: Path | None = None

    @model_validator(mode="after")
    def _sizes_fit_each_other(self) -> BasisConfig:
        if self.basis_size * self.rank > 4096:
            raise ValueError(f"basis_size x rank ({self.basis_size} x {self.rank}) must be at most 4096")
        if self.key_dim % self.heads:
            raise ValueError(f"key_dim ({self.key_dim}) must be a multiple of heads ({self.heads})")
        return self

    @property
    def gain(self) -> float:
        """The factor on all coefficients as a number."""
        return float(self.basis_size if self.coefficient_gain == "basis_size" else self.coefficient_gain)


class EncoderConfig(_Section):
    """The frozen image encoder that the router listens to."""

    model: str = CLIP_ENCODER_ID
    id: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


class TextConfig(_Section):
    """What the base is told in words."""

    caption_source: Literal["a", "b", "task", "none"] = "a"
    caption_dropout: Share = 0.05
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 512


class DataConfig(_Section):
    """Pictures: which, how large, how drawn, what is kept of them."""

    index: Path
    resolution_px: Annotated[int, Field(ge=16, le=2048, multiple_of=16)] = 256
    task_exponent: Annotated[float, Field(ge=0, le=4)] = 0.5
    pairing: Literal["ordered", "i<j"] = "ordered"
    hold_out_tasks: Natural | tuple[str, ...] = 0
    hold_out_pairs: Natural = 1
    on_bad_data: Literal["skip", "stop"] = "skip"
    workers: Annotated[int, Field(ge=0, le=256)] = 4
    cache: Path | None = None
    cache_embeddings: bool = False
    cache_latents: bool = False

    @model_validator(mode="after")
    def _caches_need_a_folder(self) -> DataConfig:
        if self.cache is None and (self.cache_embeddings or self.cache_latents):
            raise ValueError("cache_embeddings and cache_latents need a folder in cache")
        return self


class FlowConfig(_Section):
    """Noise, weights and loss."""

    timesteps: Literal["bell", "uniform", "logit_normal", "shifted"] = "bell"
    logit_mean: Annotated[float, Field(ge=-10, le=10)] = 0.0
    logit_std: Annotated[float, Field(ge=0.01, le=10)] = 1.0
    shift: Annotated[float, Field(ge=0.01, le=100)] = 3.0
    guidance: Weight = 1.0
    copied_weight: Weight = 1.0
    latents: Literal["mode", "sample"] = "mode"

    @property
    def timestep_settings(self) -> TimestepSettings:
        """What `flow.draw_sigma` takes."""
        return TimestepSettings(self.timesteps, self.logit_mean, self.logit_std, self.shift)


class OptimizerConfig(_Section):
    """How the basis is moved."""

    name: Literal["adamw", "adamw8bit"] = "adamw8bit"
    learning_rate: Rate = 1e-3
    router_learning_rate: Rate | None = None
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    epsilon: Annotated[float, Field(ge=1e-30, le=1)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.05
    max_gradient_norm: Annotated[float, Field(ge=1e-9, le=1e9)] | None = 1.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: Natural = 0
    ema_decay: Decay | None = None


class RunConfig(_Section):
    """Length of the run, batches, and what happens when something goes wrong."""

    name: Annotated[str, Field(pattern=r"^[\w][\w.\- ]*$")] = "lorweb"
    folder: Path = Path("runs")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Positive = 10_000
    batch_size: Batch = 6
    micro_batch_size: Batch = 6
    max_bad_steps: Natural = 20
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"


class CheckpointConfig(_Section):
    """What is kept on disk."""

    every: Positive = 250
    keep: Positive = 2
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"


class ValidationConfig(_Section):
    """Losses at fixed noise, generated images, their PSNR and SSIM, and router health; at step 0 and at the end too."""

    every: Natural = 500
    per_task: Positive = 1
    max_items: Positive = 32
    sigmas: Annotated[tuple[Sigma, ...], Field(min_length=1)] = (0.25, 0.5, 0.75, 0.98)
    examples: tuple[Path, ...] = ()
    pictures: Natural = 4
    picture_steps: Annotated[int, Field(ge=1, le=1000)] = 20
    picture_guidance: Weight = 2.5


class TrackingConfig(_Section):
    """Where numbers go besides the run's own files."""

    tensorboard: bool = True
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
    def _parts_fit_each_other(self) -> TrainConfig:
        problems = []
        if self.data.cache_latents and self.flow.latents == "sample":
            problems.append("data.cache_latents keeps one encoding per picture: set flow.latents: mode")
        if self.data.cache_embeddings and self.basis.query_mode in ("aa'bb'", "caa'bb'", "caa'b", "caa'"):
            problems.append("data.cache_embeddings is for query modes of single pictures, not for grids")
        if self.run.strategy == "fsdp" and self.base.quantize != "none":
            problems.append("run.strategy fsdp shards a bfloat16 base: set base.quantize: none, or use ddp")
        if self.optimizer.warmup_steps >= self.run.steps:
            problems.append("optimizer.warmup_steps must be below run.steps")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def run_folder(self) -> Path:
        """Where everything of this run lies."""
        return self.run.folder / self.run.name

    def router_settings(self) -> RouterSettings:
        """What is written into the basis file about routing."""
        return RouterSettings(
            activation=self.basis.activation,
            heads=self.basis.heads,
            reduction=self.basis.reduction,
            query_mode=self.basis.query_mode,
            encoder_id=self.encoder.id or _public_name(self.encoder.model),
            encoder_revision=self.encoder.revision or "",
            base_model=self.base.id or _public_name(self.base.model),
        )


def _public_name(model: str) -> str:
    """A Hugging Face id as it is, of a local path its last part only: no machine's paths in files that are shared."""
    is_path = Path(model).exists() or model.count("/") != 1
    return Path(model).name if is_path else model


@dataclass(frozen=True)
class TimestepSettings:
    """How sigmas are drawn and weighed.

    Attributes:
        mode: `bell`: uniform draw, bell-shaped weights (reference); `uniform`: weights 1; `logit_normal`: sigmoid of
            a normal draw, weights 1; `shifted`: uniform, then σ' = s·σ/(1 + (s − 1)·σ), weights 1.
        logit_mean: of the normal draw.
        logit_std: of the normal draw.
        shift: s.
    """

    mode: str = "bell"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 3.0
