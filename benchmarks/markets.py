"""Which of UNREAL's tasks help on real prices: A2C with each alone and with all, out of sample, over seeds.

    python -m benchmarks.markets [--seeds 10] [--steps 60000] [--data eurusd stocks]

Each row is one program: all seeds side by side. What is learned on the first 70 % of the time is judged on the last
15 %, over all of it, with actions drawn anew some times; nothing was tuned on any part. Intervals are bootstrapped over
seeds, and "against A2C" is of the differences between the same seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax import envs
from btnn_jax.envs.trading import make_held_out
from btnn_jax.envs.trading.performance import Performance, bootstrap_interval
from btnn_jax.training.backtest import (
    DRAWS,
    STRATEGIES,
    make_backtest,
    make_strategy,
    measure,
    periods_per_year,
    trade_draws,
)
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.modules import make_unreal_policy
from btnn_jax.training.unreal import make_unreal

BASE = UnrealConfig(
    algorithm="a2c",
    num_envs=16,
    rollout_length=32,
    entropy_beta=0.02,
    entropy_beta_final=0.0,
    learning_rate=1e-3,
    normalize_returns=False,
    hidden=(32,),
    lstm=(32,),
    noisy=False,
    pc_weight=0.0,
    vr_weight=0.0,
    rp_weight=0.0,
    replay_length=256,
)
TASKS = {"pc_weight": 0.01, "vr_weight": 0.5, "rp_weight": 0.5}
ROWS: dict[str, dict[str, Any]] = {
    "A2C": {},
    "pixel control": {"pc_weight": TASKS["pc_weight"]},
    "value replay": {"vr_weight": TASKS["vr_weight"]},
    "reward prediction": {"rp_weight": TASKS["rp_weight"]},
    "all three": TASKS,
    "A2C, noisy heads": {"noisy": True},
    "all three, noisy": {**TASKS, "noisy": True},
}
MARKETS: dict[str, dict[str, Any]] = {
    # hourly and daily bars; costs of a spread of a pip, and of a discount broker
    "eurusd": {"data": "eurusd", "commission": 5e-5},
    # leverage to spare: orders are sized as parts of the equity, and must not be refused because the other assets rose
    "stocks": {"data": "stocks", "commission": 5e-4, "leverage": 2.0},
}
SHARED = {"part": "train", "window": 16, "episode_length": 256, "reward_scale": 100.0, "drawdown": 0.2}


def judged(market: dict[str, Any], config: UnrealConfig, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Total return and Sharpe ratio `[S]` over the test part, each the mean of `DRAWS` accounts of sampled actions."""
    env = envs.make("trading", **market)
    policy = make_unreal_policy(config, env)
    init, step, *_ = make_unreal(config, env, policy=policy)
    state = jax.jit(jax.vmap(lambda seed: init(jax.random.key(seed))))(jnp.arange(seeds))
    step = jax.jit(jax.vmap(step), donate_argnums=0)
    for _ in range(config.num_updates):
        state, metrics = step(state)
    jax.block_until_ready(metrics)
    held_out = make_held_out(market, "test")
    backtest, per_year = jax.vmap(make_backtest(held_out, policy, greedy=False)), periods_per_year(held_out)

    def draw(params: Any, keys: jax.Array) -> Performance:
        return trade_draws(functools.partial(backtest, params), keys, per_year)[1]

    result = jax.jit(draw)(state.params, jax.random.split(jax.random.key(1), (DRAWS, seeds)))
    return np.mean(result.total_return, axis=1), np.mean(result.sharpe_ratio, axis=1)


def span(values: np.ndarray, scale: float = 1.0) -> str:
    """Mean and interval of 95 %."""
    interval = bootstrap_interval(jax.random.key(0), jnp.asarray(scale * values, jnp.float32))
    return f"{float(interval.estimate):.2f} ({float(interval.low):.2f} to {float(interval.high):.2f})"


def main() -> None:
    """Prints a table in Markdown for each market."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60_000, help="environment steps of each seed")
    parser.add_argument("--data", nargs="+", choices=MARKETS, default=list(MARKETS))
    given = parser.parse_args()
    for name in given.data:
        market = {**SHARED, **MARKETS[name]}
        held_out = make_held_out(market, "test")
        print(
            f"\n{name}: {held_out.length} bars of {len(held_out.assets)} asset(s), {given.seeds} seeds",
            flush=True,
        )
        print(
            "| | return, % | Sharpe ratio | return against A2C, % | seconds |\n|---|---|---|---|---|",
            flush=True,
        )
        plain = None
        for row, fields in ROWS.items():
            started = time.perf_counter()
            config = dataclasses.replace(BASE, total_steps=given.steps, **fields)
            returns, sharpe = judged(market, config, given.seeds)
            plain = returns if plain is None else plain
            against = "" if plain is returns else span(returns - plain, 100)
            seconds = time.perf_counter() - started
            print(
                f"| {row} | {span(returns, 100)} | {span(sharpe)} | {against} | {seconds:.0f} |", flush=True
            )
        for row in STRATEGIES:
            keys = jax.random.split(jax.random.key(2), 100 if row == "random" else 1)
            result = measure(
                jax.jit(jax.vmap(make_strategy(held_out, row)))(keys), periods_per_year(held_out)
            )
            returns, sharpe = np.asarray(result.total_return), np.asarray(result.sharpe_ratio)
            words = (
                (span(returns, 100), span(sharpe))
                if len(keys) > 1
                else (f"{100 * returns[0]:.2f}", f"{sharpe[0]:.2f}")
            )
            print(f"| {row} | {words[0]} | {words[1]} | | |", flush=True)


if __name__ == "__main__":
    main()
