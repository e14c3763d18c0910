"""What the tests of several processes start under torchrun: train, then note what this rank ended with.

torchrun --nproc-per-node 2 run_worker.py RESULT_FOLDER override…

`{rank}` in an override becomes the number of the process. With OUT_OF_MEMORY_ABOVE=n the second process runs out of
memory whenever it computes more than n samples at once, from step OUT_OF_MEMORY_FROM on; RESUME is what
`--resume` takes; GRADIENT_CHECKPOINTING switches it on.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from training.config.reading import read_config
from training.run import precompute
from training.run.distributed import Processes
from training.run.signals import listen_for_signals
from training.train import assemble

folder, *overrides = sys.argv[1:]
config = read_config("tiny.yaml", [override.replace("{rank}", os.environ["RANK"]) for override in overrides])
processes = Processes("cpu", strategy=config.run.strategy)
encoded = []
encode = precompute.encode_captions
precompute.encode_captions = lambda captions, *args, **kwargs: (
    encoded.extend(captions) or encode(captions, *args, **kwargs)
)
with listen_for_signals() as stop:
    loop, state = assemble(config, processes, stop, resume=os.environ.get("RESUME"))
    if "GRADIENT_CHECKPOINTING" in os.environ:  # as on GPUs
        state.model.transformer.enable_gradient_checkpointing()
    limit, first = (int(os.environ.get(f"OUT_OF_MEMORY_{name}", 0)) for name in ("ABOVE", "FROM"))
    if limit and processes.rank == 1:

        def run_out(gradient: torch.Tensor) -> None:
            if len(gradient) > limit and state.step >= first:
                raise torch.OutOfMemoryError("tried to allocate more than there is")

        def watch(_block: torch.nn.Module, _args: tuple[()], inputs: dict[str, torch.Tensor]) -> None:
            inputs["hidden_states"].register_hook(run_out)

        # In the middle of the backward pass, when the parameters behind it have their gradients already.
        state.model.transformer.single_transformer_blocks[0].register_forward_pre_hook(watch, with_kwargs=True)
    loop.run(state)
digest = hashlib.sha256()
for tensor in state.model.trained_state().values():
    digest.update(tensor.detach().float().numpy().tobytes())
facts = {
    "world_size": processes.world_size,
    "wrapper": type(loop.module).__name__,
    "step": state.step,
    "micro_batch_size": state.micro_batch_size,
    "losses": loop.losses,
    "encoded": encoded,
    "sharded_share": sum(p.to_local().numel() for p in state.model.parameters() if hasattr(p, "to_local"))
    / sum(p.numel() for p in state.model.parameters() if not p.requires_grad),
    "weights": digest.hexdigest(),
}
Path(folder, f"rank-{processes.rank}.json").write_text(json.dumps(facts))
processes.close()
