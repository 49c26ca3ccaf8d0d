"""Training: the loop, its configuration, objective, moving average, checkpoints and records."""
