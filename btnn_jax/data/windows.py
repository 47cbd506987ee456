"""Splits in time, windows and returns: all that turns a series into examples without a look ahead."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

__all__ = ["Scale", "fit_scale", "log_returns", "split", "windows"]


def split(length: int, fractions: Sequence[float] = (0.7, 0.15, 0.15), *, embargo: int = 0) -> list[slice]:
    """Cuts time into parts that follow each other, such as training, validation and test.

    Args:
        length: rows in all.
        fractions: shares of the rows that the embargoes leave, one for each part; they add up to 1.
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


def log_returns(prices: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """`log(p[t + 1] / r[t])`: row `t` is known at time `t + 1`.

    Args:
        prices: `p`, `[T, columns]`, above 0.
        reference: `r`, `[T, columns]` or `[T, 1]`; None for the prices themselves. The closes of bars make all that
            a bar did since the last one closed.

    Returns:
        `[T - 1, columns]`.

    >>> log_returns(np.exp([[0.0], [1.0], [-1.0]]))
    array([[ 1.],
           [-2.]])
    """
    before = prices if reference is None else reference
    return np.asarray(np.log(prices[1:]) - np.log(before[:-1]))


class Scale(NamedTuple):
    """An affine map of values to mean 0 and deviation 1, and its inverse.

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


def fit_scale(values: np.ndarray, *, together: bool = False) -> Scale:
    """The scale of each column, the last axis; fit it on the training part alone.

    Args:
        values: `[..., columns]`.
        together: one deviation for all columns, the root mean square of theirs, so that they stay in proportion.
    """
    axes = tuple(range(values.ndim - 1))
    constant = values.max(axis=axes) == values.min(axis=axes)  # whose computed variance is only rounding
    # In float64, because NumPy adds up the rows of float32 one by one and loses a percent over a million of them.
    variance = np.where(constant, 0.0, values.var(axis=axes, dtype=np.float64))
    if together:
        variance = np.full_like(variance, variance.mean())
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
    dtype = np.result_type(values.dtype, np.float32)
    return Scale(values.mean(axis=axes, dtype=np.float64).astype(dtype), deviation.astype(dtype))
