"""Random keys of a run: one stream for each purpose, so that equal seeds do not give equal draws."""

from __future__ import annotations

import zlib

import jax
from jax.typing import ArrayLike

__all__ = ["key_of"]


def key_of(seed: ArrayLike, purpose: str) -> jax.Array:
    """The key that `seed` gives for a purpose, such as `"evaluation"`.

    Training starts from `jax.random.key(seed)` itself, so a purpose of its own keeps an evaluation with the same seed
    from playing the episodes that training began with.

    >>> bool((key_of(0, "evaluation") == jax.random.key(0)).all())
    False
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
