"""Stacked LSTMs train, replay and play as any policy does."""

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax.envs.probes import Probe
from btnn_jax.policies import StackedLSTMPolicy
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.evaluate import make_evaluate
from btnn_jax.training.modules import make_unreal_policy
from btnn_jax.training.unreal import make_unreal

CONFIG = UnrealConfig(
    policy="stacked_lstm",
    algorithm="a2c",
    num_envs=4,
    rollout_length=4,
    total_steps=16 * 100,
    hidden=(8,),
    lstm=(6, 8),
    num_filters=(2,),
    replay_length=16,
    replay_batch=2,
    rp_batch=4,
)


def walk():
    """A price that rises or falls, and a position that is paid for it; an episode is 6 steps long."""

    def observe(state):
        history, position, _ = state
        return {"external": history[:, None], "internal": position[None]}

    def move(state, action):
        history, position, time = state
        step = jnp.where(time % 2 == 0, 1.0, -1.0)
        position = action.astype(jnp.float32) - 1
        history = jnp.concatenate([history[1:], history[-1:] + step])
        return (history, position, time + 1), step * position, time == 5, jnp.bool_(False)

    return Probe(
        "walk",
        3,
        start=lambda key: (jax.random.normal(key, (12,)), jnp.float32(0), jnp.int32(0)),
        observe=observe,
        move=move,
    )


def test_trains_with_all_tasks_and_plays():
    env = walk()
    policy = make_unreal_policy(CONFIG, env)
    assert isinstance(policy, StackedLSTMPolicy)
    init, step, *_ = make_unreal(CONFIG, env, policy=policy)
    state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step)
    assert jax.tree.map(lambda x: x.shape, state.actors.core) == (((4, 6),) * 2, ((4, 8),) * 2)
    start = state.params
    for _ in range(3):
        state, metrics = step(state)
    assert {"pixel_control_loss", "value_replay_loss", "reward_prediction_loss"} <= set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["skipped"] == 0
    # The external stream alone is watched, whose last price moves by one: (12 - 2) / 2 cells.
    assert state.replay.steps.pixel_change.shape[-2:] == (5, 1)
    still = jax.tree_util.tree_map_with_path(
        lambda path, a, b: jax.tree_util.keystr(path) if np.array_equal(a, b) else None, start, state.params
    )
    assert jax.tree.leaves(still) == []
    evaluate = jax.jit(make_evaluate(env, policy, num_episodes=3, greedy=True, max_steps=10))
    assert np.array_equal(evaluate(state.params, jax.random.key(1)).lengths, [6, 6, 6])
