"""How well an account was traded: returns, risks and trades of curves of equity.

Pure functions over a last axis of time; `N...` stands for any leading axes (episodes, seeds). What they share:

- Row t is the account at the end of step t: `equity[t]` is what it is worth, `position[t]` is what was held during the
  step that led there from `equity[t - 1]`, as a share of the equity or simply as -1 (short), 0 (flat), 1 (long), and
  `traded[t]` what was bought and sold in it, as a share of the equity: prices change shares too, without a trade. What
  an order costs is paid in the step that it begins. Before row 0 nothing is held.
- Returns are simple ones, `r[t] = equity[t] / equity[t - 1] - 1` for t in [1, T), and 0 after a ruin (`equity <= 0`).
- `where`, bool `[N..., T]`: True includes a row, for curves that ended early. A row left out is one in which nothing
  happens: equity and position stay as they were, and it is not counted.
- Nothing to average and nothing to divide by give 0, never NaN. Results are float32, counts int32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

__all__ = [
    "Interval",
    "Performance",
    "bootstrap_interval",
    "closed_trades",
    "drawdown",
    "exposure",
    "hit_rate",
    "max_drawdown",
    "num_trades",
    "sharpe_ratio",
    "sortino_ratio",
    "summary",
    "total_return",
    "turnover",
]

_RESOLUTION = 2.0**-23  # of an equity in float32


class Performance(NamedTuple):
    """The measures that `summary` returns; each `[N...]`, float32 but for the count."""

    total_return: Array  # 0.1 is a gain of 10 %
    sharpe_ratio: Array  # per year
    sortino_ratio: Array  # per year
    max_drawdown: Array  # 0.1 is a loss of 10 % from a peak
    turnover: Array  # share of the equity that is traded, per step
    exposure: Array  # mean absolute position
    num_trades: Array  # int32, trades opened
    hit_rate: Array  # share of closed trades with a profit


class Interval(NamedTuple):
    """A statistic and how far it can be trusted; each of the statistic's shape."""

    estimate: Array  # of the values themselves
    low: Array
    high: Array


def summary(
    equity: Array,
    position: Array,
    traded: Array,
    *,
    periods_per_year: ArrayLike,
    where: Array | None = None,
) -> Performance:
    """Everything this module knows of an account.

    Args:
      equity: `[N..., T]`.
      position: `[N..., T]`.
      traded: `[N..., T]`.
      periods_per_year: steps in a year.
      where: bool `[N..., T]`, True = include.

    Returns:
      A `Performance`, each field `[N...]`.

    >>> equity, position, traded = jnp.array([[100.0, 101.0, 99.0, 99.0], [0, 1, 1, 0], [0, 1, 0, 1]])
    >>> result = summary(equity, position, traded, periods_per_year=252)
    >>> int(result.num_trades), round(float(result.total_return), 3), round(float(result.max_drawdown), 4)
    (1, -0.01, 0.0198)
    """
    return Performance(
        total_return=total_return(equity, where=where),
        sharpe_ratio=sharpe_ratio(equity, periods_per_year, where=where),
        sortino_ratio=sortino_ratio(equity, periods_per_year, where=where),
        max_drawdown=max_drawdown(equity, where=where),
        turnover=turnover(traded, where=where),
        exposure=exposure(position, where=where),
        num_trades=num_trades(position, where=where),
        hit_rate=hit_rate(equity, position, where=where),
    )


def total_return(equity: Array, *, where: Array | None = None) -> Array:
    """Total return from the first row to the last, `equity[T - 1] / equity[0] - 1`.

    Args:
      equity: `[N..., T]`.
      where: bool `[N..., T]`, True = include.

    Returns:
      float32 `[N...]`.

    >>> total_return(jnp.array([[100.0, 90.0, 125.0], [100.0, 90.0, 80.0]])).round(3)
    Array([ 0.25, -0.2 ], dtype=float32)
    """
    equity, included = _rows(equity, where)
    held = _held(equity, included)
    return _ratio(held[..., -1] - held[..., 0], held[..., 0])


def sharpe_ratio(equity: Array, periods_per_year: ArrayLike, *, where: Array | None = None) -> Array:
    """Mean over standard deviation of the returns, per year.

        sqrt(periods_per_year) * mean(r) / std(r)

    With the sample's deviation (divisor n - 1) and no risk-free rate. Sharpe (1994), "The Sharpe Ratio". Deviations
    below what float32 resolves of an equity (1.2e-7) are rounding and count as none.

    Args:
      equity: `[N..., T]`.
      periods_per_year: steps in a year, such as 252 for days of a stock exchange.
      where: bool `[N..., T]`, True = include.

    Returns:
      float32 `[N...]`; 0 where returns do not vary.
    """
    returns, included = _returns(equity, where)
    count = _count(included)
    mean = _ratio(jnp.sum(returns, axis=-1), count)
    spread = jnp.where(included, returns - mean[..., None], 0.0)
    deviation = jnp.sqrt(_ratio(jnp.sum(jnp.square(spread), axis=-1), count - 1))
    return _per_year(mean, deviation, periods_per_year)


def sortino_ratio(equity: Array, periods_per_year: ArrayLike, *, where: Array | None = None) -> Array:
    """Mean of the returns over their downside deviation, per year.

        sqrt(periods_per_year) * mean(r) / sqrt(mean(min(r, 0)^2))

    The target is 0 and the deviation's mean is over all steps, gains counting as 0. Sortino and Price (1994),
    "Performance Measurement in a Downside Risk Framework".

    Args:
      equity: `[N..., T]`.
      periods_per_year: steps in a year.
      where: bool `[N..., T]`, True = include.

    Returns:
      float32 `[N...]`; 0 where nothing was ever lost.
    """
    returns, included = _returns(equity, where)
    count = _count(included)
    mean = _ratio(jnp.sum(returns, axis=-1), count)
    downside = jnp.sqrt(_ratio(jnp.sum(jnp.square(jnp.minimum(returns, 0.0)), axis=-1), count))
    return _per_year(mean, downside, periods_per_year)


def max_drawdown(equity: Array, *, where: Array | None = None) -> Array:
    """The largest loss from a peak, `max_t 1 - equity[t] / max_{s <= t} equity[s]`.

    Args:
      equity: `[N..., T]`.
      where: bool `[N..., T]`, True = include.

    Returns:
      float32 `[N...]`, at least 0; 1 is ruin.

    >>> max_drawdown(jnp.array([100.0, 120.0, 90.0, 150.0, 140.0]))
    Array(0.25, dtype=float32)
    """
    return jnp.max(drawdown(equity, where=where), axis=-1)


def drawdown(equity: Array, *, where: Array | None = None) -> Array:
    """How far each row lies below the highest one so far, `1 - equity[t] / max_{s <= t} equity[s]`.

    Args:
      equity: `[N..., T]`.
      where: bool `[N..., T]`, True = include.

    Returns:
      float32 `[N..., T]`, at least 0; 0 at rows left out.
    """
    equity, included = _rows(equity, where)
    held = _held(equity, included)
    peak = jax.lax.cummax(held, axis=held.ndim - 1)
    return jnp.where(included, _ratio(peak - held, peak), 0.0)


def turnover(traded: Array, *, where: Array | None = None) -> Array:
    """Mean share of the equity bought and sold per step, `mean_t traded[t]`.

    Args:
      traded: `[N..., T]`, shares of the equity.
      where: bool `[N..., T]`, True = include.

    Returns:
      float32 `[N...]`; 1 trades the whole account once in every step, a flip from long to short counts 2.

    >>> turnover(jnp.array([0.0, 1.0, 0.0, 2.0]))
    Array(0.75, dtype=float32)
    """
    return _mean(*_rows(traded, where))


def exposure(position: Array, *, where: Array | None = None) -> Array:
    """Mean absolute position; the share of time in the market where positions are -1, 0 and 1.

    Args:
      position: `[N..., T]`.
      where: bool `[N..., T]`, True = include.

    Returns:
      float32 `[N...]`.
    """
    position, included = _rows(position, where)
    return _mean(jnp.abs(position), included)


def num_trades(position: Array, *, where: Array | None = None) -> Array:
    """How many trades were opened: each lasts from leaving flat, or a flip, until flat or flipped.

    A change of size alone is no new trade. One that is still open at the end is counted.

    Args:
      position: `[N..., T]`.
      where: bool `[N..., T]`, True = include.

    Returns:
      int32 `[N...]`.

    >>> num_trades(jnp.array([0, 1, 1, -1, 0, 0, 1]))
    Array(3, dtype=int32)
    """
    opens, _ = _opens(*_rows(position, where))
    return jnp.sum(opens, axis=-1, dtype=jnp.int32)


def hit_rate(equity: Array, position: Array, *, where: Array | None = None) -> Array:
    """The share of closed trades with a profit, `won / closed` of `closed_trades`.

    Args:
      equity: `[N..., T]`.
      position: `[N..., T]`.
      where: bool `[N..., T]`, True = include.

    Returns:
      float32 `[N...]`, between 0 and 1; 0 where no trade was closed.

    Raises:
      ValueError: the shapes differ.

    >>> hit_rate(jnp.array([100.0, 103.0, 102.0, 98.0, 97.0]), jnp.array([0, 1, 1, -1, 0]))
    Array(0.5, dtype=float32)
    """
    closed, won = closed_trades(equity, position, where=where)
    return _ratio(won.astype(jnp.float32), closed.astype(jnp.float32))


def closed_trades(equity: Array, position: Array, *, where: Array | None = None) -> tuple[Array, Array]:
    """How many trades were closed, and how many of these with a profit.

    A trade's profit is the change of equity from before it opens until the next one opens, or until the end. What an
    order costs thus belongs to the trade that it opens, or, where it goes flat, to the one that it closes. The trade
    that is open at the end is not counted.

    Args:
      equity: `[N..., T]`; of one of several assets, what has been earned with it so far.
      position: `[N..., T]`.
      where: bool `[N..., T]`, True = include.

    Returns:
      `(closed, won)`, both int32 `[N...]`.

    Raises:
      ValueError: the shapes differ.
    """
    equity, included = _rows(equity, where)
    position, _ = _rows(position, where)
    if equity.shape != position.shape:
        raise ValueError(
            f"expected equity and position of one shape, got {equity.shape} and {position.shape}"
        )
    opens, side = _opens(position, included)
    held = _held(equity, included)
    # Before row 0 there is nothing: a trade that opens there is worth what the first row says.
    before = jnp.concatenate([held[..., :1], held[..., :-1]], axis=-1)
    opened = _latest(opens)
    previous = jnp.concatenate([jnp.full_like(opened[..., :1], -1), opened[..., :-1]], axis=-1)

    def worth_at(row: Array) -> Array:
        """Equity before the trade that opened at `row`."""
        return jnp.take_along_axis(before, jnp.maximum(row, 0), axis=-1)

    replaced = opens & (previous >= 0)  # the trade before is over, at the latest here
    last = opened[..., -1:]
    flat = (last >= 0) & (side[..., -1:] == 0)  # so is the last one
    closed = jnp.concatenate([replaced, flat], axis=-1)
    profit = jnp.concatenate([before - worth_at(previous), held[..., -1:] - worth_at(last)], axis=-1)
    won = closed & (profit > 0)
    return jnp.sum(closed, axis=-1, dtype=jnp.int32), jnp.sum(won, axis=-1, dtype=jnp.int32)


def bootstrap_interval(
    key: Array,
    values: Array,
    statistic: Callable[..., Array] = jnp.mean,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """A statistic of independent runs and its percentile bootstrap interval.

    The statistic is taken of `resamples` samples of `n` runs drawn with replacement; the interval has `(1 - level) / 2`
    of these outside on either side. Efron (1979), "Bootstrap Methods: Another Look at the Jackknife". With few runs it
    is too narrow: 5 leave out the truth more often than `level` says.

    Args:
      key: consumed.
      values: `[n, ...]`, a row for each independent run (seed).
      statistic: `statistic(values, axis=0)` takes `[n, ...]` to the rest of the shape; `jnp.median`, for instance.
      level: share of samples inside, between 0 and 1.
      resamples: number of samples.

    Returns:
      The statistic of `values` and the interval's ends, each `[...]`.

    Raises:
      ValueError: there are no values, or `level` or `resamples` is out of its range.
    """
    values = jnp.asarray(values, jnp.float32)
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(f"expected values [n >= 1, ...], got {values.shape}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    n = values.shape[0]

    def sample(key: Array) -> Array:
        return statistic(values[jax.random.randint(key, (n,), 0, n)], axis=0)

    samples = jax.lax.map(sample, jax.random.split(key, resamples), batch_size=min(resamples, 250))
    ends = jnp.quantile(samples, jnp.array([(1 - level) / 2, (1 + level) / 2]), axis=0)
    return Interval(statistic(values, axis=0), ends[0], ends[1])


def _rows(x: Array, where: Array | None) -> tuple[Array, Array]:
    """`x` in float32 and which of its rows count."""
    x = jnp.asarray(x, jnp.float32)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"expected [N..., T >= 1], got {x.shape}")
    if where is None:
        return x, jnp.ones(x.shape, bool)
    if where.shape != x.shape or where.dtype != jnp.bool_:
        raise ValueError(f"expected where bool {x.shape}, got {where.dtype} {where.shape}")
    return x, where


def _latest(flags: Array) -> Array:
    """The row of the latest True so far, int32 `[N..., T]`; -1 before there is one."""
    rows = jax.lax.broadcasted_iota(jnp.int32, flags.shape, flags.ndim - 1)
    return jax.lax.cummax(jnp.where(flags, rows, -1), axis=flags.ndim - 1)


def _held(x: Array, included: Array) -> Array:
    """`x` with the latest included value in place of rows left out; before there is one, the first."""
    rows = jnp.maximum(_latest(included), jnp.argmax(included, axis=-1, keepdims=True).astype(jnp.int32))
    return jnp.where(jnp.any(included, axis=-1, keepdims=True), jnp.take_along_axis(x, rows, axis=-1), 0.0)


def _before(x: Array) -> Array:
    """Each row's predecessor, 0 before the first."""
    return jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)


def _returns(equity: Array, where: Array | None) -> tuple[Array, Array]:
    """Simple returns `[N..., T - 1]`, 0 at rows left out, and which count."""
    equity, included = _rows(equity, where)
    held = _held(equity, included)
    counts = included[..., 1:] & (_latest(included)[..., :-1] >= 0)
    before = held[..., :-1]
    # The difference of neighbours is exact in float32, their ratio minus 1 is not.
    returns = jnp.where(before > 0, _ratio(held[..., 1:] - before, before), 0.0)
    return jnp.where(counts, returns, 0.0), counts


def _opens(position: Array, included: Array) -> tuple[Array, Array]:
    """Where a trade opens, bool, and the side held (-1, 0, 1); both `[N..., T]`."""
    side = jnp.sign(_held(position, included))
    return (side != 0) & (side != _before(side)), side


def _count(included: Array) -> Array:
    return jnp.sum(included, axis=-1, dtype=jnp.float32)


def _mean(x: Array, included: Array) -> Array:
    """Of the rows that count."""
    return _ratio(jnp.sum(jnp.where(included, x, 0.0), axis=-1), _count(included))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """0 where there is nothing to divide by."""
    some = denominator > 0
    return jnp.where(some, numerator / jnp.where(some, denominator, 1.0), 0.0)


def _per_year(mean: Array, deviation: Array, periods_per_year: ArrayLike) -> Array:
    ratio = jnp.where(deviation > _RESOLUTION, _ratio(mean, deviation), 0.0)
    return ratio * jnp.sqrt(jnp.asarray(periods_per_year, jnp.float32))
