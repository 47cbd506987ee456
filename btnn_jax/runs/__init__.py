"""Runs on the host: folders, checkpoints, metrics, progress and processes around the pure train steps."""
