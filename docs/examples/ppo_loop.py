"""PPO in a loop of your own, with memory and final observations of truncated episodes: `python ppo_loop.py`."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from btnn_jax import envs, layers, networks, targets
from btnn_jax.losses import ppo_loss
from btnn_jax.ops.categorical import log_prob

ENV, B, T = envs.make("CartPole-v1"), 32, 64


class Agent(nn.Module):
    @nn.compact
    def __call__(self, x, core, resets):  # x [T, B, D], resets bool [T, B]
        y, core = networks.LSTMNetwork((64,))(x, core, resets=resets)
        return *networks.DenseAACNetwork(2, linear=layers.Linear)(y), core


agent, optimizer = Agent(), optax.adam(3e-3)


def act(params, carry, key):
    state, x, core, reset = carry
    logits, value, core = agent.apply(params, x[None], core, reset[None])
    action = jax.random.categorical(key, logits[0])
    state, step = jax.vmap(ENV.step)(jax.random.split(jax.random.fold_in(key, 1), B), state, action)
    # A truncated step's observation is valued with the memory after it; the next one is another episode's.
    final = agent.apply(params, step.final_observation[None], core, jnp.zeros((1, B), bool))[1][0]
    row = (x, reset, action, log_prob(logits[0], action), value[0], step, final)
    return (state, step.observation, core, step.terminated | step.truncated), row


@jax.jit
def update(params, opt_state, carry, key):
    core = carry[2]
    carry, rows = jax.lax.scan(lambda c, k: act(params, c, k), carry, jax.random.split(key, T))
    x, resets, actions, old, values, step, final = rows
    last = agent.apply(params, carry[1][None], carry[2], carry[3][None])[1][0]
    ends = (step.terminated, step.truncated)
    following = targets.next_values(values, last, step.truncated, final)
    advantages, returns = targets.gae(
        step.reward / 100, values, following, *ends, discount=0.99, lambda_=0.95
    )
    batch = (actions, (advantages - advantages.mean()) / (advantages.std() + 1e-8), returns)
    gradient = jax.grad(
        lambda p: ppo_loss(*batch, *agent.apply(p, x, core, resets)[:2], old_log_probs=old)[0]
    )
    for _ in range(4):
        updates, opt_state = optimizer.update(gradient(params), opt_state)
        params = optax.apply_updates(params, updates)
    return params, opt_state, carry, T * B / jnp.maximum(jnp.sum(ends[0] | ends[1]), 1)


keys = jax.random.split(jax.random.key(0), 80)
state, x = jax.vmap(ENV.reset)(jax.random.split(keys[0], B))
carry = (state, x, networks.LSTMNetwork((64,)).initial_state(B), jnp.ones(B, bool))
params = agent.init(keys[1], x[None], carry[2], carry[3][None])
opt_state = optimizer.init(params)
for key in keys[2:]:
    params, opt_state, carry, length = update(params, opt_state, carry, key)
print(f"ppo_loop: return {min(length, 500):.1f}")  # the steps of an episode are CartPole's return
