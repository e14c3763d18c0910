"""What the tests of several processes start under torchrun: train, then note what this rank ended with.

torchrun --nproc-per-node 2 run_worker.py RESULT_FOLDER override…
"""

import hashlib
import json
import sys
from pathlib import Path

from training.config_reading import read_config
from training.distributed import Processes
from training.interruption import listen_for_signals
from training.train import assemble

folder, *overrides = sys.argv[1:]
config = read_config("tiny.yaml", overrides)
processes = Processes("cpu", strategy=config.run.strategy)
with listen_for_signals() as stop:
    loop, state = assemble(config, processes, stop)
    loop.run(state)
digest = hashlib.sha256()
for tensor in state.model.trained_state().values():
    digest.update(tensor.detach().numpy().tobytes())
facts = {
    "world_size": processes.world_size,
    "wrapper": type(loop.module).__name__,
    "step": state.step,
    "losses": loop.losses,
    "sharded_share": sum(p.to_local().numel() for p in state.model.parameters() if hasattr(p, "to_local"))
    / sum(p.numel() for p in state.model.parameters() if not p.requires_grad),
    "weights": digest.hexdigest(),
}
Path(folder, f"rank-{processes.rank}.json").write_text(json.dumps(facts))
processes.close()
