"""A loaded agent acts as the evaluation of its run does."""

import dataclasses

import jax
import numpy as np
import pytest

from btnn_jax import envs, load_agent
from btnn_jax.runs.agent import train
from btnn_jax.runs.folder import RunError
from btnn_jax.runs.progress import Silent
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.evaluate import make_evaluate

CONFIG = UnrealConfig(
    num_envs=4, rollout_length=8, total_steps=32 * 6, epochs=1, minibatches=1, hidden=(8,), lstm=(8,), pc_weight=0,
    rp_weight=0, replay_length=16, replay_batch=2, learning_rate=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train("probe-memory", CONFIG, folder=folder, reporter=Silent(), env_params={"length": 5})


def test_it_plays_the_episodes_of_the_evaluation(trained):
    env = envs.make("probe-memory", length=5)
    agent = load_agent(trained.folder)
    evaluate = jax.jit(make_evaluate(env, agent.policy, num_episodes=1, greedy=True))
    step = jax.jit(env.step)
    for seed in range(6):
        expected = evaluate(trained.state.params, jax.random.key(seed))
        reset_key, key = jax.random.split(jax.random.key(seed))
        state, observation = env.reset(jax.random.split(reset_key, 1)[0])
        total, length, reward, done = 0.0, 0, 0.0, False
        agent.reset()
        while not done:
            key, _, env_key = jax.random.split(key, 3)
            action = agent.act(observation, reward)
            assert (action.shape, action.dtype) == ((), np.int32)
            state, time_step = step(jax.random.split(env_key, 1)[0], state, action)
            observation, reward = np.asarray(time_step.observation), float(time_step.reward)
            total, length = total + reward, length + 1
            done = bool(time_step.terminated | time_step.truncated)
        assert (total, length) == (expected.returns[0], expected.lengths[0])


def test_several_environments_are_acted_in_as_each_alone(trained):
    agent = load_agent(trained.folder)
    observations = np.random.default_rng(0).random((6, 3, *agent.observation.shape), np.float32)
    rewards = np.random.default_rng(1).random((6, 3), np.float32)
    ended = np.zeros((6, 3), bool)
    ended[3, 1] = True
    agent.reset(3)
    together = [agent.act(*x) for x in zip(observations, rewards, ended, strict=True)]
    for i in range(3):
        agent.reset()
        alone = [agent.act(*x) for x in zip(observations[:, i], rewards[:, i], ended[:, i], strict=True)]
        np.testing.assert_array_equal(alone, np.stack(together)[:, i])


def test_values_and_probabilities_leave_the_memory_as_it_is(trained):
    agent = load_agent(trained.folder, greedy=False, sample_seed=3)
    observation = np.ones(agent.observation.shape, np.float32)
    agent.act(observation)
    first, value = agent.probabilities(observation, 1.0), agent.value(observation, 1.0)
    np.testing.assert_array_equal(first, agent.probabilities(observation, 1.0))
    np.testing.assert_allclose(first.sum(), 1, rtol=1e-6)
    assert value.shape == ()
    agent.act(observation, 1.0)
    assert not np.array_equal(first, agent.probabilities(observation, 1.0))


def test_sampled_actions_follow_the_probabilities(trained):
    agent = load_agent(trained.folder, greedy=False)
    agent.reset(4000)
    observations = np.ones((4000, *agent.observation.shape), np.float32)
    shares = np.bincount(agent.act(observations), minlength=3) / 4000
    agent.reset(1)
    np.testing.assert_allclose(shares, agent.probabilities(observations[:1])[0], atol=0.04)


def test_an_observation_of_another_shape_is_one_line(trained):
    agent = load_agent(trained.folder)
    with pytest.raises(ValueError, match=r"expected an observation of shape .* got \(7,\); see reset"):
        agent.act(np.zeros(7, np.float32))


def test_an_agent_of_each_seed(tmp_path):
    config = dataclasses.replace(CONFIG, lstm=())
    run = train("probe-choice", config, seed=5, seeds=2, folder=tmp_path / "run", reporter=Silent())
    for index in (0, 1):
        jax.tree.map(
            lambda mine, every, index=index: np.testing.assert_array_equal(mine, every[index]),
            load_agent(run.folder, seed=5 + index).params,
            run.state.params,
        )
    with pytest.raises(RunError, match="agents of the seeds 5 to 6, got 7"):
        load_agent(run.folder, seed=7)
