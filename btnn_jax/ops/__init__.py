"""Computations on arrays with gradients of their own, written for speed: plain functions without parameters."""
