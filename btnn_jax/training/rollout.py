"""Acting: environments and agent stepped together on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from btnn_jax._types import PyTree
from btnn_jax.encoders import as_image, image_stream, one_stream
from btnn_jax.envs.base import AnyEnvironment, batched
from btnn_jax.ops.pixel_change import pixel_change_2d_estimator
from btnn_jax.protocol import AgentInput, Policy, RecurrentState
from btnn_jax.training.acting import apply_step, choose_action, first_inputs

__all__ = ["Actors", "Rollout", "make_rollout"]


class Actors(NamedTuple):
    """`B` environments and the agent's memory of them, between two steps."""

    env_state: PyTree  # leaves [B, ...]
    inputs: AgentInput  # leaves [B, ...], of the step that comes next
    core: RecurrentState  # recurrent state before that step
    keys: jax.Array  # [B], each environment's own stream: no two share one
    episode_return: jax.Array  # float32 [B], of the episode under way
    episode_length: jax.Array  # int32 [B]
    last_return: jax.Array  # float32 [B], of the latest finished episode
    last_length: jax.Array  # int32 [B]; 0 where none has finished
    discounted: jax.Array | None = (
        None  # float32 [B], discounted rewards of the episode so far; None if not asked for
    )


class Rollout(NamedTuple):
    """`T` steps of `B` environments; leaves `[T, B, ...]`."""

    inputs: AgentInput
    action: PyTree  # int32, or a dict of them
    logits: PyTree  # float32 [T, B, A], of the policy that acted
    value: jax.Array  # float32
    reward: jax.Array  # float32
    terminated: jax.Array  # bool
    truncated: jax.Array  # bool
    final_value: jax.Array  # float32, value of the final observation where truncated, else 0
    # float32 [T, B, h, w] towards the observation the step led to; None if not asked for
    pixel_change: jax.Array | None
    discounted: jax.Array | None  # float32, discounted rewards of the episode so far; None if not asked for


def make_rollout(
    env: AnyEnvironment,
    policy: Policy,
    num_envs: int,
    length: int,
    *,
    pc_cell: tuple[int, int] | None = None,
    pc_stream: str | None = None,
    discount: float | None = None,
) -> tuple[Callable, Callable]:
    """Binds environment and agent into `(reset, rollout)`.

    Args:
      env: one pure environment, of which `num_envs` are made by `vmap`, or one of the host, which makes them.
      policy: the agent's network.
      num_envs: `B`.
      length: `T`.
      pc_cell: pixels of a cell of the pixel-change maps; None records none.
      pc_stream: observation stream that the maps are made of, see `btnn_jax.encoders.image_stream`.
      discount: per step, for the discounted sums of rewards; None records none.

    Returns:
      `reset(key) -> Actors`, and `rollout(params, actors, noise_key) -> (actors, Rollout, last_value [B])`, which holds
      the noise of the noisy layers that `noise_key` gives over all `T` steps.
    """
    many = batched(env, num_envs)
    if pc_cell is not None:
        pc_stream = image_stream(env.observation, pc_stream)

    def reset(key: jax.Array) -> Actors:
        pairs = jax.vmap(jax.random.split)(jax.random.split(key, num_envs))
        env_state, observation = many.reset(pairs[:, 0])
        zeros = jnp.zeros(num_envs, jnp.float32)
        return Actors(
            env_state=env_state,
            inputs=first_inputs(observation, env.action_depths, (num_envs,)),
            core=policy.initial_state(num_envs),
            keys=pairs[:, 1],
            episode_return=zeros,
            episode_length=jnp.zeros(num_envs, jnp.int32),
            last_return=zeros,
            last_length=jnp.zeros(num_envs, jnp.int32),
            discounted=None if discount is None else zeros,
        )

    def rollout(params: PyTree, actors: Actors, noise_key: jax.Array) -> tuple[Actors, Rollout, jax.Array]:
        data, impl = jax.random.key_data(noise_key), jax.random.key_impl(noise_key)

        def held_noise() -> jax.Array:
            return jax.random.wrap_key_data(data, impl=impl)  # one key for all steps, on purpose

        def one_step(actors: Actors, _: None) -> tuple[Actors, Rollout]:
            output, core = apply_step(policy, params, actors.inputs, actors.core, held_noise())
            keys = jax.vmap(lambda key: jax.random.split(key, 3))(actors.keys)
            action = jax.vmap(functools.partial(choose_action, greedy=False))(output.logits, keys[:, 0])
            env_state, time_step = many.step(keys[:, 1], actors.env_state, action)
            done = time_step.terminated | time_step.truncated

            def final_value() -> jax.Array:
                inputs = AgentInput(
                    time_step.final_observation, action, time_step.reward, jnp.zeros(num_envs, bool)
                )
                value = apply_step(policy, params, inputs, core, held_noise())[0].value
                return jnp.where(time_step.truncated, value, 0.0)

            # Truncations are rare, so their extra forward pass runs only at the steps that have one; under
            # vmap, which knows no branches, at every step.
            last = jax.lax.cond(
                jnp.any(time_step.truncated), final_value, lambda: jnp.zeros(num_envs, jnp.float32)
            )
            pixel_change = None
            if pc_cell is not None:
                pixel_change = _pixel_change(
                    one_stream(time_step.final_observation, pc_stream),
                    one_stream(actors.inputs.observation, pc_stream),
                    pc_cell,
                )
            discounted = None
            if discount is not None and actors.discounted is not None:
                discounted = discount * actors.discounted + time_step.reward
            record = Rollout(
                inputs=actors.inputs,
                action=action,
                logits=output.logits,
                value=output.value,
                reward=time_step.reward,
                terminated=time_step.terminated,
                truncated=time_step.truncated,
                final_value=last,
                pixel_change=pixel_change,
                discounted=discounted,
            )
            total, count = actors.episode_return + time_step.reward, actors.episode_length + 1
            return Actors(
                env_state=env_state,
                inputs=AgentInput(time_step.observation, action, time_step.reward, done),
                core=core,
                keys=keys[:, 2],
                episode_return=jnp.where(done, 0.0, total),
                episode_length=jnp.where(done, 0, count),
                last_return=jnp.where(done, total, actors.last_return),
                last_length=jnp.where(done, count, actors.last_length),
                discounted=None if discounted is None else jnp.where(done, 0.0, discounted),
            ), record

        actors, record = jax.lax.scan(one_step, actors, length=length)
        last_value = apply_step(policy, params, actors.inputs, actors.core, held_noise())[0].value
        return actors, record, last_value

    return reset, rollout


def _pixel_change(after: jax.Array, before: jax.Array, cell: tuple[int, int]) -> jax.Array:
    """Mean change of each cell `[B, h, w]`, in units of full white where the stream is pixels."""
    shape = as_image(after.shape[1:])
    change = pixel_change_2d_estimator(after.reshape(-1, *shape), before.reshape(-1, *shape), stride=cell)
    return change / 255 if after.dtype == jnp.uint8 else change
