"""Training: rollout, train step, checkpoints and metrics."""
