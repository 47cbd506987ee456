"""Auxiliary tasks, noise and memory for reinforcement-learning agents in JAX."""
