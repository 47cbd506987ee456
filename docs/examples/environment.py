"""An environment of your own, with a dict of observations and a dict of actions, and an agent that learns it.

python environment.py
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from btnn_jax.envs import TimeStep, auto_reset
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.unreal import make_unreal


class State(NamedTuple):
    """A place, float32 `[2]`, and how many steps led there, int32 `[]`."""

    place: jax.Array
    time: jax.Array


class Homeward:
    """A walk on a plane, a step along each axis at a time; the reward is how much nearer home it came."""

    def __init__(self, length=20):
        self.name, self.length = "homeward", length
        self.observation = {
            name: jax.ShapeDtypeStruct((n,), jnp.float32) for name, n in (("place", 2), ("left", 1))
        }
        self.action_depths = {"x": 3, "y": 3}  # back, stay, forth

    def reset(self, key):
        """Starts an episode."""
        state = State(jax.random.uniform(key, (2,), minval=-10.0, maxval=10.0), jnp.zeros((), jnp.int32))
        return state, self.observe(state)

    def step(self, key, state, action):
        """Walks, and starts the next episode at home or when the time is up."""
        moves = jnp.stack([action["x"], action["y"]]).astype(jnp.float32) - 1.0
        after = State(state.place + moves, state.time + 1)
        before, now = jnp.linalg.norm(state.place), jnp.linalg.norm(after.place)
        cut, seen = (now >= 1.0) & (after.time == self.length), self.observe(after)
        return auto_reset(key, self.reset, after, TimeStep(seen, before - now, now < 1.0, cut, seen))

    def observe(self, state):
        """What the agent sees of a state."""
        return {"place": state.place / 10.0, "left": (1.0 - state.time / self.length)[None]}


config = UnrealConfig(total_steps=100_000, num_envs=32, rollout_length=32, lstm=(), pc_weight=0)
init, step, *_ = make_unreal(config, Homeward())  # an error here names what an environment has got wrong
state, step = jax.jit(init)(jax.random.key(0)), jax.jit(step, donate_argnums=0)
for _ in range(config.num_updates):
    state, metrics = step(state)
print(f"environment: return {metrics['episode_return']:.2f}")
