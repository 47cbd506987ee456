"""Causal features of prices: what is known of row `t` is made of rows `0..t` alone.

Statistics are computed over each window in float64, not as differences of running sums, which lose their digits
after a jump of the price. Where fewer rows than a period have gone by, the rows so far are the window: features have as
many rows as the prices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["PERIODS", "features", "momentum", "moving_average", "volatility", "z_score"]

PERIODS = (1, 4, 16, 64)
"""Rows that `features` looks back, by default."""

_CHUNK = 2**20  # numbers of the windows that are computed at once


def momentum(prices: np.ndarray, period: int) -> np.ndarray:
    """Log return over the last `period` rows, `log(p[t] / p[t - period])`.

    Args:
        prices: `[T, columns]`, above 0.
        period: rows to look back; the first row stands for what is before it.

    Returns:
        `[T, columns]`.

    >>> momentum(np.exp([[0.0], [1.0], [3.0]]), 2)
    array([[0.],
           [1.],
           [3.]])
    """
    logs = _logs(prices, period)
    return logs - logs[np.maximum(np.arange(len(logs)) - period, 0)]


def moving_average(prices: np.ndarray, period: int) -> np.ndarray:
    """Mean of the last `period` rows, the present one among them.

    Args:
        prices: `[T, columns]`, above 0.
        period: rows; of as many as there are at the start.

    Returns:
        `[T, columns]`.

    >>> moving_average(np.array([[1.0], [2.0], [4.0]]), 2).ravel()
    array([1. , 1.5, 3. ])
    """
    _check(prices, period)
    return _over_windows(_mean, prices, period)


def z_score(prices: np.ndarray, period: int) -> np.ndarray:
    """`(x[t] - mean) / deviation` of the log prices `x` over the last `period` rows, at most `sqrt(period - 1)`.

    Args:
        prices: `[T, columns]`, above 0.
        period: rows, at least 2; of as many as there are at the start. 0 where the price has not moved.

    Returns:
        `[T, columns]`.

    >>> z_score(np.exp([[0.0], [1.0], [1.0]]), 2).ravel()
    array([0., 1., 0.])
    """
    if period < 2:
        raise ValueError(f"the period of a z-score must be at least 2 rows, got {period}")
    logs = _logs(prices, period)
    return _over_windows(_standard_score, logs, period)


def volatility(prices: np.ndarray, period: int) -> np.ndarray:
    """Root mean square of the log returns of single rows over the last `period` rows.

    Args:
        prices: `[T, columns]`, above 0.
        period: rows; of as many as there are at the start. The first row's return is 0.

    Returns:
        `[T, columns]`.
    """
    _check(prices, period)
    return np.sqrt(_over_windows(_mean, momentum(prices, 1) ** 2, period))


def features(prices: np.ndarray, periods: Sequence[int] = PERIODS) -> np.ndarray:
    """Features of prices without units. Nothing is fitted, so nothing can leak from later rows.

    For each column, for each period `n`: the momentum over `n` rows in units of `sqrt(n)` volatilities, the volatility
    being that of the longest period; for each period above 1: the z-score.

    Args:
        prices: `[T, columns]`, above 0.
        periods: rows to look back, at least 1.

    Returns:
        float32 `[T, columns * (periods + periods above 1)]`, column by column: its momenta, then its z-scores.

    >>> features(np.exp(np.sin(np.arange(9.0)))[:, None], (1, 4)).shape
    (9, 3)
    """
    if not periods or min(periods) < 1:
        raise ValueError(f"features need periods of at least 1 row, got {tuple(periods)}")
    noise = volatility(prices, max(periods))
    parts = [_ratio(momentum(prices, n), np.sqrt(n) * noise) for n in periods]
    parts += [z_score(prices, n) for n in periods if n > 1]
    return np.stack(parts, axis=-1).reshape(len(prices), -1).astype(np.float32)


def _over_windows(
    statistic: Callable[[np.ndarray], np.ndarray], values: np.ndarray, period: int
) -> np.ndarray:
    """`statistic` of the last `period` rows of `values`, `[T, columns]`, at every row; it reduces the last axis."""
    values = np.asarray(values, np.float64)
    period = min(period, len(values))
    rows = [statistic(values[: end + 1].T) for end in range(period - 1)]
    windows = np.lib.stride_tricks.sliding_window_view(
        values, period, axis=0
    )  # [T - period + 1, columns, period]
    step = max(1, _CHUNK // (period * values.shape[1]))
    parts = [statistic(windows[start : start + step]) for start in range(0, len(windows), step)]
    return np.concatenate([*(row[None] for row in rows), *parts])


def _mean(windows: np.ndarray) -> np.ndarray:
    last = windows[..., -1]  # relative to it, the mean of a constant is that constant
    return last + (windows - last[..., None]).mean(axis=-1)


def _standard_score(windows: np.ndarray) -> np.ndarray:
    """How many deviations the last element is above the mean of its window."""
    centred = windows - windows.mean(axis=-1, keepdims=True)
    return _ratio(centred[..., -1], np.sqrt(np.square(centred).mean(axis=-1)))


def _ratio(values: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """`values / deviation` of log prices, 0 where the deviation is only what rounding makes of a price that stands."""
    moved = deviation > 1e-9
    return np.where(moved, values / np.where(moved, deviation, 1.0), 0.0)


def _logs(prices: np.ndarray, period: int) -> np.ndarray:
    _check(prices, period)
    return np.log(prices)


def _check(prices: np.ndarray, period: int) -> None:
    if prices.ndim != 2 or not len(prices):
        raise ValueError(f"prices must be [T, columns] with T >= 1, got shape {prices.shape}")
    if period < 1:
        raise ValueError(f"a period must be at least 1 row, got {period}")
    if not np.all(prices > 0):
        raise ValueError(f"prices must be above 0, got {prices.min()}")
