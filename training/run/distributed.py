"""One process or many: accelerate's process group under `torchrun`, and the few questions the loop asks of it.

    torchrun --nproc-per-node 8 -m training.train --config …                       one machine
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint host:29500 -m training.train --config …

`accelerate launch --cpu` starts one process without saying so (accelerate 1.15): torchrun is the one launcher.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from lorweb_core.errors import SettingsError

from ..adapter.trainable import TrainableKontext
from ..console import open_device

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")


class Processes:
    """The processes of a run.

    Args:
        device: `auto`, `cpu` or `cuda`.
        strategy: `ddp`: every process has the whole base; `fsdp`: the base is sharded over them, block by block.
    Attributes:
        rank: of this process, from 0.
        world_size: how many there are.
        device: of this process.
        is_sharded: whether the base is shared out.
    Raises: SettingsError: when `cuda` is asked for and there is none, or a scheduler starts several processes that
        torchrun does not tell of each other.
    """

    def __init__(self, device: str = "auto", *, strategy: str = "ddp") -> None:
        _require_torchrun()
        is_cpu = open_device(device).type == "cpu"
        from accelerate import Accelerator, DistributedDataParallelKwargs

        # Without the view every process would hold the gradients twice: 3.3 GB more for the published basis.
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        self._accelerator: Accelerator = Accelerator(cpu=is_cpu, mixed_precision="no", kwargs_handlers=[ddp])
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self.is_sharded: bool = strategy == "fsdp" and self.world_size > 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    @property
    def loading_device(self) -> torch.device:
        """Where the base is read to: a base that will be sharded need not fit on one device."""
        return torch.device("cpu") if self.is_sharded else self.device

    def wrap(self, model: TrainableKontext) -> nn.Module:
        """Return the module whose forward trains, made for several processes where there are several."""
        if self.world_size == 1:
            return model
        return _shard_base(model, self.device) if self.is_sharded else self._data_parallel(model)

    def _data_parallel(self, model: TrainableKontext) -> nn.Module:
        """DDP; frozen weights are left out of its first broadcast.

        Every process has read them itself, and quantized ones cannot be broadcast.
        """
        from torch.nn.parallel import DistributedDataParallel

        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        buffers = [name for name, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen + buffers)
        return self._accelerator.prepare_model(model)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make gradients the mean over processes, where DDP has not done so in the backward pass."""
        if self.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.world_size

    def without_sync(self, module: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """DDP exchanges gradients in the backward pass of the micro-batch that is the last of a step, if any."""
        return (
            nullcontext() if is_last or self.world_size == 1 or self.is_sharded else self._accelerator.no_sync(module)
        )

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part of some work that all of them have before them."""
        return items[self.rank :: self.world_size]

    def mean(self, value: float) -> float:
        """Return the mean over all processes."""
        return float(self._reduce(torch.tensor(value, dtype=torch.float64), "mean"))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self._reduce(torch.tensor(float(flag)), "sum") > 0)

    def wait(self) -> None:
        """Wait until every process is here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """End the process group, if there is one."""
        self._accelerator.end_training()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _reduce(self, value: Tensor, how: str) -> Tensor:
        if self.world_size == 1:
            return value
        return self._accelerator.reduce(value.to(self.device), reduction=how).cpu()


def _require_torchrun() -> None:
    """`srun` with several tasks starts as many runs that know nothing of each other, all in one folder."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdecimal() and int(tasks) > 1 and "RANK" not in os.environ:
        raise SettingsError(
            expected="one task a machine, in which torchrun starts the processes",
            got=f"{tasks} tasks of srun without it",
            remedy="Run `srun --ntasks-per-node 1 torchrun --nnodes … --nproc-per-node … -m training.train …`.",
        )


def _shard_base(model: TrainableKontext, device: torch.device) -> TrainableKontext:
    """FSDP2 over the frozen weights alone: each process keeps its share, blocks are gathered while they compute.

    The basis stays whole on every process, so optimizer, averages and checkpoints are those of one process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    trained = set(model.trained_parameters())
    # Without a mesh it would take GPUs wherever there are some, although the run may be on CPUs.
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    transformer: Any = model.transformer
    for part in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, transformer):
        fully_shard(part, mesh=mesh, ignored_params=trained)
    return model
