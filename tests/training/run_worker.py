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
processes = Processes("cpu")
with listen_for_signals() as stop:
    loop, state = assemble(read_config("tiny.yaml", overrides), processes, stop)
    loop.run(state)
digest = hashlib.sha256()
for tensor in state.model.trained_state().values():
    digest.update(tensor.detach().numpy().tobytes())
facts = {
    "world_size": processes.world_size,
    "wrapper": type(loop.module).__name__,
    "step": state.step,
    "losses": loop.losses,
    "weights": digest.hexdigest(),
}
Path(folder, f"rank-{processes.rank}.json").write_text(json.dumps(facts))
processes.close()
