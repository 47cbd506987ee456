"""Splits in time, windows and returns: all that turns a series into examples without a look ahead."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np


def split(length: int, fractions: Sequence[float] = (0.7, 0.15, 0.15), *, embargo: int = 0) -> list[slice]:
    """Cuts time into parts that follow each other, such as training, validation and test.

    Args:
        length: rows in all.
        fractions: of the rows that the embargoes leave, one for each part; they add up to 1.
        embargo: rows left out between two parts. Windows of `L` rows share no row with those of another part anyway;
            leave out what a feature looks back and a target looks ahead.

    Returns:
        One slice of rows for each part, in order of time.

    Raises:
        ValueError: the fractions are not above 0 or do not add up to 1, or a part would be empty.

    >>> split(100, (0.8, 0.2), embargo=10)
    [slice(0, 72, None), slice(82, 100, None)]
    """
    if not fractions or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be above 0 and add up to 1, got {tuple(fractions)}")
    if embargo < 0:
        raise ValueError(f"embargo must be at least 0, got {embargo}")
    rows = length - embargo * (len(fractions) - 1)
    ends = [round(rows * float(part)) for part in np.cumsum([0.0, *fractions])]
    if any(start >= end for start, end in pairwise(ends)):
        raise ValueError(
            f"{length} rows are too few for parts of {tuple(fractions)} with an embargo of {embargo} rows"
        )
    return [slice(start + i * embargo, end + i * embargo) for i, (start, end) in enumerate(pairwise(ends))]


def windows(values: np.ndarray, length: int, stride: int = 1) -> np.ndarray:
    """All windows of some length.

    Args:
        values: `[T, ...]`.
        length: rows of a window.
        stride: rows between the starts of two windows.

    Returns:
        `[N, length, ...]` with `N = 1 + (T - length) // stride`, a read-only view of `values`.

    Raises:
        ValueError: there are fewer rows than a window has.

    >>> windows(np.arange(5), 3, stride=2)
    array([[0, 1, 2],
           [2, 3, 4]])
    """
    if length < 1 or stride < 1:
        raise ValueError(f"length and stride must be at least 1, got {length} and {stride}")
    if len(values) < length:
        raise ValueError(f"{len(values)} rows are too few for a window of {length}")
    view = np.lib.stride_tricks.sliding_window_view(values, length, axis=0)
    return np.moveaxis(view[::stride], -1, 1)


def log_returns(prices: np.ndarray) -> np.ndarray:
    """`log(p[t + 1] / p[t])`, `[T - 1, ...]` for prices `[T, ...]` above 0: row `t` is known at time `t + 1`."""
    return np.diff(np.log(prices), axis=0)


class Scale(NamedTuple):
    """What takes values to mean 0 and deviation 1, and back.

    Attributes:
        mean: `[columns]`.
        deviation: `[columns]`; 1 for a column that does not vary.
    """

    mean: np.ndarray
    deviation: np.ndarray

    def apply(self, values: np.ndarray) -> np.ndarray:
        """`(values - mean) / deviation`."""
        return (values - self.mean) / self.deviation

    def invert(self, values: np.ndarray) -> np.ndarray:
        """`values * deviation + mean`."""
        return values * self.deviation + self.mean


def fit_scale(values: np.ndarray) -> Scale:
    """The scale of each column, the last axis, of `values`; fit it on the training part alone."""
    axes = tuple(range(values.ndim - 1))
    deviation = values.std(axis=axes)
    return Scale(values.mean(axis=axes), np.where(deviation > 0, deviation, 1.0))
