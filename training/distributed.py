"""One process or many: accelerate's process group under `torchrun`, and the few questions the loop asks of it.

    torchrun --nproc-per-node 8 -m training.train --config …                       one machine
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint host:29500 -m training.train --config …

`accelerate launch --cpu` starts one process without saying so (accelerate 1.15): torchrun is the one launcher.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .trainable import TrainableKontext

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """The processes of a run.

    Args:
        device: `auto`, `cpu` or `cuda`.
    Attributes:
        rank: of this process, from 0.
        world_size: how many there are.
        device: of this process.
    """

    def __init__(self, device: str = "auto") -> None:
        from accelerate import Accelerator

        self._accelerator: Accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def wrap(self, model: TrainableKontext) -> nn.Module:
        """Return the module whose forward trains: data-parallel when there are several processes.

        Frozen weights are left out of DDP's first broadcast: every process has read them itself, and quantised ones
        cannot be broadcast.
        """
        if self.world_size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        buffers = [name for name, _ in model.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen + buffers)
        return self._accelerator.prepare_model(model)

    def without_sync(self, module: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged in the last micro-batch of a step only."""
        return nullcontext() if is_last or self.world_size == 1 else self._accelerator.no_sync(module)

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
