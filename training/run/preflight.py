"""`--check`: would this run work? Config, data, models, disk space and a memory estimate, without loading weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch

from lorweb_core.encoder import read_encoder_size
from lorweb_core.errors import LoRWeBError
from lorweb_core.settings import KONTEXT_ID, QUERY_MODES

from ..base.quantize import INSTALL, PACKAGES
from ..base.single_file import check_header
from ..base.source import FULL_SIZE_CONFIG, find_parts_here, is_repository_id, read_transformer_config
from ..base.text import has_text_encoders
from ..config.schema import TrainConfig
from ..data.index import read_pairs
from ..data.pairing import all_captions, missing_captions_line
from ..data.splits import held_out_tasks
from .checkpoints import list_checkpoints
from .data import divided_pairs, validation_outlook
from .memory import (
    CLIP_SIZE,
    ITEM_BYTES,
    OPTIMIZER_BYTES,
    MemoryEstimate,
    checkpoint_bytes,
    estimate_memory,
    meta_transformer,
    size_text,
)
from .session import load_start

_MUCH_MEMORY_BYTES = 8e9
_CPU_MEMORY = "; activations above are those of a GPU run, which has gradient checkpointing"


@dataclass
class PreflightReport:
    """The result of `--check`: lines about the run, errors that prevent it, and the prompts of the data."""

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    prompts: set[str] = field(default_factory=set)

    def text(self) -> str:
        """Return everything, errors last."""
        verdict = f"{len(self.errors)} error(s):" if self.errors else "ready to train"
        return "\n".join([*self.lines, verdict, *(f"  - {error}" for error in self.errors)])


def preflight_report(config: TrainConfig) -> PreflightReport:
    """Check everything and return the report; nothing is downloaded."""
    report = PreflightReport()
    for part in (_check_data, _check_base, _check_device, _check_packages_and_files):
        try:
            part(config, report)
        except LoRWeBError as error:
            report.errors.append(str(error))
    return report


def _check_data(config: TrainConfig, report: PreflightReport) -> None:
    pairs = read_pairs(config.data.index)
    usable, problems = divided_pairs(config, pairs)
    training = [record for record in usable if record.split == "train"]
    tasks, unseen = {record.task for record in usable}, held_out_tasks(usable)
    report.lines.append(
        f"data: {len(usable)} of {len(pairs)} pairs usable by their headers, {len(training)} to train on, "
        f"{len(tasks)} tasks of which {len(unseen)} held out, {len(problems)} warnings "
        "(`training.prepare check` lists them, decodes every file and may find more)"
    )
    if line := missing_captions_line(training, config.text.caption_source):
        report.lines.append(line)
    outlook = validation_outlook(config, usable)
    report.lines.append(outlook.line)
    if outlook.warning:
        report.lines.append(f"warning: {outlook.warning}")
    report.prompts = set(all_captions(usable, config.text.caption_source))


def _check_base(config: TrainConfig, report: PreflightReport) -> None:
    parts = find_parts_here(config.base.model, config.base.components)
    if parts.transformer is not None and parts.transformer.is_file():
        check_header(parts.transformer)
    missing = []
    if parts.transformer is None:
        weights = sum(parameter.numel() for parameter in meta_transformer(FULL_SIZE_CONFIG).parameters())
        size = weights * ITEM_BYTES["bfloat16"] / 1e9
        missing.append(f"about {size:.0f} GB for a transformer of the published sizes")
    if parts.components is None:
        missing.append("VAE and text encoders")
    for name in parts.repositories:  # no error: the first run downloads them
        condition = "which" if name == KONTEXT_ID else "which, if it is gated,"
        report.lines.append(
            f"base: {name} is not on this machine yet; the first run downloads it ({', then '.join(missing)}), "
            f"{condition} needs the license accepted at https://huggingface.co/{name} and `hf auth login`"
        )
    if parts.components is not None and not (parts.components / "vae").is_dir():
        report.errors.append(f"no vae/ in {parts.components}: set base.components to a diffusers folder that has it")
    transformer_config = read_transformer_config(parts)
    _check_prompts(config, parts.components, transformer_config["joint_attention_dim"], report)

    width, weights = CLIP_SIZE
    try:
        width, weights = read_encoder_size(config.encoder.model)
    except LoRWeBError as error:
        if Path(config.encoder.model).is_dir():
            report.errors.append(str(error))
        elif is_repository_id(config.encoder.model):
            report.lines.append(
                f"encoder: {config.encoder.model} is not on this machine yet; the first run downloads it, and it is "
                "counted as CLIP ViT-L/14 here, whose embeddings are 768 wide"
            )
    if config.optimizer.name == "adamw8bit" and find_spec("bitsandbytes") is None:  # what then trains is AdamW
        config = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"name": "adamw"})})
    memory = estimate_memory(config, transformer_config, QUERY_MODES[config.basis.query_mode] * width, weights)
    amounts = ", ".join(f"{name} {size_text(value)}" for name, value in vars(memory).items())
    report.lines.append(f"memory per device, computed: {size_text(memory.total)} ({amounts})")
    if config.run.device != "cpu" and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        if memory.total > total:
            report.errors.append(
                f"about {memory.total / 1e9:.1f} GB are needed, the GPU has {total / 1e9:.1f}: lower "
                "run.micro_batch_size, set base.quantize: int8 or nf4, optimizer.name: adamw8bit, or a smaller basis"
            )
    _check_disk(config, memory, report)


def _check_prompts(config: TrainConfig, components: Path | None, width: int, report: PreflightReport) -> None:
    """What the prompts take, and whether anything can encode them; a repository is assumed to have text encoders."""
    prompts, cache = report.prompts, config.data.cache
    if components is not None and not has_text_encoders(components):
        if any(prompts):
            report.errors.append(
                f"{len(prompts)} prompts, but no text encoders in {components}: set text.caption_source: none, "
                "or base.components to a folder that has them"
            )
        return
    needed = len(prompts) * config.text.max_tokens * width * ITEM_BYTES[config.base.dtype]
    where = "in system memory of every process" if cache is None else f"on disk in {cache}"
    hint = ""
    if cache is None and needed > _MUCH_MEMORY_BYTES:
        hint = "; set data.cache to keep them on disk, or a smaller text.max_tokens"
    report.lines.append(f"prompts: {len(prompts)} different ones, {size_text(needed)} {where}{hint}")


def _check_disk(config: TrainConfig, memory: MemoryEstimate, report: PreflightReport) -> None:
    needed = checkpoint_bytes(config, memory) * (config.checkpoint.keep + 1)
    folder = config.run_folder
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    report.lines.append(f"disk: {size_text(needed)} for checkpoints, {size_text(free)} free in {folder}")
    if needed > free:
        report.errors.append(f"{needed / 1e9:.1f} GB of disk are needed, {free / 1e9:.1f} free: choose run.folder")


def _check_device(config: TrainConfig, report: PreflightReport) -> None:
    if config.run.device == "cpu":
        report.lines.append(f"device: CPU{_CPU_MEMORY}")
    elif torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        report.lines.append(f"device: {torch.cuda.get_device_name(0)}, {total / 1e9:.1f} GB")
    elif config.run.device == "auto":
        report.lines.append(f"device: no GPU found on this machine, so the CPU (run.device: auto){_CPU_MEMORY}")
    else:
        report.errors.append(
            f"no GPU that torch {torch.__version__} can use, but run.device is cuda: install torch for CUDA and a "
            "driver that fits it, or set run.device: auto or cpu"
        )


def _check_packages_and_files(config: TrainConfig, report: PreflightReport) -> None:
    """Packages and files that a run would miss only after minutes of loading, and an earlier run of that name."""
    start, encoder, quantize = config.basis.start_from, config.encoder.model, config.base.quantize
    if start is not None and not start.is_file():
        report.errors.append(f"no file {start}: correct basis.start_from, or leave it out")
    elif start is not None:
        try:
            load_start(start, config)
        except LoRWeBError as error:
            report.errors.append(str(error))
    if not Path(encoder).is_dir() and not is_repository_id(encoder):
        report.errors.append(f"no folder {encoder}, and no Hugging Face id like owner/name: correct encoder.model")
    if quantize != "none" and find_spec(PACKAGES[quantize]) is None:
        report.errors.append(f"base.quantize: {quantize} needs a package: run `{INSTALL[quantize]}`")
    if config.tracking.wandb_project is not None and find_spec("wandb") is None:
        report.errors.append(
            "tracking.wandb_project needs a package: run `pip install wandb` and `wandb login`, or set it to null"
        )
    if config.optimizer.name == "adamw8bit" and find_spec("bitsandbytes") is None:
        plain, packed = (OPTIMIZER_BYTES[name] for name in ("adamw", "adamw8bit"))
        report.lines.append(
            f"optimizer: bitsandbytes is not installed, so plain AdamW is used, {plain:.0f} bytes per parameter "
            f"instead of {packed:.0f}: run `pip install --no-deps bitsandbytes`"
        )
    if earlier := list_checkpoints(config.run_folder / "checkpoints"):
        report.lines.append(f"{config.run_folder} has {earlier[-1].name}: add --resume latest, or change run.name")
