"""One step of acting, shared by rollouts, evaluations, backtests and loaded agents."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax.core import unfreeze

from btnn_jax._types import PyTree
from btnn_jax.protocol import AgentInput, Policy, PolicyOutput, RecurrentState, action_distribution

__all__ = ["apply_step", "choose_action", "first_inputs", "uniform_logits"]


def first_inputs(observation: PyTree, action_depths: Any, lead: tuple[int, ...] = ()) -> AgentInput:
    """The inputs at an episode's first step, leaves `[*lead, ...]`.

    Args:
      observation: leaves `[*lead, ...]`.
      action_depths: number of actions, or a (nested) dict of them.
      lead: leading axes, such as `(num_envs,)`.
    """
    return AgentInput(
        observation=observation,
        last_action=jax.tree.map(lambda _: jnp.zeros(lead, jnp.int32), unfreeze(action_depths)),
        last_reward=jnp.zeros(lead, jnp.float32),
        reset=jnp.ones(lead, bool),
    )


def apply_step(
    policy: Policy,
    params: PyTree,
    inputs: AgentInput,
    state: RecurrentState,
    noise_key: jax.Array | None = None,
) -> tuple[PolicyOutput, RecurrentState]:
    """Runs a policy for one step of `B` environments.

    Args:
      policy: the agent's network.
      params: its parameters.
      inputs: leaves `[B, ...]`.
      state: recurrent state before the step.
      noise_key: key of the noisy layers; None uses their means.

    Returns:
      The output, leaves `[B, ...]`, and the recurrent state after the step.
    """
    inputs = jax.tree.map(lambda x: x[None], inputs)
    noise: dict[str, Any] = {"deterministic": True} if noise_key is None else {"rngs": {"noise": noise_key}}
    output, state = policy.apply({"params": params}, inputs, state, **noise)
    return jax.tree.map(lambda x: x[0], output), state


def choose_action(logits: PyTree, key: jax.Array, *, greedy: bool) -> PyTree:
    """The most likely actions, or a sample, int32 `[B]` or a dict of them."""
    distribution = action_distribution(logits)
    return distribution.mode() if greedy else distribution.sample(seed=key)


def uniform_logits(action_depths: Any, lead: tuple[int, ...] = ()) -> PyTree:
    """Logits of a policy that takes every action with the same probability, float32 `[*lead, A]`."""
    return jax.tree.map(lambda depth: jnp.zeros((*lead, depth), jnp.float32), unfreeze(action_depths))
