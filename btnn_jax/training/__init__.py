"""Pure training: configurations, rollouts, objectives and train steps; no files, no printing."""
