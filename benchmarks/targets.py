"""Returns and advantages against rlax's, which take one sequence and are vmapped over the batch."""

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
        self.discounts = jnp.where(self.terminated, 0.0, 0.99)
        self.log_ratios = 0.1 * jax.random.normal(keys[4], (T, B))


def program(function: Callable[..., Any], *arguments: Array) -> Program:
    return partial(jax.jit(function), *arguments)


def over_batch(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.vmap(function, in_axes=1, out_axes=1)


def lambda_returns(T: int, B: int) -> tuple[Program, Program]:
    x = Inputs(T, B)
    ours = partial(targets.lambda_returns, discount=0.99, lambda_=0.95)
    peer = over_batch(partial(rlax.lambda_returns, lambda_=0.95))
    return (
        program(ours, x.rewards, x.next_values, x.terminated, x.never),
        program(peer, x.rewards, x.discounts, x.next_values),
    )


def n_step_returns(T: int, B: int, n: int = 5) -> tuple[Program, Program]:
    x = Inputs(T, B)
    ours = partial(targets.n_step_returns, discount=0.99, n=n)
    peer = over_batch(partial(rlax.n_step_bootstrapped_returns, n=n))
    return (
        program(ours, x.rewards, x.next_values, x.terminated, x.never),
        program(peer, x.rewards, x.discounts, x.next_values),
    )


def gae(T: int, B: int) -> tuple[Program, Program]:
    x = Inputs(T, B)

    def peer(rewards: Array, discounts: Array, values: Array, last_value: Array) -> tuple[Array, Array]:
        sequence = partial(rlax.truncated_generalized_advantage_estimation, lambda_=0.95)
        values_to_end = jnp.concatenate([values, last_value[None]])
        advantages = jax.vmap(lambda r, d, v: sequence(r_t=r, discount_t=d, values=v), in_axes=1, out_axes=1)(
            rewards, discounts, values_to_end
        )
        return advantages, advantages + values

    def ours(
        rewards: Array, values: Array, last_value: Array, terminated: Array, truncated: Array
    ) -> tuple[Array, Array]:
        following = targets.next_values(values, last_value)
        return targets.gae(rewards, values, following, terminated, truncated, discount=0.99, lambda_=0.95)

    return (
        program(ours, x.rewards, x.values, x.last_value, x.terminated, x.never),
        program(peer, x.rewards, x.discounts, x.values, x.last_value),
    )


def vtrace(T: int, B: int) -> tuple[Program, Program]:
    x = Inputs(T, B)
    ours = partial(targets.vtrace, discount=0.99)

    @over_batch
    def peer(values: Array, following: Array, rewards: Array, discounts: Array, log_ratios: Array) -> Any:
        out = rlax.vtrace_td_error_and_advantage(values, following, rewards, discounts, jnp.exp(log_ratios))
        return out.errors + values, out.pg_advantage

    return (
        program(ours, x.log_ratios, x.rewards, x.values, x.next_values, x.terminated, x.never),
        program(peer, x.values, x.next_values, x.rewards, x.discounts, x.log_ratios),
    )


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
