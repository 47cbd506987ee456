"""Whole episodes of a trained agent, greedy or sampled, and of a random one to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from btnn_jax._types import PyTree
from btnn_jax.envs.base import AnyEnvironment, batched
from btnn_jax.protocol import AgentInput, Policy
from btnn_jax.training.acting import apply_step, choose_action, first_inputs, uniform_logits

__all__ = ["Episodes", "make_evaluate", "make_evaluate_random", "play"]

Act = Callable[[jax.Array, AgentInput, PyTree], tuple[PyTree, PyTree]]


class Episodes(NamedTuple):
    """One episode of each of `N` environments."""

    returns: jax.Array  # float32 [N], undiscounted sum of rewards
    lengths: jax.Array  # int32 [N], steps
    finished: jax.Array  # bool [N], False where `max_steps` came first


def make_evaluate(
    env: AnyEnvironment, policy: Policy, *, num_episodes: int, greedy: bool, max_steps: int = 10_000
) -> Callable[[PyTree, jax.Array], Episodes]:
    """Binds `evaluate(params, key) -> Episodes`, which plays without noise in the noisy layers.

    Args:
      env: one environment; `num_episodes` of them run side by side, each for one episode.
      policy: the agent's network.
      num_episodes: `N`.
      greedy: take the most likely action rather than a sample.
      max_steps: where to cut an episode that does not end.
    """

    def evaluate(params: PyTree, key: jax.Array) -> Episodes:
        def act(key: jax.Array, inputs: AgentInput, core: PyTree) -> tuple[PyTree, PyTree]:
            output, core = apply_step(policy, params, inputs, core)
            return choose_action(output.logits, key, greedy=greedy), core

        return play(env, act, policy.initial_state(num_episodes), key, num_episodes, max_steps)

    return evaluate


def make_evaluate_random(
    env: AnyEnvironment, *, num_episodes: int, max_steps: int = 10_000
) -> Callable[[jax.Array], Episodes]:
    """Binds `evaluate(key) -> Episodes` of an agent that takes every action with the same probability."""

    def act(key: jax.Array, inputs: AgentInput, carry: PyTree) -> tuple[PyTree, PyTree]:
        del inputs
        logits = uniform_logits(env.action_depths, (num_episodes,))
        return choose_action(logits, key, greedy=False), carry

    return lambda key: play(env, act, (), key, num_episodes, max_steps)


def play(
    env: AnyEnvironment, act: Act, carry: PyTree, key: jax.Array, num_episodes: int, max_steps: int
) -> Episodes:
    """Plays one episode in each of `num_episodes` environments, until all have ended.

    Args:
      env: one environment, pure or of the host.
      act: `(key, inputs [N, ...], carry) -> (action [N], carry)`.
      carry: the agent's memory before the first step.
      key: consumed.
      num_episodes: `N`.
      max_steps: where to cut episodes that do not end.
    """
    reset_key, key = jax.random.split(key)
    many = batched(env, num_episodes, evaluation=True)
    env_state, observation = many.reset(jax.random.split(reset_key, num_episodes))
    zeros = jnp.zeros(num_episodes, jnp.float32)
    inputs = first_inputs(observation, env.action_depths, (num_episodes,))
    episodes = Episodes(zeros, jnp.zeros(num_episodes, jnp.int32), jnp.zeros(num_episodes, bool))

    def one_step(loop: Any) -> Any:
        step, key, env_state, inputs, carry, episodes = loop
        key, act_key, env_key = jax.random.split(key, 3)
        action, carry = act(act_key, inputs, carry)
        env_state, time_step = many.step(jax.random.split(env_key, num_episodes), env_state, action)
        done = time_step.terminated | time_step.truncated
        running = ~episodes.finished
        episodes = Episodes(
            returns=episodes.returns + jnp.where(running, time_step.reward, 0.0),
            lengths=episodes.lengths + running.astype(jnp.int32),
            finished=episodes.finished | done,
        )
        inputs = AgentInput(time_step.observation, action, time_step.reward, done)
        return step + 1, key, env_state, inputs, carry, episodes

    def running(loop: Any) -> jax.Array:
        return (loop[0] < max_steps) & ~jnp.all(loop[-1].finished)

    return jax.lax.while_loop(running, one_step, (0, key, env_state, inputs, carry, episodes))[-1]
