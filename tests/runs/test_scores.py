"""Scores: what is averaged over what, and which agent plays how."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.policies import init_params
from btnn_jax.runs.agent import make_agent
from btnn_jax.runs.checkpoint import Checkpoints
from btnn_jax.runs.folder import CHECKPOINTS, RunError
from btnn_jax.runs.keys import key_of
from btnn_jax.runs.run import Run, create_run
from btnn_jax.runs.scores import score, score_run, summarise
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.evaluate import Episodes
from btnn_jax.training.modules import make_unreal_policy

CONFIG = UnrealConfig(
    algorithm="a2c", num_envs=2, rollout_length=4, hidden=(4,), lstm=(), pc_weight=0, vr_weight=0, rp_weight=0,
    noisy=False,
)  # fmt: skip


def test_the_error_is_over_episodes_or_over_agents():
    def played(returns, finished):
        returns = np.array(returns, np.float32)
        return Episodes(returns, np.full(returns.shape, 2), np.broadcast_to(finished, returns.shape))

    one = summarise(played([1, 3], [True, False]))
    assert one == (2, 2.0, pytest.approx(1.0), 2.0, 1)
    two = summarise(played([[0, 2, 1], [2, 4, 3]], [False, True, False]))
    assert two == (6, 2.0, pytest.approx(1.0), 2.0, 4)


def scores_of(name, **arguments):
    env = envs.make(name)
    policy = make_unreal_policy(CONFIG, env)
    params = init_params(policy, jax.random.key(0), env.observation)
    return score(SimpleNamespace(env=env, policy=policy), params, **arguments)


def test_greedy_is_one_action_and_sampled_are_all():
    scores = scores_of("probe-action", episodes=64)
    assert scores["greedy"].mean_return in (0, 1)
    assert 0 < scores["sampled"].mean_return < 1
    assert 0 < scores["random"].mean_return < 1


def test_every_agents_episodes_are_cut():
    for one in scores_of("probe-discount", episodes=3, max_steps=2).values():
        assert (one.mean_length, one.unfinished) == (2, 3)


def test_the_best_checkpoint_is_played_where_asked(tmp_path):
    folder = create_run(tmp_path / "run", Run("probe-action", CONFIG))
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        for update, one in ((1, 2.0), (2, 1.0)):
            checkpoints.save(update, {"x": jnp.zeros(1)}, score=one)
    for best, number in ((True, 1), (False, 2)):
        with pytest.raises(RunError, match=rf"checkpoints/{number}, .* is not of this run"):
            score_run(folder, best=best)


def test_the_file_says_after_how_many_steps(tmp_path):
    run = Run("probe-action", CONFIG)
    folder, agent = create_run(tmp_path / "run", run), make_agent(run)
    state = jax.jit(agent.init)(0).replace(update=jnp.int32(3))
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(3, state)
    score_run(folder, episodes=2)
    assert json.loads((folder / "evaluation.json").read_text())["steps"] == 3 * 2 * 4


def test_an_evaluation_does_not_play_the_episodes_that_training_began_with():
    data = {
        name: jax.random.key_data(key_of(0, name)).tolist()
        for name in ("evaluation", "backtest", "autoencoder")
    }
    assert (
        len({tuple(x) for x in data.values()} | {tuple(jax.random.key_data(jax.random.key(0)).tolist())}) == 4
    )
