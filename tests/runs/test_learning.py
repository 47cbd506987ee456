"""Learning runs of a minute or more, on real environments, as a user starts them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.envs.trading import optimal_policy
from btnn_jax.runs.agent import make_agent, train
from btnn_jax.runs.progress import Silent
from btnn_jax.runs.scores import score
from btnn_jax.training.backtest import make_backtest
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.modules import make_unreal_policy
from btnn_jax.training.unreal import make_unreal

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]


def learn(tmp_path, env, config, env_params=None):
    """Scores of a run, greedy, sampled and random."""
    result = train(env, config, env_params=env_params, folder=tmp_path / "run", reporter=Silent())
    return score(make_agent(result.run), result.state.params, episodes=128)


def test_breakout_by_the_defaults(tmp_path):
    scores = learn(tmp_path, "Breakout-MinAtar", UnrealConfig())
    assert scores["sampled"].mean_return > 10 * scores["random"].mean_return > 2


def test_catch(tmp_path):
    config = UnrealConfig(total_steps=200_000, pc_cell=(2, 1))
    assert learn(tmp_path, "Catch-bsuite", config)["sampled"].mean_return >= 0.95


@pytest.mark.parametrize(
    ("lstm", "low", "high"), [((128,), 0.95, 1.0), ((), -0.3, 0.3)], ids=["lstm", "none"]
)
def test_a_memory_chain_needs_memory(tmp_path, lstm, low, high):
    config = UnrealConfig(total_steps=150_000, pc_weight=0, lstm=lstm)
    scores = learn(tmp_path, "MemoryChain-bsuite", config, {"memory_length": 10})
    assert low <= scores["sampled"].mean_return <= high
    assert low <= scores["greedy"].mean_return <= high


@pytest.mark.parametrize("core", ["gru", "mingru", "lru"])
def test_cores_remember_a_chain(tmp_path, core):
    config = UnrealConfig(total_steps=150_000, pc_weight=0, core=core)
    scores = learn(tmp_path, "MemoryChain-bsuite", config, {"memory_length": 10})
    assert scores["sampled"].mean_return >= 0.95


PERIOD = 256
TRADER = UnrealConfig(
    num_envs=64, rollout_length=64, total_steps=560_000, epochs=4, entropy_beta=0.3, entropy_beta_final=0.0,
    hidden=(64,), lstm=(), noisy=False, pc_weight=0, vr_weight=0, rp_weight=0, learning_rate=1e-3,
    normalize_returns=False,
)  # fmt: skip


def sine(phase):
    params = {"period": float(PERIOD), "length": 4096, "phase": phase}
    episodes = {"episode_length": 2 * PERIOD, "drawdown": 1.0, "reward_scale": 1000.0}
    return envs.make("trading", data="sine", data_params=params, commission=1e-4, **episodes)


def test_a_trained_agent_earns_nine_tenths_of_what_can_be_earned_on_a_sine():
    learned, unseen = sine(0.0), sine(np.pi / PERIOD)  # half a bar later: no price that it has learned from
    policy = make_unreal_policy(TRADER, learned)
    init, step, *_ = make_unreal(TRADER, learned, policy=policy)
    state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step, donate_argnums=0)
    for _ in range(TRADER.num_updates):
        state, _ = step(state)

    starts = unseen.starts[0] + np.arange(0, PERIOD, 16)
    best = [optimal_policy(unseen, int(start)).equity - unseen.initial_cash for start in starts]

    def profit(start, key):
        env = dataclasses.replace(unseen, starts=(start, start))
        return make_backtest(env, policy, greedy=False)(state.params, key).equity[-1] - unseen.initial_cash

    keys = jax.random.split(jax.random.key(1), len(starts))
    earned = jax.jit(jax.vmap(profit))(jnp.asarray(starts), keys)
    assert float(jnp.sum(earned)) > 0.9 * sum(best)
