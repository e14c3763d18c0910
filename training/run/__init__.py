"""A training run: putting it together, the loop, data parallelism, validation, checkpoints, logging."""
