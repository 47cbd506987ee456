"""Backtests as pure functions: the accounts of an agent and of simple strategies over a stretch of time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from btnn_jax._types import PyTree
from btnn_jax.envs.trading import TradingEnvironment, TradingState, performance
from btnn_jax.envs.trading.performance import Performance
from btnn_jax.protocol import AgentInput, Policy
from btnn_jax.training.acting import apply_step, choose_action, first_inputs, uniform_logits

__all__ = [
    "DRAWS",
    "NAMES",
    "STRATEGIES",
    "Account",
    "make_backtest",
    "make_strategy",
    "measure",
    "periods_per_year",
    "trade",
    "trade_all",
    "trade_draws",
    "walk_forward",
    "with_commission",
]

Act = Callable[[jax.Array, AgentInput, PyTree], tuple[PyTree, PyTree]]
STRATEGIES = ("buy and hold", "flat", "random")
NAMES = ("greedy", "sampled", *STRATEGIES)
DRAWS = 32  # of actions: the luck of one draw is as large as what seeds differ by


class Account(NamedTuple):
    """One account from bar to bar; row 0 is the bar at whose close it was opened. `N` steps, `A` assets."""

    bar: jax.Array  # int32 [N + 1], a row of the environment's `close` and `times`
    equity: jax.Array  # float32 [N + 1]
    weight: jax.Array  # float32 [N + 1, A], of the equity, held in the step that led here; 0 after a ruin
    traded: jax.Array  # float32 [N + 1], share of the equity that was bought and sold in that step
    profit: jax.Array  # float32 [N + 1, A], earned with each asset in that step, its costs taken off
    where: jax.Array  # bool [N + 1], False after the account's end


def make_backtest(
    env: TradingEnvironment, policy: Policy, *, greedy: bool = True
) -> Callable[[PyTree, jax.Array], Account]:
    """Binds `backtest(params, key) -> Account`, one episode of `env` without noise in the noisy layers.

    Args:
      env: where an episode is as long as what is to be traded, see `make_trading(episode_length=None)`.
      policy: the agent's network.
      greedy: take the most likely action rather than a sample.
    """

    def backtest(params: PyTree, key: jax.Array) -> Account:
        def act(key: jax.Array, inputs: AgentInput, core: PyTree) -> tuple[PyTree, PyTree]:
            output, core = apply_step(policy, params, jax.tree.map(lambda x: x[None], inputs), core)
            logits = jax.tree.map(lambda x: x[0], output.logits)
            return choose_action(logits, key, greedy=greedy), core

        return trade(env, act, policy.initial_state(1), key)

    return backtest


def make_strategy(env: TradingEnvironment, name: str) -> Callable[[jax.Array], Account]:
    """Binds `backtest(key) -> Account` of one of `STRATEGIES`: it buys all it may once, does nothing, or anything."""
    if name == "buy and hold" and env.weights is not None:
        # A target weight is traded for at every bar; an order of the largest one's size is given once.
        fraction = env.rules.fraction * max(map(abs, env.weights))
        env = dataclasses.replace(
            env, weights=None, rules=env.rules._replace(fraction=fraction, rebalance=False)
        )
    depths = env.action_depths
    constant = {"buy and hold": 1, "flat": 0 if env.weights is None else env.weights.index(0.0)}

    def act(key: jax.Array, inputs: AgentInput, carry: PyTree) -> tuple[PyTree, PyTree]:
        del inputs
        if name in constant:
            return jax.tree.map(lambda _: jnp.int32(constant[name]), depths), carry
        return choose_action(uniform_logits(depths), key, greedy=False), carry

    return lambda key: trade(env, act, (), key)


def trade(env: TradingEnvironment, act: Act, carry: PyTree, key: jax.Array) -> Account:
    """Trades one episode from the environment's earliest start; after its end the account stands still.

    Args:
      env: the environment.
      act: `(key, inputs, carry) -> (action, carry)`, of one environment, without leading axes.
      carry: the agent's memory before the first step.
      key: consumed.
    """
    state, observation = env.start(env.starts[0])
    inputs = first_inputs(observation, env.action_depths)

    def one_step(loop: Any, _: None) -> tuple[Any, Any]:
        key, state, inputs, carry, ended = loop
        key, act_key, move_key = jax.random.split(key, 3)
        action, carry = act(act_key, inputs, carry)
        after, step = env.move(move_key, state, action)
        after = jax.tree.map(lambda new, old: jnp.where(ended, old, new), after, state)
        inputs = AgentInput(step.observation, action, step.reward, jnp.zeros((), bool))
        row = _row(env, state, after, ~ended)
        return (key, after, inputs, carry, ended | step.terminated | step.truncated), row

    steps = -(-env.length // env.frame_skip)
    loop = (key, state, inputs, carry, jnp.zeros((), bool))
    _, rest = jax.lax.scan(one_step, loop, length=steps)
    first = _row(env, state, state, jnp.ones((), bool))
    return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)


def _row(env: TradingEnvironment, before: TradingState, after: TradingState, where: jax.Array) -> Account:
    """The row of an account that a step from one state to another makes."""
    price = env.bars[0, before.index + 1]  # that orders are filled at
    value = jnp.abs(after.position - before.position) * price
    moved = before.position * (price - env.prices(before)) + after.position * (env.prices(after) - price)
    # What the equity lacks of what prices made of the positions was paid for the orders, each for its value.
    cost = jnp.sum(moved) - (after.equity - before.equity) - (after.rounding_error - before.rounding_error)
    return Account(
        bar=after.index,
        equity=after.equity,
        weight=_share(after.position * env.prices(after), after.equity),
        traded=_share(jnp.sum(value), before.equity),
        profit=moved - cost * _share(value, jnp.sum(value)),
        where=where,
    )


def _share(part: jax.Array, whole: jax.Array) -> jax.Array:
    """0 where there is nothing to share."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)


def measure(account: Account, periods_per_year: ArrayLike) -> Performance:
    """The performance of accounts `[..., N + 1]`, as shares of the equity over all assets together.

    A trade is one of an asset, and so is its profit.
    """
    weight, profit = (jnp.moveaxis(x, -1, 0) for x in (account.weight, account.profit))
    where = jnp.broadcast_to(account.where, weight.shape)
    earned = jnp.cumsum(profit, axis=-1)
    closed, won = (jnp.sum(x, axis=0) for x in performance.closed_trades(earned, weight, where=where))
    together = performance.summary(
        account.equity,
        jnp.sum(weight, axis=0),
        account.traded,
        periods_per_year=periods_per_year,
        where=account.where,
    )
    return together._replace(
        exposure=jnp.sum(performance.exposure(weight, where=where), axis=0),
        num_trades=jnp.sum(performance.num_trades(weight, where=where), axis=0),
        hit_rate=_share(won.astype(jnp.float32), closed.astype(jnp.float32)),
    )


def with_commission(env: TradingEnvironment, commission: ArrayLike) -> TradingEnvironment:
    """The same environment at another commission, which may be traced: `vmap` sweeps over costs."""
    return dataclasses.replace(env, rules=env.rules._replace(commission=jnp.asarray(commission)))


def walk_forward(folds: int) -> list[tuple[float, float, float]]:
    """The `fractions` that walk an agent forward through time, one for each fold.

    Each lets it learn from all that came before (`part="train"`) and judges it on the piece that follows
    (`part="validation"`). The pieces are equal, and the last one, at least, is left for a final test.

    Raises:
      ValueError: `folds` is below 1.

    >>> [tuple(round(x, 2) for x in fractions) for fractions in walk_forward(2)]
    [(0.25, 0.25, 0.5), (0.5, 0.25, 0.25)]
    """
    if folds < 1:
        raise ValueError(f"folds must be at least 1, got {folds}")
    piece = 1 / (folds + 2)
    return [(k * piece, piece, 1 - (k + 1) * piece) for k in range(1, folds + 1)]


def periods_per_year(env: TradingEnvironment) -> float:
    """Steps of `env` in a year of its times, weekends and nights left out as the data leave them out.

    Without times a step counts as a day of trading, of which a year has 252.
    """
    if env.times is None or len(env.times) < 2:
        return 252.0 / env.frame_skip
    years = (env.times[-1] - env.times[0]) / np.timedelta64(365 * 86_400 + 20_952, "s")
    return float((len(env.times) - 1) / years / env.frame_skip)


def trade_draws(
    play: Callable[[jax.Array], Account],
    keys: jax.Array,
    periods_per_year: ArrayLike,
    *,
    at_once: int = DRAWS,
) -> tuple[Account, Performance]:
    """Trades with several draws of actions, and keeps of each agent how well all did and the account in the middle.

    Args:
      play: keys `[S]` -> accounts `[S, N + 1]`, of agents side by side.
      keys: `[D, S]`, consumed.
      periods_per_year: see `measure`.
      at_once: draws that are traded side by side, which bounds the memory; it changes no result.

    Returns:
      Each agent's account whose total return is in the middle of its draws, `[S, N + 1]`, and the performance of all,
      leaves `[S, D]`.
    """
    draws, agents = keys.shape
    if draws == 1:
        account = play(keys[0])
        return account, jax.tree.map(lambda x: x[:, None], measure(account, periods_per_year))
    again = jax.random.clone(keys)  # trading those in the middle twice takes less than keeping all
    performance = jax.lax.map(
        lambda keys: measure(play(keys), periods_per_year), keys, batch_size=min(at_once, draws)
    )
    middle = jnp.argsort(performance.total_return, axis=0)[draws // 2]
    return play(again[middle, jnp.arange(agents)]), jax.tree.map(jnp.transpose, performance)


def trade_all(
    env: TradingEnvironment, policy: Policy, params: PyTree, key: jax.Array, *, at_once: int = DRAWS
) -> tuple[dict[str, Account], dict[str, Performance]]:
    """Trades one episode with agents and with the simple strategies.

    Args:
      env: as for `make_backtest`.
      policy: the agents' network.
      params: theirs, leaves `[S, ...]`, one agent for each seed.
      key: consumed.
      at_once: draws of actions that are traded side by side, see `trade_draws`.

    Returns:
      Name -> the accounts and how well they did, as a `Backtest` holds them.
    """
    agents = {
        name: functools.partial(jax.vmap(make_backtest(env, policy, greedy=name == "greedy")), params)
        for name in ("greedy", "sampled")
    }
    traded = {}
    for name, one_key in zip(NAMES, jax.random.split(key, len(NAMES)), strict=True):
        play = agents.get(name) or jax.vmap(make_strategy(env, name))
        side_by_side = len(jax.tree.leaves(params)[0]) if name in agents else 1
        keys = jax.random.split(one_key, (DRAWS if name in ("sampled", "random") else 1, side_by_side))
        traded[name] = trade_draws(play, keys, periods_per_year(env), at_once=at_once)
    return {name: pair[0] for name, pair in traded.items()}, {name: pair[1] for name, pair in traded.items()}
