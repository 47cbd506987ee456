"""Losses and their gradients against rlax's, which take one sequence and are vmapped over the batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import rlax
from jax import Array

from benchmarks.harness import Case, Program
from btnn_jax.losses import aac_loss, pc_loss, ppo_loss
from btnn_jax.ops.pixel_change import pixel_change_2d_estimator
from btnn_jax.targets import pixel_control_targets

Loss = Callable[..., Array]


def program(loss: Loss, arguments: tuple[Array, ...], constants: tuple[Array, ...]) -> Program:
    """Value and gradient with respect to every one of `arguments`."""
    step = jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(arguments)))))
    return partial(step, *arguments, *constants)


def policy_inputs(T: int, B: int, A: int) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    keys = jax.random.split(jax.random.key(0), 6)
    actions = jax.random.randint(keys[0], (T, B), 0, A)
    advantages, returns, values = (jax.random.normal(k, (T, B)) for k in keys[1:4])
    logits = jax.random.normal(keys[4], (T, B, A))
    old_logits = logits + 0.1 * jax.random.normal(keys[5], (T, B, A))
    return (logits, values), (actions, advantages, returns, old_logits)


def a2c(T: int, B: int, A: int) -> tuple[Program, Program]:
    arguments, (actions, advantages, returns, _) = policy_inputs(T, B, A)

    def ours(logits: Array, values: Array, actions: Array, advantages: Array, returns: Array) -> Array:
        return aac_loss(actions, advantages, returns, logits, values)[0]

    @partial(jax.vmap, in_axes=1)
    def sequence(logits: Array, values: Array, actions: Array, advantages: Array, returns: Array) -> Array:
        weights = jnp.ones_like(advantages)
        policy_loss = rlax.policy_gradient_loss(logits, actions, advantages, weights)
        value_loss = jnp.mean(2.0 * rlax.l2_loss(values, jax.lax.stop_gradient(returns)))
        return policy_loss + 0.5 * value_loss + 0.01 * rlax.entropy_loss(logits, weights)

    def peer(*inputs: Array) -> Array:
        return jnp.mean(sequence(*inputs))

    constants = (actions, advantages, returns)
    return program(ours, arguments, constants), program(peer, arguments, constants)


def ppo(T: int, B: int, A: int) -> tuple[Program, Program]:
    arguments, constants = policy_inputs(T, B, A)

    def ours(
        logits: Array, values: Array, actions: Array, advantages: Array, returns: Array, old_logits: Array
    ) -> Array:
        return ppo_loss(actions, advantages, returns, logits, values, old_logits)[0]

    @partial(jax.vmap, in_axes=1)
    def sequence(
        logits: Array, values: Array, actions: Array, advantages: Array, returns: Array, old_logits: Array
    ) -> Array:
        policy = rlax.softmax()
        ratios = jnp.exp(policy.logprob(actions, logits) - policy.logprob(actions, old_logits))
        policy_loss = rlax.clipped_surrogate_pg_loss(ratios, advantages, 0.2)
        value_loss = jnp.mean(2.0 * rlax.l2_loss(values, jax.lax.stop_gradient(returns)))
        return policy_loss + value_loss + 0.01 * rlax.entropy_loss(logits, jnp.ones_like(advantages))

    def peer(*inputs: Array) -> Array:
        return jnp.mean(sequence(*inputs))

    return program(ours, arguments, constants), program(peer, arguments, constants)


def pixel_control(B: int, T: int = 20, A: int = 4) -> tuple[Program, Program]:
    """From frames and action values to loss and gradient, cells of 4x4 pixels on a 20x20 grid.

    Ours crops a pixel from each side first, so that its frames have two more each way.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    frames = jax.random.uniform(keys[0], (T + 1, B, 82, 82, 3))
    q = jax.random.normal(keys[1], (T + 1, B, 20, 20, A))
    actions = jax.random.randint(keys[2], (T, B), 0, A)

    def ours(q: Array, frames: Array, actions: Array) -> Array:
        changes = pixel_change_2d_estimator(frames[1:], frames[:-1], stride=(4, 4))
        never = jnp.zeros(actions.shape, bool)
        targets = pixel_control_targets(changes, jnp.max(q[-1], axis=-1), never, never)
        return pc_loss(actions, targets, q[:-1])[0]

    def peer(q: Array, frames: Array, actions: Array) -> Array:
        sequence = partial(rlax.pixel_control_loss, discount_factor=0.9, cell_size=4)
        losses = jax.vmap(sequence, in_axes=1)(frames, actions, q)
        return jnp.mean(2.0 * jnp.sum(losses, axis=(-2, -1)))

    cropped = jnp.array(frames[:, :, 1:-1, 1:-1])
    return program(ours, (q,), (frames, actions)), program(peer, (q,), (cropped, actions))


RLAX = "rlax under vmap"
CASES = (
    Case("A2C loss, 20x64, 4 actions", RLAX, partial(a2c, 20, 64, 4), 1.5),
    Case("A2C loss, 20x64, 18 actions", RLAX, partial(a2c, 20, 64, 18), 1.5),
    Case("A2C loss, 128x64, 4 actions", RLAX, partial(a2c, 128, 64, 4), 1.5),
    Case("PPO loss, 20x64, 4 actions", RLAX, partial(ppo, 20, 64, 4), 1.7),
    Case("PPO loss, 20x64, 18 actions", RLAX, partial(ppo, 20, 64, 18), 1.7),
    Case("PPO loss, 128x64, 4 actions", RLAX, partial(ppo, 128, 64, 4), 1.7),
    Case("pixel control, batch 1", RLAX, partial(pixel_control, 1), 1.4),
    Case("pixel control, batch 64", RLAX, partial(pixel_control, 64), 1.0),
)
