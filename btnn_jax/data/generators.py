"""Series made by a formula: what an agent or an autoencoder should find in them is known.

Pure functions of a typed key, so that `jax.vmap` over keys makes many at once; prices are float32 `[length]`, above 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

__all__ = [
    "FACTORS",
    "ornstein_uhlenbeck",
    "random_walk",
    "regime_switching",
    "sine",
    "sine_windows",
    "to_bars",
]


def sine(
    length: int,
    *,
    period: float = 256.0,
    amplitude: float = 1e-3,
    level: float = 1.1,
    phase: float | Array = 0.0,
    noise: float = 0.0,
    key: Array | None = None,
) -> Array:
    """A sine as a price, BTGym's test signal: `level + amplitude * sin(2 pi t / period + phase)`.

    Args:
        length: steps.
        period: steps of one wave.
        amplitude: amplitude of the wave, in price.
        level: the mean price.
        phase: phase of the first step, in radians.
        noise: standard deviation of what is added to each step, in price.
        key: for the noise; consumed. Needed where there is noise.

    Returns:
        float32 `[length]`.

    >>> sine(5, period=4.0, amplitude=1.0, level=2.0).round()
    Array([2., 3., 2., 1., 2.], dtype=float32)
    """
    if period <= 0 or amplitude < 0 or noise < 0 or level <= amplitude:
        raise ValueError(
            "sine needs period > 0, amplitude and noise >= 0 and a level above the amplitude, got "
            f"period={period}, amplitude={amplitude}, noise={noise}, level={level}"
        )
    if noise > 0 and key is None:
        raise ValueError("noise needs a key")
    # Whole turns are taken off first: float32 has no digits left for them in a long series.
    turns = jnp.mod(jnp.arange(length, dtype=jnp.float32), period) / period
    prices = level + amplitude * jnp.sin(2 * math.pi * turns + phase)
    if key is not None and noise > 0:
        prices += noise * jax.random.normal(key, (length,))
    return prices


def random_walk(
    key: Array, length: int, *, volatility: float = 0.01, drift: float = 0.0, start: float = 1.0
) -> Array:
    """Geometric Brownian motion: `log p[t + 1] - log p[t] ~ Normal(drift - volatility^2 / 2, volatility^2)`.

    Args:
        key: consumed.
        length: steps.
        volatility: standard deviation of a log return.
        drift: log of the expected growth per step; at 0 the price is a martingale.
        start: the first price.

    Returns:
        float32 `[length]`.
    """
    _check_positive(start=start)
    returns = drift - volatility**2 / 2 + volatility * jax.random.normal(key, (length - 1,))
    return _prices(start, returns)


def ornstein_uhlenbeck(
    key: Array, length: int, *, half_life: float = 50.0, deviation: float = 0.02, level: float = 1.0
) -> Array:
    """A price whose logarithm returns to a level, an Ornstein-Uhlenbeck process at whole steps.

    `x[t + 1] = a x[t] + deviation sqrt(1 - a^2) e[t]` with `a = 2^(-1 / half_life)`, `x = log(p / level)` and
    standard normal `e`; it starts in its stationary distribution, `x ~ Normal(0, deviation^2)`.

    Args:
        key: consumed.
        length: steps.
        half_life: steps in which half of a distance to the level is expected to be gone.
        deviation: standard deviation of the log price.
        level: the median price.

    Returns:
        float32 `[length]`.
    """
    _check_positive(half_life=half_life, level=level)
    decay = 2.0 ** (-1.0 / half_life)
    first_key, key = jax.random.split(key)
    first = deviation * jax.random.normal(first_key)
    shocks = deviation * math.sqrt(1 - decay**2) * jax.random.normal(key, (length - 1,))

    def step(x: Array, shock: Array) -> tuple[Array, Array]:
        x = decay * x + shock
        return x, x

    _, rest = jax.lax.scan(step, first, shocks)
    return level * jnp.exp(jnp.concatenate([first[None], rest]))


def regime_switching(
    key: Array,
    length: int,
    *,
    volatilities: Sequence[float] = (0.005, 0.02),
    drifts: Sequence[float] = (0.0005, -0.001),
    persistence: float = 0.99,
    start: float = 1.0,
) -> tuple[Array, Array]:
    """A random walk whose drift and volatility change with a hidden Markov chain (Hamilton 1989).

    Args:
        key: consumed.
        length: steps.
        volatilities: standard deviation of a log return in each regime.
        drifts: log of the expected growth per step in each regime.
        persistence: probability that a regime goes on; otherwise another one is drawn, all alike.
        start: the first price.

    Returns:
        Prices, float32 `[length]`, and the regime that each step of the price was made in, int32 `[length]`;
        the first step is counted to the regime after it.
    """
    regimes = len(volatilities)
    if regimes < 2 or len(drifts) != regimes or not 0 <= persistence <= 1:
        raise ValueError(
            "regime_switching needs as many drifts as volatilities, at least 2, and a persistence in [0, 1], got "
            f"{len(drifts)} drifts, {regimes} volatilities and persistence={persistence}"
        )
    _check_positive(start=start)
    first_key, stay_key, next_key, shock_key = jax.random.split(key, 4)
    stays = jax.random.bernoulli(stay_key, persistence, (length - 2,))
    others = jax.random.randint(next_key, (length - 2,), 1, regimes)  # how far round to the next regime

    def step(regime: Array, change: Array) -> tuple[Array, Array]:
        regime = (regime + change) % regimes
        return regime, regime

    first = jax.random.randint(first_key, (), 0, regimes)
    _, rest = jax.lax.scan(step, first, jnp.where(stays, 0, others))
    regime = jnp.concatenate([first[None], rest])  # of each return
    volatility = jnp.asarray(volatilities, jnp.float32)[regime]
    drift = jnp.asarray(drifts, jnp.float32)[regime]
    returns = drift - volatility**2 / 2 + volatility * jax.random.normal(shock_key, (length - 1,))
    return _prices(start, returns), jnp.concatenate([first[None], regime])


def to_bars(prices: Array, steps: int) -> Array:
    """Bars of a finer price: open, high, low and close of every `steps` of its steps.

    A bar opens where the one before it closed, so that there are no gaps, as in markets that never close.

    Args:
        prices: `[length]`, with `length = 1 + bars * steps`.
        steps: steps of the price within a bar.

    Returns:
        `[bars, 4]`.

    >>> to_bars(jnp.array([1.0, 3.0, 2.0, 0.5, 1.0]), 2)
    Array([[1. , 3. , 1. , 2. ],
           [2. , 2. , 0.5, 1. ]], dtype=float32)
    """
    if prices.ndim != 1 or steps < 1 or prices.size <= steps or (prices.size - 1) % steps:
        raise ValueError(f"prices must be [1 + bars * {steps}] with bars >= 1, got {prices.shape}")
    after = prices[1:].reshape(-1, steps)
    path = jnp.concatenate([jnp.concatenate([prices[:1], after[:-1, -1]])[:, None], after], axis=1)
    return jnp.stack([path[:, 0], path.max(1), path.min(1), path[:, -1]], axis=1)


FACTORS = ("phase", "period", "level")
"""The columns of the factors of `sine_windows`."""


def sine_windows(
    key: Array,
    num: int,
    length: int,
    *,
    phases: tuple[float, float] = (0.0, math.pi),
    periods: tuple[float, float] = (0.5, 1.0),
    levels: tuple[float, float] = (-1.0, 1.0),
    noise: float = 0.0,
) -> tuple[Array, Array]:
    """Windows with known, independent factors of variation, for measures of disentanglement.

    `x[n, t] = level + sin(2 pi t / (period * length) + phase) + noise e`, each factor uniform in its range. Half a turn
    of phases, so that the factor is a line and not a circle.

    Args:
        key: consumed.
        num: windows.
        length: steps of a window.
        phases: range of the phase of the first step, in radians.
        periods: range of the steps of one wave, as a fraction of `length`.
        levels: range of the mean.
        noise: standard deviation of what is added to each step.

    Returns:
        Windows, float32 `[num, length, 1, 1]`, and `FACTORS` as they were drawn, float32 `[num, 3]`, periods in steps.
    """
    if min(periods) <= 0:
        raise ValueError(f"periods must be above 0, got {periods}")
    factor_key, noise_key = jax.random.split(key)
    low, high = jnp.asarray([phases, [length * x for x in periods], levels], jnp.float32).T
    factors = jax.random.uniform(factor_key, (num, len(FACTORS)), minval=low[None], maxval=high[None])
    phase, period, level = (factors[:, i, None] for i in range(len(FACTORS)))
    steps = jnp.arange(length, dtype=jnp.float32)[None]
    windows = level + jnp.sin(2 * math.pi * steps / period + phase)
    windows += noise * jax.random.normal(noise_key, windows.shape)
    return windows[..., None, None], factors


def _prices(start: float, returns: Array) -> Array:
    return start * jnp.exp(jnp.concatenate([jnp.zeros(1), jnp.cumsum(returns)]))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
