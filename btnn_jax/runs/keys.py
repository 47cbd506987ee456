"""Seeds of a run and its random keys: one stream for each purpose, so that equal seeds do not give equal draws."""

from __future__ import annotations

import numbers
import zlib
from typing import Any

import jax
from jax.typing import ArrayLike

from btnn_jax.runs.folder import RunError

__all__ = ["check_seeds", "key_of"]


def check_seeds(seed: Any, seeds: Any = 1) -> None:
    """Checks that `seed` to `seed + seeds - 1` are whole numbers of 32 bits.

    Raises:
      RunError: they are not.
    """
    for name, value, least in (("seed", seed, 0), ("seeds", seeds, 1)):
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
            raise RunError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if seed + seeds > 2**32:
        got = f"{seed} to {seed + seeds - 1}" if seeds > 1 else str(seed)
        raise RunError(f"seeds must be below {2**32}, got {got}")


def key_of(seed: ArrayLike, purpose: str) -> jax.Array:
    """The key that `seed` gives for a purpose, such as `"evaluation"`.

    Training starts from `jax.random.key(seed)` itself, so a purpose of its own keeps an evaluation with the same seed
    from playing the episodes that training began with.

    >>> bool((key_of(0, "evaluation") == jax.random.key(0)).all())
    False
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
