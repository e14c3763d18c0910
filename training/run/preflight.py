"""`--check`: would this run work? Config, data, disk space and a memory estimate, without loading weights.

What takes how much is counted in `memory`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch

from lorweb_core.encoder import read_encoder_size
from lorweb_core.errors import LoRWeBError
from lorweb_core.settings import KONTEXT_ID, QUERY_MODES

from ..base.quantize import INSTALL, PACKAGES
from ..base.single_file import check_header
from ..base.source import FULL_SIZE_CONFIG, PartsHere, find_parts_here, is_repository_id, read_transformer_config
from ..base.text import has_text_encoders
from ..config.schema import TrainConfig
from ..data.index import PairIndex, PairRecord
from ..data.pairing import all_captions, missing_captions_line
from ..data.splits import held_out_tasks
from .checkpoints import list_checkpoints
from .data import ValidationOutlook, divided_pairs, validation_outlook
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


@dataclass
class PreflightReport:
    """Lines for a person, and whether anything stands in the way; `prompts` are those of the data."""

    lines: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    prompts: set[str] = field(default_factory=set)

    @property
    def is_good(self) -> bool:
        """Whether the run can start."""
        return not self.mistakes

    def text(self) -> str:
        """Return everything, mistakes last."""
        verdict = "ready to train" if self.is_good else f"{len(self.mistakes)} thing(s) to correct:"
        return "\n".join([*self.lines, verdict, *(f"  - {mistake}" for mistake in self.mistakes)])


def preflight_report(config: TrainConfig) -> PreflightReport:
    """Return what `--check` prints; nothing is downloaded."""
    report = PreflightReport()
    for part in (_check_data, _check_base, _check_device, _check_companions):
        try:
            part(config, report)
        except LoRWeBError as error:
            report.mistakes.append(str(error))
    return report


def _check_data(config: TrainConfig, report: PreflightReport) -> None:
    index = PairIndex.read_index(config.data.index)
    usable, problems = divided_pairs(config, index)
    training = sum(record.split == "train" for record in usable)
    tasks, unseen = {record.task for record in usable}, held_out_tasks(usable)
    report.lines.append(
        f"data: {len(usable)} of {len(index.records)} pairs usable by their headers, {training} to train on, "
        f"{len(tasks)} tasks of which {len(unseen)} held out, {len(problems)} remarks "
        "(`training.prepare check` lists them, decodes every file and may find more)"
    )
    _tell_missing_captions(config, usable, report)
    _tell_validation(validation_outlook(config, usable), report)
    report.prompts = set(all_captions(usable, config.text.caption_source))


def _tell_missing_captions(config: TrainConfig, records: Sequence[PairRecord], report: PreflightReport) -> None:
    trained_on = [record for record in records if record.split == "train"]
    if line := missing_captions_line(trained_on, config.text.caption_source):
        report.lines.append(line)


def _tell_validation(outlook: ValidationOutlook, report: PreflightReport) -> None:
    report.lines.append(outlook.line)
    if outlook.warning:
        report.lines.append(f"remark: {outlook.warning}")


def _check_base(config: TrainConfig, report: PreflightReport) -> None:
    parts = find_parts_here(config.base.model, config.base.components)
    if parts.transformer is not None and parts.transformer.is_file():
        check_header(parts.transformer)
    _tell_download(parts, report)
    if parts.components is not None and not (parts.components / "vae").is_dir():
        report.mistakes.append(f"no vae/ in {parts.components}: set base.components to a diffusers folder that has it")
    transformer_config = read_transformer_config(parts)
    _check_captions(config, parts.components, transformer_config["joint_attention_dim"], report)
    width, weights = _encoder_size(config, report)
    memory = estimate_memory(config, transformer_config, QUERY_MODES[config.basis.query_mode] * width, weights)
    amounts = ", ".join(f"{name} {size_text(value)}" for name, value in vars(memory).items())
    report.lines.append(f"memory per device, computed: {size_text(memory.total)} ({amounts})")
    _check_device_memory(config, memory, report)
    _check_disk(config, memory, report)


def _encoder_size(config: TrainConfig, report: PreflightReport) -> tuple[int, int]:
    """Embedding width and number of weights of the image encoder."""
    try:
        return read_encoder_size(config.encoder.model)
    except LoRWeBError as error:
        if Path(config.encoder.model).is_dir():
            report.mistakes.append(str(error))
        elif is_repository_id(config.encoder.model):
            report.lines.append(
                f"encoder: {config.encoder.model} is not on this machine yet; the first run downloads it, and it is "
                "counted as CLIP ViT-L/14 here, whose embeddings are 768 wide"
            )
    return CLIP_SIZE


def _tell_download(parts: PartsHere, report: PreflightReport) -> None:
    """What is not here yet is no mistake: the first run fetches it."""
    what = []
    if parts.transformer is None:
        numbers = sum(parameter.numel() for parameter in meta_transformer(FULL_SIZE_CONFIG).parameters())
        what.append(f"about {numbers * ITEM_BYTES['bfloat16'] / 1e9:.0f} GB for a transformer of the published sizes")
    if parts.components is None:
        what.append("VAE and text encoders")
    for name in parts.repositories:
        condition = "which" if name == KONTEXT_ID else "which, if it is gated,"
        report.lines.append(
            f"base: {name} is not on this machine yet; the first run downloads it ({', then '.join(what)}), "
            f"{condition} needs the license accepted at https://huggingface.co/{name} and `hf auth login`"
        )


def _check_captions(config: TrainConfig, components: Path | None, embedding_dim: int, report: PreflightReport) -> None:
    """Say what the prompts cost, and whether anything can encode them; a repository is taken to bring encoders."""
    prompts = report.prompts
    if components is not None and not has_text_encoders(components):
        if any(prompts):
            report.mistakes.append(
                f"{len(prompts)} prompts, but no text encoders in {components}: set text.caption_source: none, "
                "or base.components to a folder that has them"
            )
        return
    needed = len(prompts) * config.text.max_tokens * embedding_dim * ITEM_BYTES[config.base.dtype]
    where = "in ordinary memory of every process" if config.data.cache is None else f"on disk in {config.data.cache}"
    hint = ""
    if config.data.cache is None and needed > _MUCH_MEMORY_BYTES:
        hint = "; set data.cache to keep them on disk, or a smaller text.max_tokens"
    report.lines.append(f"prompts: {len(prompts)} different ones, {size_text(needed)} {where}{hint}")


def _check_companions(config: TrainConfig, report: PreflightReport) -> None:
    """Files and packages that are opened late, and an earlier run of that name."""
    start, encoder, quantize = config.basis.start_from, config.encoder.model, config.base.quantize
    if start is not None:
        _check_start(config, start, report)
    if not Path(encoder).is_dir() and not is_repository_id(encoder):
        report.mistakes.append(f"no folder {encoder}, and no Hugging Face id like owner/name: correct encoder.model")
    if quantize != "none" and find_spec(PACKAGES[quantize]) is None:
        report.mistakes.append(f"base.quantize: {quantize} needs a package: run `{INSTALL[quantize]}`")
    _check_packages(config, report)
    earlier = list_checkpoints(config.run_folder / "checkpoints")
    if earlier:
        report.lines.append(f"{config.run_folder} has {earlier[-1].name}: add --resume latest, or change run.name")


def _check_start(config: TrainConfig, start: Path, report: PreflightReport) -> None:
    if not start.is_file():
        report.mistakes.append(f"no file {start}: correct basis.start_from, or leave it out")
        return
    try:
        load_start(start, config)
    except LoRWeBError as error:
        report.mistakes.append(str(error))


def _check_packages(config: TrainConfig, report: PreflightReport) -> None:
    """Optional packages that a run would miss only after the base is loaded."""
    if config.tracking.wandb_project is not None and find_spec("wandb") is None:
        report.mistakes.append(
            "tracking.wandb_project needs a package: run `pip install wandb` and `wandb login`, or set it to null"
        )
    if config.optimizer.name == "adamw8bit" and find_spec("bitsandbytes") is None:
        plain, packed = (OPTIMIZER_BYTES[name] for name in ("adamw", "adamw8bit"))
        report.lines.append(
            f"optimizer: bitsandbytes is not installed, so plain AdamW is used, {plain:.0f} bytes per parameter "
            f"instead of {packed:.0f}: run `pip install --no-deps bitsandbytes`"
        )


def _check_device(config: TrainConfig, report: PreflightReport) -> None:
    if config.run.device == "cpu":
        report.lines.append("device: CPU")
    elif torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        report.lines.append(f"device: {torch.cuda.get_device_name(0)}, {total / 1e9:.1f} GB")
    elif config.run.device == "auto":
        report.lines.append("device: no GPU found on this machine, so the CPU (run.device: auto)")
    else:
        report.mistakes.append(
            f"no GPU that torch {torch.__version__} can use, but run.device is cuda: install torch for CUDA and a "
            "driver that fits it, or set run.device: auto or cpu"
        )


def _check_device_memory(config: TrainConfig, memory: MemoryEstimate, report: PreflightReport) -> None:
    if config.run.device == "cpu" or not torch.cuda.is_available():
        return
    total = torch.cuda.get_device_properties(0).total_memory
    if memory.total > total:
        report.mistakes.append(
            f"about {memory.total / 1e9:.1f} GB are needed, the GPU has {total / 1e9:.1f}: lower run.micro_batch_size, "
            "set base.quantize: int8 or nf4, optimizer.name: adamw8bit, or a smaller basis"
        )


def _check_disk(config: TrainConfig, memory: MemoryEstimate, report: PreflightReport) -> None:
    needed = checkpoint_bytes(config, memory) * (config.checkpoint.keep + 1)
    folder = config.run_folder
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    report.lines.append(f"disk: {size_text(needed)} for checkpoints, {size_text(free)} free in {folder}")
    if needed > free:
        report.mistakes.append(f"{needed / 1e9:.1f} GB of disk are needed, {free / 1e9:.1f} free: choose run.folder")
