"""The probes: each gives the answers that it documents, and agents with one fault the ones it warns of."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs

NUM_ENVS = 256


def play(env, policy, num_steps, memory=0):
    """Plays `policy(chance, observation, memory, new) -> (action, memory)`: steps of `[NUM_ENVS, num_steps]`.

    `chance` is two uniform numbers, drawn outside of the loop because that compiles faster.
    """
    key_reset, key_step, key_policy = jax.random.split(jax.random.key(0), 3)
    chances = jax.random.uniform(key_policy, (num_steps, NUM_ENVS, 2))

    def one(state, observation, memory, new, key, chance):
        action, memory = policy(chance, observation, memory, new)
        state, step = env.step(key, state, action)
        return (state, step.observation, memory, step.terminated | step.truncated), (
            observation,
            action,
            step,
        )

    @jax.jit
    def run(keys_reset, keys_step, chances):
        full = functools.partial(jnp.full, NUM_ENVS)
        start = (*jax.vmap(env.reset)(keys_reset), full(memory, jnp.int32), full(True))
        _, out = jax.lax.scan(lambda carry, xs: jax.vmap(one)(*carry, *xs), start, (keys_step, chances))
        return out

    out = run(
        jax.random.split(key_reset, NUM_ENVS), jax.random.split(key_step, (num_steps, NUM_ENVS)), chances
    )
    return jax.tree.map(lambda leaf: np.asarray(leaf).swapaxes(0, 1), out)


def at_random(env):
    def policy(chance, observation, memory, new):
        del observation, new
        leaves, structure = jax.tree.flatten(env.action_depths)
        actions = [(chance[i] * depth).astype(jnp.int32) for i, depth in enumerate(leaves)]
        return jax.tree.unflatten(structure, actions), memory

    return policy


@functools.cache
def random_play(name):
    """`(observation, action, step)` of a probe as it comes; shared, as compiling costs more than playing."""
    env = envs.make(name)
    return play(env, at_random(env), 60)


def returns(step, discount):
    """Discounted sums of rewards to the episode's end, and where that end was seen."""
    total = np.zeros(step.reward.shape[0])
    seen = np.zeros(step.reward.shape[0], bool)
    out, known = np.zeros(step.reward.shape), np.zeros(step.reward.shape, bool)
    for t in reversed(range(step.reward.shape[1])):
        ended = step.terminated[:, t] | step.truncated[:, t]
        total = step.reward[:, t] + discount * np.where(ended, 0, total)
        seen = seen | ended
        out[:, t], known[:, t] = total, seen
    return out, known


@pytest.mark.parametrize("name", envs.PROBES)
def test_every_probe_keeps_the_protocol(name):
    env = envs.make(name)
    assert env.name == name
    observation, action, step = random_play(name)
    for tree in (observation, step.observation, step.final_observation):
        got = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[2:], leaf.dtype), tree)
        assert got == env.observation
    assert jax.tree.structure(action) == jax.tree.structure(env.action_depths)
    assert (step.reward.dtype, step.terminated.dtype, step.truncated.dtype) == (np.float32, bool, bool)
    assert not np.any(step.terminated & step.truncated)
    ended = step.terminated | step.truncated
    assert ended.any()
    for first, last in zip(
        jax.tree.leaves(step.observation), jax.tree.leaves(step.final_observation), strict=True
    ):
        np.testing.assert_array_equal(first[~ended], last[~ended])
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(env.reset(jax.random.key(0))))


def test_constant():
    _, _, step = random_play("probe-constant")
    assert np.all(step.reward == 1)
    assert step.terminated.all()


def test_observation():
    observation, _, step = random_play("probe-observation")
    np.testing.assert_array_equal(step.reward, observation[..., 0])
    assert step.terminated.all()
    assert abs(step.reward.mean()) < 0.05


def test_discount():
    observation, _, step = random_play("probe-discount")
    time = np.argmax(observation, axis=-1)
    np.testing.assert_array_equal(time, np.tile(np.arange(5), (NUM_ENVS, 12)))
    np.testing.assert_allclose(returns(step, 0.9)[0], 0.9 ** (4 - time), rtol=1e-6)


def test_action():
    _, action, step = random_play("probe-action")
    np.testing.assert_array_equal(step.reward, action == 1)
    assert step.reward.mean() == pytest.approx(1 / 4, abs=0.02)


def test_choice():
    observation, action, step = random_play("probe-choice")
    np.testing.assert_array_equal(step.reward, action == np.argmax(observation, axis=-1))
    assert step.reward.mean() == pytest.approx(1 / 3, abs=0.02)


def recall(forgets):
    """Answers with the last cue seen; a right one forgets it at an episode's start."""

    def policy(chance, observation, memory, new):
        del chance
        memory = jnp.where(new & forgets, 0, memory)
        cue = observation[0] + 2 * observation[1]
        memory = jnp.where(cue > 0, cue.astype(jnp.int32), memory)
        return memory, memory

    return policy


def test_memory():
    def mean_return(step):
        return step.reward.sum() / step.terminated.sum()

    env = envs.make("probe-memory")
    assert mean_return(play(env, recall(forgets=True), 60, memory=1)[-1]) == 1
    assert mean_return(play(env, recall(forgets=False), 60, memory=1)[-1]) == pytest.approx(2 / 3, abs=0.04)
    assert mean_return(random_play("probe-memory")[-1]) == pytest.approx(1 / 3, abs=0.04)


def test_memory_shows_the_cue_only_at_first_and_asks_only_at_last():
    observation, _, step = random_play("probe-memory")
    time = np.arange(60) % 5
    last = np.tile(time == 4, (NUM_ENVS, 1))
    assert not observation[:, time > 0, :2].any()
    np.testing.assert_array_equal(observation[..., 2], last)
    np.testing.assert_array_equal(step.terminated, last)
    assert not step.reward[~last].any()
    # Three kinds of episodes: neither cue, the first or the second.
    assert len(np.unique(observation[:, 0], axis=0)) == 3


def learnt_value(step, observation, discount, bootstrap):
    """The fixed point of one-step targets for the value `w * observation`."""
    w = 0.0
    done = step.terminated[..., None] | (step.truncated[..., None] & (bootstrap == "nothing"))
    after = step.observation if bootstrap == "observation" else step.final_observation
    for _ in range(300):
        target = step.reward[..., None] + discount * np.where(done, 0, w * after)
        w = np.mean(target * observation)
    return w


def test_truncation():
    observation, _, step = random_play("probe-truncation")
    assert not step.terminated.any()
    np.testing.assert_array_equal(step.truncated, np.tile(np.arange(60) % 10 == 9, (NUM_ENVS, 1)))
    right = 1 / (1 - 0.9)
    value = {kind: learnt_value(step, observation, 0.9, kind) for kind in ("final", "nothing", "observation")}
    assert value["final"] == pytest.approx(right, rel=1e-4)
    assert value["nothing"] == pytest.approx(0.53 * right, rel=0.01)
    assert value["observation"] == pytest.approx(0.53 * right, rel=0.05)
    whole, _ = returns(step, 0.9)
    assert np.mean(whole * observation[..., 0]) == pytest.approx(0.41 * right, rel=0.01)


def test_pixels():
    observation, action, step = random_play("probe-pixels")
    assert set(np.unique(observation)) == {0, 255}
    change = np.abs(step.final_observation.astype(float) - observation)[..., 0] / 255
    half = 5
    for k, (y, x) in enumerate([(0, 0), (0, half), (half, 0), (half, half)], start=1):
        quadrant = change[:, :, y : y + half, x : x + half]
        np.testing.assert_array_equal(
            quadrant, np.broadcast_to((action == k)[..., None, None], quadrant.shape)
        )
    assert set(np.unique(action)) == set(range(5))
    assert not step.reward.any()
    np.testing.assert_array_equal(step.truncated, np.tile(np.arange(60) % 20 == 19, (NUM_ENVS, 1)))


def test_heads():
    observation, action, step = random_play("probe-heads")
    right = {head: action[head] == np.argmax(observation[head], axis=-1) for head in ("left", "right")}
    np.testing.assert_array_equal(step.reward, 0.5 * right["left"] + 0.5 * right["right"])
    assert step.reward.mean() == pytest.approx(1 / 4 + 1 / 6, abs=0.02)
    # The two streams are independent.
    both = np.stack([np.argmax(observation[head], axis=-1).ravel() for head in ("left", "right")])
    assert len(np.unique(both, axis=1).T) == 6


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("probe-memry", {}, r"unknown environment 'probe-memry'; did you mean 'probe-memory'"),
        ("probe-memory", {"lenght": 3}, r"parameter of probe-memory 'lenght'; did you mean 'length'\?"),
        ("probe-constant", {"length": 3}, r"'length'; known: none"),
        ("probe-memory", {"length": 1}, "length must be at least 2; got 1"),
        ("probe-discount", {"length": 0}, "length must be at least 1; got 0"),
        ("probe-action", {"num_actions": 1}, "num_actions must be at least 2; got 1"),
        ("probe-truncation", {"limit": 0}, "limit must be at least 1; got 0"),
        ("probe-pixels", {"size": 9}, "size must be even.*got 9"),
    ],
)
def test_what_makes_no_sense_is_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name, **params)


def test_every_probe_says_its_right_answer():
    for make in envs.PROBES.values():
        assert "Right answer" in inspect.getdoc(make)
