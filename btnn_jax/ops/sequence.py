"""What computations over time-major sequences share: checks of their arguments, and masks of their lengths."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

__all__ = ["check_sequence", "within"]


def check_sequence(
    x: Array, resets: Array | None, lengths: Array | None, **shapes: tuple[Array, tuple]
) -> None:
    """Raises unless the arguments of a computation over time fit each other.

    Args:
      x: inputs, floating `[T, B, D]`.
      resets: None, or bool `[T, B]`.
      lengths: None, or integers `[B]`.
      **shapes: further arguments by name, each with the shape that it must have.

    Raises:
      ValueError: an argument has another shape or type; the message names it.
    """
    if x.ndim != 3:
        raise ValueError(f"x must be time-major [T, B, D], got shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating, got {x.dtype}")
    T, B, _ = x.shape
    expected: dict[str, tuple[Array | None, tuple]] = {
        "resets": (resets, (T, B)),
        "lengths": (lengths, (B,)),
        **shapes,
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} for x {x.shape}, got {array.shape}")
    if resets is not None and resets.dtype != jnp.bool_:
        raise ValueError(f"resets must be bool, got {resets.dtype}")
    if lengths is not None and not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")


def within(lengths: Array, T: int) -> Array:
    """Bool `[T, B]`: step t comes before the end of a sequence of `lengths[b]` steps."""
    return jnp.arange(T)[:, None] < lengths.astype(jnp.int32)[None]
