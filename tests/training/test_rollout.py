import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.envs import TimeStep, auto_reset
from btnn_jax.ops import categorical
from btnn_jax.ops.pixel_change import pixel_change_2d_estimator
from btnn_jax.policies import init_params, make_policy
from btnn_jax.training.rollout import make_rollout

B, T = 4, 12


class Counter:
    """Counts its steps; an episode lasts 3 to 6 steps and ends both ways."""

    name, action_depths = "counter", 2
    observation = jax.ShapeDtypeStruct((2,), jnp.float32)

    def reset(self, key):
        length = jax.random.randint(key, (), 3, 7)
        return (jnp.zeros((), jnp.int32), length), jnp.stack([jnp.zeros(()), length.astype(jnp.float32)])

    def step(self, key, state, action):
        count, length = state[0] + 1, state[1]
        end = count == length
        observation = jnp.stack([count, length]).astype(jnp.float32)
        step = TimeStep(
            observation, count.astype(jnp.float32), end & (length > 4), end & (length <= 4), observation
        )
        return auto_reset(key, self.reset, (count, length), step)


def start(env, seed=0, **fields):
    cell = fields.pop("pc_cell", None)
    policy = make_policy(
        env.action_depths,
        env.observation,
        hidden=(8,),
        lstm=(8,),
        pixel_control=False,
        reward_prediction=False,
    )
    reset, rollout = make_rollout(env, policy, B, T, pc_cell=cell)
    params_key, actors_key = jax.random.split(jax.random.key(seed))
    return policy, init_params(policy, params_key, env.observation), reset(actors_key), jax.jit(rollout)


@pytest.fixture(scope="module")
def two_rollouts(compiled):
    """A policy, its parameters, and what two rollouts in a row gave."""
    policy, params, actors, rollout = start(Counter(), seed=1)
    noise_key = jax.random.key(9)
    middle, first, first_last = rollout(params, actors, noise_key)
    before = len(compiled)
    end, second, _ = rollout(params, middle, noise_key)
    assert len(compiled) == before > 0  # the second call compiles nothing
    return policy, params, (actors, middle, end), (first, second), first_last, noise_key


def test_the_second_rollout_goes_on_where_the_first_ended(two_rollouts):
    _, _, actors, rollouts, _, _ = two_rollouts
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *rollouts)
    count, length = both.inputs.observation[..., 0], both.inputs.observation[..., 1]
    np.testing.assert_array_equal(both.inputs.reset, count == 0)
    np.testing.assert_array_equal(both.reward, count + 1)
    np.testing.assert_array_equal(both.terminated | both.truncated, count + 1 == length)
    np.testing.assert_array_equal(count[1:], jnp.where((count + 1 == length)[:-1], 0, count[:-1] + 1))
    np.testing.assert_array_equal(both.inputs.last_action[1:], both.action[:-1])
    np.testing.assert_array_equal(both.inputs.last_reward[1:], both.reward[:-1])
    # as many resets as ends of episodes
    assert both.inputs.reset[1:].sum() == (both.terminated | both.truncated)[:-1].sum() > 10
    assert not np.array_equal(actors[0].keys, actors[1].keys)


def test_the_stored_core_is_the_one_before_the_rollout(two_rollouts):
    policy, params, actors, rollouts, _, noise_key = two_rollouts
    for before, after, record in zip(actors[:-1], actors[1:], rollouts, strict=True):
        output, core = policy.apply({"params": params}, record.inputs, before.core, rngs={"noise": noise_key})
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), core, after.core)
        # with the noise held, the ratio is 1
        np.testing.assert_allclose(
            categorical.log_prob(output.logits, record.action),
            categorical.log_prob(record.logits, record.action),
            rtol=1e-5,
            atol=1e-6,
        )
        np.testing.assert_allclose(output.value, record.value, rtol=1e-5, atol=1e-6)


def test_only_a_truncated_step_has_a_final_value(two_rollouts):
    policy, params, actors, (first, _), last_value, noise_key = two_rollouts
    np.testing.assert_array_equal(first.final_value != 0, first.truncated)
    # It is what the agent would have said, had the episode gone on.
    places = [(t, b) for t, b in np.argwhere(first.truncated) if t + 1 < T]
    assert {int(first.action[place]) for place in places} == {0, 1}
    for t, b in places:
        inputs = jax.tree.map(lambda x, t=t, b=b: x[: t + 2, b : b + 1], first.inputs)
        count, length = first.inputs.observation[t, b]
        inputs = inputs._replace(
            observation=inputs.observation.at[t + 1, 0].set(jnp.stack([count + 1, length])),
            reset=inputs.reset.at[t + 1].set(False),
        )
        core = jax.tree.map(lambda x, b=b: x[b : b + 1], actors[0].core)
        output, _ = policy.apply({"params": params}, inputs, core, rngs={"noise": noise_key})
        np.testing.assert_allclose(first.final_value[t, b], output.value[t + 1, 0], rtol=1e-5)
    # The value after the last step is the next rollout's first.
    np.testing.assert_allclose(last_value, two_rollouts[3][1].value[0], rtol=1e-5, atol=1e-6)


def test_returns_and_lengths_are_of_whole_episodes(two_rollouts):
    _, _, actors, rollouts, _, _ = two_rollouts
    assert not actors[0].last_length.any()  # none has finished
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *rollouts)
    cut = []
    for steps, after in zip((T, 2 * T), actors[1:], strict=True):
        for b in range(B):
            end = np.argwhere((both.terminated | both.truncated)[:steps, b])[-1, 0]
            length = int(both.inputs.observation[end, b, 1])
            assert after.last_length[b] == length
            assert after.last_return[b] == sum(range(1, length + 1))
            assert after.episode_length[b] == steps - 1 - end
            cut.append(bool(both.truncated[end, b]))
    assert any(cut)
    assert not all(cut)


def test_no_two_environments_share_a_stream():
    _, _, actors, _ = start(envs.make("probe-memory"))
    data = jax.random.key_data(actors.keys)
    assert len(np.unique(data, axis=0)) == B
    _, params, actors, rollout = start(Counter())
    actors, record, _ = rollout(params, actors, jax.random.key(0))
    assert len(np.unique(record.action, axis=1).T) == B


def test_pixel_changes_are_towards_the_final_observation():
    env = envs.make("probe-pixels", limit=5)
    policy = make_policy(
        env.action_depths, env.observation, num_filters=(2,), hidden=(4,), lstm=(), pc_cell=(2, 2)
    )
    reset, rollout = make_rollout(env, policy, B, T, pc_cell=(2, 2))
    actors = reset(jax.random.key(0))
    _, record, _ = jax.jit(rollout)(
        init_params(policy, jax.random.key(1), env.observation), actors, jax.random.key(2)
    )
    frames = record.inputs.observation
    towards = pixel_change_2d_estimator(frames[1:], frames[:-1], stride=(2, 2)) / 255
    done = record.terminated | record.truncated
    same = np.all(np.asarray(record.pixel_change[:-1] == towards), axis=(-2, -1))
    assert np.all(same | done[:-1])
    assert not np.all(same[np.asarray(done[:-1])])
    # an action changes one quadrant, or nothing
    changed = record.pixel_change.reshape(T, B, -1).sum(-1)
    np.testing.assert_array_equal(changed == 0, record.action == 0)
