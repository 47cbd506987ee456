"""Pixel control from a replay: windows, the steps of them to learn from, targets and loss: `python pixel_control.py`.

A pixel change is a cell's mean absolute change in units of full white, 0 to 1. The loss sums squared errors over cells,
so that its weight (0.01 in `UnrealConfig.pc_weight`) has to shrink as the grid grows.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from btnn_jax import envs, losses, networks, replay, targets

ENV, B, T = envs.make("probe-pixels"), 16, 8  # action k inverts a quadrant of the image


class Agent(nn.Module):
    @nn.compact
    def __call__(self, frames):  # uint8 [..., 10, 10, 1] -> Q of every cell and action [..., 4, 4, 5]
        x = nn.relu(nn.Dense(64)(frames.reshape(*frames.shape[:-3], -1) / 255.0))
        shape = networks.pc_inner_shape((10, 10, 1))
        return networks.DuellingPCNetwork(ENV.action_depths, shape, linear=nn.Dense)(x)


def play(carry, key):  # at random
    state, frame, reset = carry
    action = jax.random.randint(key, (B,), 0, ENV.action_depths)
    state, step = jax.vmap(ENV.step)(jax.random.split(jax.random.fold_in(key, 1), B), state, action)
    # Computed while the final observation is at hand: after a truncation the next frame is another episode's.
    change = networks.pixel_change_2d_estimator(step.final_observation, frame) / 255
    ends = (step.terminated, step.truncated)
    row = {"frame": frame, "action": action, "change": change, "ends": ends}
    return (state, step.observation, ends[0] | ends[1]), (row, step.reward, reset)


keys = jax.random.split(jax.random.key(0), 4)
carry = (*jax.vmap(ENV.reset)(jax.random.split(keys[0], B)), jnp.ones(B, bool))
memory, agent, optimizer = replay.make_replay(8 * T, T), Agent(), optax.adam(3e-3)
stored = memory.init(jax.eval_shape(play, carry, keys[0])[1][0])
for key in jax.random.split(keys[1], 8):
    carry, (rows, rewards, resets) = jax.lax.scan(play, carry, jax.random.split(key, T))
    stored = memory.add(stored, rows, rewards, resets)


def loss(params, key):
    window = memory.sample(key, stored, 32)
    ends, changes = window.steps["ends"], window.steps["change"]
    mask, cut = targets.window_mask(window.where, *ends)
    q = agent.apply(params, window.steps["frame"])
    following = jnp.concatenate([q[1:], q[-1:]]).max(-1)  # of the next observation, where the return is cut
    returns = targets.pixel_control_targets(changes, following, ends[0], cut, discount=0.0)
    return losses.pc_loss(window.steps["action"], returns, q, where=mask)[0]


params, learn, history = agent.init(keys[2], carry[1]), jax.jit(jax.value_and_grad(loss)), []
opt_state = optimizer.init(params)
for key in jax.random.split(keys[3], 300):
    value, gradients = learn(params, key)
    updates, opt_state = optimizer.update(gradients, opt_state)
    params, history = optax.apply_updates(params, updates), [*history, value]
print(f"pixel_control: loss {history[0]:.3f} at first, then {history[-1]:.4f}")
