"""Spaces of actions: small frozen descriptions, hashable, without arrays.

A space is an int (that many discrete actions), `Discrete`, `MultiDiscrete`, `Box`, or a (nested) dict or tuple of
them, whose parts are chosen independently of each other. A description is one leaf of a pytree.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Box", "Discrete", "MultiDiscrete", "check_space", "is_continuous", "plain"]


@dataclasses.dataclass(frozen=True)
class Discrete:
    """One choice of `n`: actions are int32 `[]`, from 0 to `n - 1`."""

    n: int

    def __post_init__(self) -> None:
        """Checks the number."""
        if not _is_count(self.n):
            raise ValueError(f"Discrete needs a whole number of actions of at least 1, got {self.n!r}")


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Several choices at once, of `ns[0]`, `ns[1]`, ...: actions are int32 `[len(ns)]`."""

    ns: tuple[int, ...]

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not (isinstance(self.ns, tuple) and self.ns and all(map(_is_count, self.ns))):
            raise ValueError(
                f"MultiDiscrete needs a tuple of whole numbers of actions of at least 1, got {self.ns!r}"
            )


@dataclasses.dataclass(frozen=True)
class Box:
    """Real numbers between bounds: actions are floating, of `shape`.

    Attributes:
      low: the lower bounds, a number for all or nested tuples (or an array) of `shape`; -inf is no bound.
      high: the upper bounds, above the lower ones; inf is no bound.
      shape: of one action; None takes that of the bounds.
      dtype: the name of a floating type.

    >>> Box(-2, 2, (1,))
    Box(low=(-2.0,), high=(2.0,), shape=(1,), dtype='float32')
    """

    low: Any
    high: Any
    shape: Any = None
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        """Checks the bounds, and keeps them as nested tuples of `shape`."""
        try:
            low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
            shape = np.broadcast_shapes(low.shape, high.shape) if self.shape is None else tuple(self.shape)
            low, high = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
            dtype = np.dtype(self.dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Box needs bounds of one shape and the name of a type, got low={self.low!r}, high={self.high!r}, "
                f"shape={self.shape!r}, dtype={self.dtype!r}"
            ) from error
        if dtype.kind != "f":
            raise ValueError(f"Box needs a floating type, got dtype={self.dtype!r}")
        if not low.size or not np.all(low < high):  # NaN is below nothing
            raise ValueError(
                f"Box needs lower bounds below the upper ones, got low={self.low!r}, high={self.high!r}"
            )
        for name, value in (
            ("low", _nested(low)),
            ("high", _nested(high)),
            ("shape", shape),
            ("dtype", dtype.name),
        ):
            object.__setattr__(self, name, value)

    @property
    def size(self) -> int:
        """How many numbers an action has."""
        return math.prod(self.shape)


def plain(space: Any) -> Any:
    """`space` with its dicts as plain dicts, its lists as tuples, and whole numbers as `Discrete`.

    >>> plain({"arm": 3, "legs": [Discrete(2)]})
    {'arm': Discrete(n=3), 'legs': (Discrete(n=2),)}
    """
    if isinstance(space, Mapping):
        return {name: plain(part) for name, part in space.items()}
    if isinstance(space, tuple | list):
        return tuple(map(plain, space))
    return Discrete(int(space)) if _is_count(space) else space


def check_space(space: Any) -> Any:
    """`plain(space)`, if it is a space.

    Raises:
      ValueError: a part is none; the message names it.
    """
    parts = plain(space)
    for part in _parts(parts):
        if not isinstance(part, Discrete | MultiDiscrete | Box):
            raise ValueError(
                "expected a number of actions, Discrete, MultiDiscrete, Box, or a dict or tuple of them that is not "
                f"empty, got {part!r}"
            )
    return parts


def is_continuous(space: Any) -> bool:
    """Whether every part of a space is a `Box`.

    >>> is_continuous(Box(-1, 1)), is_continuous({"arm": Box(-1, 1), "legs": 2})
    (True, False)
    """
    return all(isinstance(part, Box) for part in _parts(check_space(space)))


def _parts(space: Any) -> list[Any]:
    """The leaves of a plain space; an empty dict or tuple is one, which no one takes for a space."""
    if isinstance(space, dict | tuple) and space:
        return [
            leaf for part in (space.values() if isinstance(space, dict) else space) for leaf in _parts(part)
        ]
    return [space]


def _is_count(n: Any) -> bool:
    return isinstance(n, numbers.Integral) and not isinstance(n, bool) and int(n) > 0


def _nested(x: np.ndarray) -> Any:
    return tuple(map(_nested, x)) if x.ndim else float(x)
