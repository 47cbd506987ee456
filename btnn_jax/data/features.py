"""Causal features of prices: what is known of row `t` is made of rows `0..t` alone.

Every one is a difference of cumulative sums in float64, so its cost does not grow with its period. Where fewer rows
than a period have gone by, what there is stands for the whole: features have as many rows as the prices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["PERIODS", "features", "momentum", "moving_average", "volatility", "z_score"]

PERIODS = (1, 4, 16, 64)
"""Rows that `features` looks back, by default."""


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
    return prices[0] + _means(prices - prices[0], period)


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
    logs = logs - logs[0]  # a shift by what is known from the start: fewer digits cancel below, nothing leaks
    mean = _means(logs, period)
    return _ratio(logs - mean, np.sqrt(np.maximum(_means(logs**2, period) - mean**2, 0.0)))


def volatility(prices: np.ndarray, period: int) -> np.ndarray:
    """Root mean square of the log returns of single rows over the last `period` rows.

    Args:
        prices: `[T, columns]`, above 0.
        period: rows; of as many as there are at the start. The first row's return is 0.

    Returns:
        `[T, columns]`.
    """
    _check(prices, period)
    return np.sqrt(np.maximum(_means(momentum(prices, 1) ** 2, period), 0.0))


def features(prices: np.ndarray, periods: Sequence[int] = PERIODS) -> np.ndarray:
    """What an agent sees of prices, without units: nothing is fitted, so nothing can leak from later rows.

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


def _means(values: np.ndarray, period: int) -> np.ndarray:
    """Means of the last `period` rows."""
    sums = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - period, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)[:, None]


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
