"""The adapter to gymnax: the protocol, the flags at an episode's end, and what is refused."""

import sys

import gymnax
import jax
import numpy as np
import pytest

from btnn_jax import envs

SUPPORTED = [
    ("Breakout-MinAtar", {}, (10, 10, 4), bool),
    ("Asterix-MinAtar", {}, (10, 10, 4), bool),
    ("Freeway-MinAtar", {"use_minimal_action_set": False}, (10, 10, 7), bool),
    ("SpaceInvaders-MinAtar", {}, (10, 10, 6), bool),
    ("CartPole-v1", {"max_steps_in_episode": 7}, (4,), np.float32),
    ("Acrobot-v1", {"max_steps_in_episode": 9}, (6,), np.float32),
    ("Catch-bsuite", {"rows": 6}, (6, 5), np.float32),
    ("MemoryChain-bsuite", {"memory_length": 3, "num_bits": 2}, (4,), np.float32),
    ("DeepSea-bsuite", {"size": 5}, (5, 5), np.float32),
    ("FourRooms-misc", {"max_steps_in_episode": 6}, (4,), np.float32),
]


def lenient_step(env, key, state, action):
    """What gymnax itself gives for the same step."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return env.environment.step(key, state, action, env.params)


def random_play(env, num_steps):
    """`key -> (states, observations, actions, steps, gymnax's own steps)`, each before or of every step."""

    def body(carry, _):
        key, state, observation = carry
        key, key_action, key_step = jax.random.split(key, 3)
        action = jax.random.randint(key_action, (), 0, env.action_depths)
        theirs = lenient_step(env, jax.random.clone(key_step), state, action)
        new_state, step = env.step(key_step, state, action)
        return (key, new_state, step.observation), (state, observation, action, step, theirs)

    def run(key):
        key_reset, key = jax.random.split(key)
        return jax.lax.scan(body, (key, *env.reset(key_reset)), length=num_steps)[1]

    return run


@pytest.mark.parametrize(("name", "params", "shape", "dtype"), SUPPORTED)
def test_the_protocol_holds_under_strict_rules(name, params, shape, dtype):
    env = envs.make(name, **params)
    assert env.name == name
    assert env.observation == jax.ShapeDtypeStruct(shape, dtype)
    # Tracing shows that a scan can carry the state; compiling all of gymnax would take a minute.
    states, _, _, step, _ = jax.eval_shape(random_play(env, 3), jax.random.key(0))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(states))
    for leaf in (step.observation, step.final_observation):
        assert (leaf.shape[1:], leaf.dtype) == (shape, dtype)
    assert (step.reward.dtype, step.terminated.dtype, step.truncated.dtype) == (np.float32, bool, bool)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("Breakout-MinAtar", {}),
        ("CartPole-v1", {"max_steps_in_episode": 7}),
        ("MemoryChain-bsuite", {"memory_length": 3}),
        ("FourRooms-misc", {"max_steps_in_episode": 6}),
    ],
)
def test_every_step_is_gymnax_own(name, params):
    *_, step, theirs = jax.jit(random_play(envs.make(name, **params), 60))(jax.random.key(0))
    observation, _, reward, terminated, truncated, info = theirs
    # Equal as numbers: bool frames have lost nothing.
    np.testing.assert_allclose(np.float32(step.observation), observation, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.float32(step.final_observation), info["final_observation"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(step.reward, reward, rtol=1e-6)
    np.testing.assert_array_equal(step.terminated, terminated)
    np.testing.assert_array_equal(step.truncated, truncated & ~terminated)
    assert np.any(step.terminated | step.truncated)


def test_a_cut_episode_gives_its_last_observation_and_the_next_ones_first():
    env = envs.make("CartPole-v1", max_steps_in_episode=4)
    states, observations, actions, step, _ = jax.jit(random_play(env, 12))(jax.random.key(0))
    cut = np.arange(12) % 4 == 3
    np.testing.assert_array_equal(step.truncated, cut)
    assert not step.terminated.any()
    np.testing.assert_array_equal(states.time, np.arange(12) % 4)

    # Without a limit the same steps go on where these are cut.
    endless = envs.make("CartPole-v1")
    _, on = jax.jit(jax.vmap(endless.step))(jax.random.split(jax.random.key(1), 12), states, actions)
    assert not on.truncated.any()
    np.testing.assert_allclose(step.final_observation, on.observation, rtol=1e-5, atol=1e-6)
    # What comes next is the next episode's.
    np.testing.assert_array_equal(step.observation[:-1], observations[1:])
    np.testing.assert_array_equal(np.all(step.observation == step.final_observation, axis=-1), ~cut)


def test_terminated_comes_before_truncated():
    # Both on the fourth step: the task is over after memory_length + 1.
    env = envs.make("MemoryChain-bsuite", memory_length=3, max_steps_in_episode=4)
    *_, step, theirs = jax.jit(random_play(env, 8))(jax.random.key(0))
    ends = np.arange(8) % 4 == 3
    np.testing.assert_array_equal(theirs[4], ends)
    np.testing.assert_array_equal(step.terminated, ends)
    assert not step.truncated.any()


def test_parameters_reach_gymnax_wherever_it_keeps_them():
    env = envs.make("MemoryChain-bsuite", memory_length=20, num_bits=3)
    assert env.params.memory_length == 20
    assert env.environment.num_bits == 3
    # A default that depends on the constructor follows it.
    assert envs.make("DeepSea-bsuite", size=6).params.max_steps_in_episode == 6


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "breakout-minatar",
            {},
            r"environment 'breakout-minatar'; did you mean 'Breakout-MinAtar'\?$",
        ),
        ("catch", {}, r"unknown environment 'catch'; did you mean 'Catch-bsuite'\?$"),
        ("xyz", {}, r"unknown environment 'xyz'; known: A"),
        ("CartPole-v1", {"gravty": 1.0}, r"parameter of CartPole-v1 'gravty'; did you mean 'gravity'\?"),
        ("Pendulum-v1", {}, r"Pendulum-v1 has actions in Box.*only discrete"),
    ],
)
def test_what_is_unknown_is_named(name, params, message):
    with pytest.raises(ValueError, match=message) as caught:
        envs.make(name, **params)
    assert "\n" not in str(caught.value)


def test_a_missing_gymnax_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'btnn-jax\[train\]'"):
        envs.make("CartPole-v1")
    assert envs.names() == (*envs.PROBES, "trading")
    assert envs.make("probe-constant").name == "probe-constant"


def test_names_are_the_probes_trading_and_gymnax_own():
    assert set(envs.names()) == {*envs.PROBES, "trading", *gymnax.registered_envs}
