"""Returns and advantages against rlax's, which take one sequence and are vmapped over the batch.

Both sides start from what a rollout holds, rewards, values and flags, and are called many times in one compiled
program, as in a train step: called one by one, the dispatch of a call costs more than its work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import rlax
from jax import Array

from benchmarks.harness import Case, Program
from btnn_jax import targets


class Inputs:
    """A rollout of shape `[T, B]` in which a tenth of the steps end an episode."""

    def __init__(self, T: int, B: int) -> None:
        keys = jax.random.split(jax.random.key(0), 5)
        self.rewards, self.values = (jax.random.normal(k, (T, B)) for k in keys[:2])
        self.last_value = jax.random.normal(keys[2], (B,))
        self.next_values = targets.next_values(self.values, self.last_value)
        self.terminated = jax.random.bernoulli(keys[3], 0.1, (T, B))
        self.never = jnp.zeros((T, B), bool)
        self.log_ratios = 0.1 * jax.random.normal(keys[4], (T, B))


CALLS = 100


def program(function: Callable[..., Any], *arguments: Array) -> Program:
    """`CALLS` calls of `function`, each with arguments of its own."""
    stacked = [jnp.stack([x] * CALLS) for x in arguments]
    return partial(jax.jit(lambda *calls: jax.lax.map(lambda call: function(*call), calls)), *stacked)


def over_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.vmap(function, in_axes=1, out_axes=1)


def discounts(terminated: Array) -> Array:
    return jnp.where(terminated, 0.0, 0.99)


def lambda_returns(T: int, B: int) -> tuple[Program, Program]:
    x = Inputs(T, B)

    def peer(rewards: Array, following: Array, terminated: Array, truncated: Array) -> Array:
        mix = jnp.where(truncated, 0.0, 0.95)
        return over_batch(rlax.lambda_returns)(rewards, discounts(terminated), following, mix)

    ours = partial(targets.lambda_returns, discount=0.99, lambda_=0.95)
    arguments = (x.rewards, x.next_values, x.terminated, x.never)
    return program(ours, *arguments), program(peer, *arguments)


def n_step_returns(T: int, B: int, n: int = 5) -> tuple[Program, Program]:
    x = Inputs(T, B)

    def ours(rewards: Array, following: Array, terminated: Array) -> Array:
        never = jnp.zeros_like(terminated)  # rlax's knows no time limits
        return targets.n_step_returns(rewards, following, terminated, never, discount=0.99, n=n)

    def peer(rewards: Array, following: Array, terminated: Array) -> Array:
        sequence = partial(rlax.n_step_bootstrapped_returns, n=n)
        return over_batch(sequence)(rewards, discounts(terminated), following)

    arguments = (x.rewards, x.next_values, x.terminated)
    return program(ours, *arguments), program(peer, *arguments)


def gae(T: int, B: int) -> tuple[Program, Program]:
    x = Inputs(T, B)

    def ours(rewards: Array, values: Array, last_value: Array, terminated: Array) -> tuple[Array, Array]:
        never = jnp.zeros_like(terminated)  # rlax's knows no time limits
        following = targets.next_values(values, last_value)
        return targets.gae(rewards, values, following, terminated, never, discount=0.99, lambda_=0.95)

    def peer(rewards: Array, values: Array, last_value: Array, terminated: Array) -> tuple[Array, Array]:
        sequence = partial(rlax.truncated_generalized_advantage_estimation, lambda_=0.95)
        values_to_end = jnp.concatenate([values, last_value[None]])
        advantages = jax.vmap(lambda r, d, v: sequence(r_t=r, discount_t=d, values=v), in_axes=1, out_axes=1)(
            rewards, discounts(terminated), values_to_end
        )
        return advantages, advantages + values

    arguments = (x.rewards, x.values, x.last_value, x.terminated)
    return program(ours, *arguments), program(peer, *arguments)


def vtrace(T: int, B: int) -> tuple[Program, Program]:
    x = Inputs(T, B)

    def ours(
        log_ratios: Array, rewards: Array, values: Array, following: Array, terminated: Array
    ) -> tuple[Array, Array]:
        never = jnp.zeros_like(terminated)  # rlax's knows no time limits
        return targets.vtrace(log_ratios, rewards, values, following, terminated, never, discount=0.99)

    def peer(log_ratios: Array, rewards: Array, values: Array, following: Array, terminated: Array) -> Any:
        out = over_batch(rlax.vtrace_td_error_and_advantage)(
            values, following, rewards, discounts(terminated), jnp.exp(log_ratios)
        )
        return out.errors + values, out.pg_advantage

    arguments = (x.log_ratios, x.rewards, x.values, x.next_values, x.terminated)
    return program(ours, *arguments), program(peer, *arguments)


CASES = tuple(
    Case(f"{name}, {T}x{B}", "rlax under vmap", partial(make, T, B), 1.0)
    for name, make in (
        ("lambda-returns", lambda_returns),
        ("n-step returns", n_step_returns),
        ("GAE", gae),
        ("V-trace", vtrace),
    )
    for T, B in ((20, 64), (128, 64))
)
