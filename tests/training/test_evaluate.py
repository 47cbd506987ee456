"""Episodes that end at different times, and each in its own way."""

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax.envs import TimeStep, auto_reset
from btnn_jax.training.evaluate import make_evaluate_random


class Countdown:
    """An episode of 1 to 6 steps, with a reward of 1 in each; an odd one is cut."""

    name, action_depths = "countdown", 2
    observation = jax.ShapeDtypeStruct((1,), jnp.float32)

    def reset(self, key):
        length = jax.random.randint(key, (), 1, 7)
        return (length, length), jnp.zeros(1)

    def step(self, key, state, action):
        left, length = state[0] - 1, state[1]
        end, odd = left == 0, length % 2 == 1
        step = TimeStep(jnp.zeros(1), jnp.ones(()), end & ~odd, end & odd, jnp.zeros(1))
        return auto_reset(key, self.reset, (left, length), step)


def test_what_comes_after_an_episode_does_not_count():
    episodes = jax.jit(make_evaluate_random(Countdown(), num_episodes=64, max_steps=50))(jax.random.key(0))
    assert set(np.asarray(episodes.lengths)) == set(range(1, 7))
    np.testing.assert_array_equal(episodes.returns, episodes.lengths)
    assert episodes.finished.all()
