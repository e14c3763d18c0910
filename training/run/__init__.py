"""A training run: session, loop, data parallelism, validation, checkpoints, logging."""
