"""The best that could have been done on known prices: what an agent's result is held against."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from btnn_jax.envs.trading.environment import ACTIONS, TradingEnvironment

__all__ = ["Optimal", "optimal_policy"]


class Optimal(NamedTuple):
    """The best actions of one episode of `S` steps, and what they come to."""

    actions: np.ndarray  # int32 [S]
    equity: float  # at the end
    log_return: float  # log of what the equity has grown by, the sum of the unscaled log rewards


def optimal_policy(env: TradingEnvironment, first: int | None = None) -> Optimal:
    """The actions with the highest final equity, by dynamic programming over a trade's first and last bar.

    With what a position earns from bar to bar known, the best of what is left depends only on the time and the bar
    at which the open position was opened:

    `V[s] = max(V[s + 1], max over u > s and both ways of gain(s, u) + V[u + 1], max over both ways of gain(s, end))`

    where `V[s]` is the gain from the fill at step `s` on with no position before it (a log for a fraction of the
    equity, money for a fixed unit size), `gain(s, u)` that of a position opened at step `s` and closed at step `u`,
    costs taken off, and `gain(s, end)` of one still open at the last close. Exact where neither drawdown, profit target
    nor margin would step in on the way; `O(S^2)` time, `O(S)` memory.

    Args:
        env: one asset, orders of one unit, no slippage.
        first: `index` that the episode begins at; None for the earliest.

    Raises:
        ValueError: the environment is another, or its episodes do not begin there.
    """
    low, high = env.starts
    first = low if first is None else first
    if len(env.assets) != 1 or env.weights is not None or env.max_units != 1 or env.rules.slippage:
        raise ValueError(
            "the optimal policy is known for orders of one unit in one asset without slippage, got "
            f"{len(env.assets)} assets, weights={env.weights}, max_units={env.max_units}, slippage={env.rules.slippage}"
        )
    if not low <= first <= high:
        raise ValueError(f"first must be from {low} to {high}, got {first}")
    opens = np.asarray(env.bars[0, first + 1 : first + 1 + env.length : env.frame_skip, 0], np.float64)
    end = float(env.close[first + env.length, 0])
    steps = len(opens)
    # value[s]: of the steps from s on, with no position; none is left after the last.
    value = np.zeros(steps + 2)
    closing = np.zeros(steps, int)  # the step that closes the trade opened at s; `steps` for none
    way = np.zeros(steps, int)  # of that trade: 1 long, -1 short, 0 where it is better to wait
    for s in reversed(range(steps)):
        value[s], closing[s] = value[s + 1], s
        for sign in (1, -1):
            gains = _gains(env, opens[s], np.append(opens[s + 1 :], end), sign) + value[s + 2 :]
            best = int(np.argmax(gains))
            if gains[best] > value[s]:
                value[s], closing[s], way[s] = gains[best], s + 1 + best, sign
    actions = np.full(steps, ACTIONS.index("hold"), np.int32)
    s = 0
    while s < steps:
        if way[s]:
            actions[s] = ACTIONS.index("buy" if way[s] > 0 else "sell")
            if closing[s] < steps:
                actions[closing[s]] = ACTIONS.index("close")
        s = closing[s] + 1
    if env.rules.unit_size is None:
        return Optimal(actions, env.initial_cash * float(np.exp(value[0])), float(value[0]))
    return Optimal(actions, env.initial_cash + float(value[0]), float(np.log1p(value[0] / env.initial_cash)))


def _gains(env: TradingEnvironment, price: float, later: np.ndarray, sign: int) -> np.ndarray:
    """The profit of a unit opened at `price` by each of `later`, of which the last is a close without a trade."""
    rules = env.rules
    half = rules.spread / 2
    # Costs of opening and of closing, for a unit of value traded.
    opening = half + rules.commission * (1 + sign * half)
    closing = half + rules.commission * (1 - sign * half)
    part = sign * (later / price - 1) - opening
    part[:-1] -= closing * later[:-1] / price
    if rules.unit_size is not None:
        return rules.unit_size * price * part
    growth = 1 + rules.fraction * part
    return np.log(np.where(growth > 0, growth, 1e-300))
