"""One process or many: accelerate's process group under `torchrun`, DDP and FSDP.

    torchrun --nproc-per-node 8 -m training.train --config …                       one machine
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint host:29500 -m training.train --config …

Use torchrun as the launcher: `accelerate launch --cpu` silently starts a single process (accelerate 1.15).
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
        world_size: number of processes.
        device: of this process.
        is_sharded: whether the base is sharded.
    Raises SettingsError when `cuda` is wanted and there is none, or srun starts several tasks without torchrun.
    """

    def __init__(self, device: str = "auto", *, strategy: str = "ddp") -> None:
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        if tasks.isdecimal() and int(tasks) > 1 and "RANK" not in os.environ:
            raise SettingsError(  # they would be as many runs, all in one folder
                f"srun started {tasks} tasks that do not know of each other. Start one task per machine, and the "
                "processes with torchrun: `srun --ntasks-per-node 1 torchrun --nnodes … --nproc-per-node … -m "
                "training.train …`."
            )
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
        """The device that the base is loaded to: a base that will be sharded need not fit on one GPU."""
        return torch.device("cpu") if self.is_sharded else self.device

    def wrap(self, model: TrainableKontext) -> nn.Module:
        """Return the module to train: the model itself, sharded (FSDP2), or wrapped in DDP."""
        if self.world_size == 1:
            return model
        if self.is_sharded:
            return _shard_base(model, self.device)
        from torch.nn.parallel import DistributedDataParallel

        # Frozen weights are left out of DDP's first broadcast: every process has read them itself, and quantized ones
        # cannot be broadcast.
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        buffers = [name for name, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen + buffers)
        return self._accelerator.prepare_model(model)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients over processes, where DDP has not done so in the backward pass."""
        if self.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.world_size

    def without_sync(self, module: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Return a context in which DDP exchanges no gradients, unless this is a step's last micro-batch."""
        return (
            nullcontext() if is_last or self.world_size == 1 or self.is_sharded else self._accelerator.no_sync(module)
        )

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's part of a list that all processes have."""
        return items[self.rank :: self.world_size]

    def mean(self, value: float) -> float:
        """Return the mean over all processes."""
        return float(self._reduce(torch.tensor(value, dtype=torch.float64), "mean"))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self._reduce(torch.tensor(float(flag)), "sum") > 0)

    def wait(self) -> None:
        """Wait for all other processes."""
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


def _shard_base(model: TrainableKontext, device: torch.device) -> TrainableKontext:
    """FSDP2 over the frozen weights only: each process keeps its share, blocks are gathered while they compute.

    The basis stays whole on every process, so optimizer, EMA and checkpoints are those of one process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    trained = set(model.trained_parameters())
    # Without a mesh it would use GPUs wherever there are some, although the run may be on CPUs.
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    transformer: Any = model.transformer
    for part in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, transformer):
        fully_shard(part, mesh=mesh, ignored_params=trained)
    return model
