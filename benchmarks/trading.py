"""Our trading environment against gym-anytrading's, on the same prices: ours plays a hundred steps for each of its.

Both see the last ten closes and their changes, play the whole series as one episode and take actions drawn beforehand.
gym-anytrading has no drawdown, margin or order sizes, so its step does less.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
from gym_anytrading.envs import ForexEnv  # type: ignore[import-untyped]
from jax import Array

from benchmarks.harness import Case, Program
from btnn_jax import envs
from btnn_jax.data import load_installed

WINDOW = 10
TIMES = 100  # as many steps of ours
STEPS = 10_000  # of theirs


def forex(closes: np.ndarray) -> Program:
    """`STEPS` steps of gym-anytrading's own environment."""
    env = ForexEnv(pd.DataFrame({"Close": closes}), WINDOW, (WINDOW, len(closes)))
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 2, STEPS).tolist()

    def program() -> float:
        total = 0.0
        for action in actions:
            _, reward, _, truncated, _ = env.step(action)
            total += reward
            if truncated:
                env.reset()
        return total

    return program


def ours(closes: np.ndarray, num_envs: int, length: int) -> Program:
    """`length` steps of each of `num_envs` environments, whose observations are written out as for an agent."""
    changes = np.diff(closes, prepend=closes[:1])
    env = envs.make_trading(
        data=closes, signal=np.stack([closes, changes], axis=1), window=WINDOW, episode_length=None,
        sampling="sequential",
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(0), num_envs)
    actions = jax.random.randint(jax.random.key(1), (length, num_envs), 0, 4)
    start = jax.jit(jax.vmap(env.reset))(keys)

    def one(carry: tuple[Any, Any], action: Array) -> tuple[tuple[Any, Any], Array]:
        state, step = jax.vmap(env.step)(keys, carry[0], action)  # in one long episode nothing is drawn
        return (state, step.observation), step.reward

    @jax.jit
    def run(carry: tuple[Any, Any], actions: Array) -> tuple[tuple[Any, Any], Array]:
        carry, rewards = jax.lax.scan(one, carry, actions)
        return carry, jnp.sum(rewards)

    return partial(run, start, actions)


def windows_alone(closes: np.ndarray, num_envs: int, length: int) -> Program:
    """What our steps would take if all they did were to write out their windows: a bound on any step."""
    signal = jnp.asarray(np.stack([closes, np.diff(closes, prepend=closes[:1])], axis=1), jnp.float32)

    def cut(index: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(signal, index - (WINDOW - 1), WINDOW)

    def one(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        index = carry[0] + 1
        return (index, jax.vmap(cut)(index)), None

    @jax.jit
    def run(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return jax.lax.scan(one, carry, length=length)[0]

    return partial(run, (jnp.full(num_envs, WINDOW - 1), jnp.zeros((num_envs, WINDOW, 2))))


def against_forex(program: Callable[..., Program], num_envs: int) -> tuple[Program, Program]:
    closes = load_installed("eurusd").select("close").values[:, 0]
    return program(closes, num_envs, TIMES * STEPS // num_envs), forex(closes)


CASES = [
    Case(
        f"{TIMES} {what} each, {num_envs} side by side",
        "gym-anytrading ForexEnv",
        partial(against_forex, program, num_envs),
    )
    for what, program in (("steps", ours), ("windows", windows_alone))
    for num_envs in (256, 16_384)
]
