"""The arithmetic of a trading account: orders, their margin and their costs, and sums that lose no digits."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

__all__ = ["BrokerRules", "Fill", "compensated_add", "fill"]


class BrokerRules(NamedTuple):
    """How orders are sized and what they cost; static."""

    commission: float | Array  # fraction of the value traded
    spread: float  # between bid and ask, fraction of the price
    slippage: float  # largest, fraction of the price
    leverage: float  # how many times the equity all positions together may be worth
    unit_size: float | None  # amount of the asset in one unit; None for a fraction of the equity
    fraction: float  # of the equity, divided by the number of assets
    rebalance: bool  # positions are sized anew at every order, not only when they are opened


class Fill(NamedTuple):
    """The result of the orders of one bar."""

    units: Array  # float32 [A], units held, or the weight
    unit_size: Array  # float32 [A], amount of the asset in one unit
    position: Array  # float32 [A], amount of the asset, `units * unit_size`
    kept: Array  # float32 [A], the part of the old position that is still open, 0..1
    cost: Array  # float32 [], of commission, spread and slippage


def fill(
    rules: BrokerRules,
    units: Array,
    unit_size: Array,
    position: Array,
    wanted: Array,
    equity: Array,
    price: Array,
    chance: Array | float,
) -> Fill:
    """Fills market orders at one price per asset.

    Orders are sized, and their margin is taken, at the price without spread, slippage and commission. An order that
    needs more margin than is free after those of the assets before it is refused as a whole; what makes a position
    smaller never is. A refused order still counts before those of the assets after it, which may be refused for it.

    Args:
        rules: sizes and costs.
        units: `[A]`, units held before.
        unit_size: `[A]`, amount of the asset in one unit.
        position: `[A]`, amount of the asset held before.
        wanted: `[A]`, units wanted.
        equity: `[]`, at `price`.
        price: `[A]`, to fill at.
        chance: `[A]`, 0..1, how much of the largest slippage an order meets.
    """
    if rules.unit_size is None:
        fresh = (rules.fraction / price.size) * jnp.maximum(equity, 0.0) / price
        unit_size = fresh if rules.rebalance else jnp.where(units == 0, fresh, unit_size)
    changed = True if rules.rebalance else wanted != units
    target = wanted * unit_size
    before, after = jnp.abs(position) * price, jnp.abs(target) * price
    more = jnp.where(changed, jnp.maximum(after - before, 0.0), 0.0)
    committed = jnp.sum(jnp.where(changed, jnp.minimum(before, after), before))
    allowance = jnp.maximum(rules.leverage * equity, 1e-30)  # equity may be gone
    used = jnp.where(more == 0, 0.0, committed + jnp.cumsum(more)) / allowance
    granted = changed & (used <= 1.0 + 1e-6)  # rounding must not refuse an order of exactly what is free
    target = jnp.where(granted, target, position)  # an order not given must not move a position by rounding
    bought = target - position
    worse = 0.5 * rules.spread + rules.slippage * chance
    value = jnp.abs(bought) * price
    cost = jnp.sum(value * (worse + rules.commission * (1.0 + jnp.sign(bought) * worse)))
    kept = jnp.clip(target / jnp.where(position == 0, 1.0, position), 0.0, 1.0)
    return Fill(jnp.where(granted, wanted, units), unit_size, target, kept, cost)


def compensated_add(total: Array, rounding_error: Array, change: Array) -> tuple[Array, Array]:
    """`total + rounding_error + change` as a rounded sum and its new rounding error (Kahan 1965, Knuth's exact form).

    Money is small changes of a large sum: rounded at each of them, float32 would lose a digit in a hundred bars.

    >>> total, rounding_error = jnp.float32(1e8), jnp.float32(0)
    >>> for _ in range(8):
    ...     total, rounding_error = compensated_add(total, rounding_error, jnp.float32(1))
    >>> int(total)
    100000008
    """
    change = change + rounding_error
    new = total + change
    moved = new - total
    return new, (total - (new - moved)) + (change - moved)
