"""A trading agent against the best that could have been done."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.envs.trading import optimal_policy
from btnn_jax.training.backtest import make_backtest
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.unreal import make_unreal, make_unreal_policy

PERIOD = 256
CONFIG = UnrealConfig(
    num_envs=64, rollout_length=64, total_steps=560_000, epochs=4, entropy_beta=0.3, entropy_beta_final=0.0,
    hidden=(64,), lstm=(), noisy=False, pc_weight=0, vr_weight=0, rp_weight=0,
)  # fmt: skip


@pytest.fixture
def optimized():
    """This is about what is learned, in minutes: with all of the compiler's optimizations."""
    before = jax.config.jax_disable_most_optimizations
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def sine(phase):
    params = {"period": float(PERIOD), "length": 4096, "phase": phase}
    return envs.make(
        "trading", data="sine", data_params=params, episode=2 * PERIOD, drawdown=1.0, commission=1e-4, reward_scale=1000.0
    )  # fmt: skip


@pytest.mark.slow
def test_a_trained_agent_earns_nine_tenths_of_what_can_be_earned_on_a_sine(optimized):
    learned, unseen = sine(0.0), sine(np.pi / PERIOD)  # half a bar later: no price that it has learned from
    policy = make_unreal_policy(CONFIG, learned)
    init, step = make_unreal(CONFIG, learned, policy=policy)
    state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step, donate_argnums=0)
    for _ in range(CONFIG.num_updates):
        state, _ = step(state)

    starts = unseen.starts[0] + np.arange(0, PERIOD, 16)
    best = [optimal_policy(unseen, int(start)).equity - unseen.cash for start in starts]

    def profit(start, key):
        env = dataclasses.replace(unseen, starts=(start, start))
        return make_backtest(env, policy, greedy=False)(state.params, key).equity[-1] - unseen.cash

    keys = jax.random.split(jax.random.key(1), len(starts))
    earned = jax.jit(jax.vmap(profit))(jnp.asarray(starts), keys)
    assert float(jnp.sum(earned)) > 0.9 * sum(best)
