"""Probe environments: each isolates one ability of an agent, and its right answer can be read off.

An agent that fails on one of them is wrong in one known place: the value head, the use of observations, the
discount, the policy gradient, the memory, the bootstrap at a time limit, pixel control, or several heads. All
episodes are a few steps long, so an agent learns a probe within seconds.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from btnn_jax._types import PyTree
from btnn_jax.envs.base import TimeStep, auto_reset

__all__ = [
    "Probe",
    "action",
    "choice",
    "constant",
    "discount",
    "heads",
    "memory",
    "observation",
    "pixels",
    "truncation",
]


class _Move(NamedTuple):
    """The effect of an action on the state."""

    state: PyTree
    reward: Array  # float32 []
    terminated: Array | bool = False  # bool []
    truncated: Array | bool = False  # bool []


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """An environment made of three functions.

    Attributes:
        name: the name that `btnn_jax.envs.make` knows it by.
        action_depths: the number of actions, or a dict of them.
        start: `key -> state`, draws an episode.
        observe: `state -> observation`.
        move: `(state, action) -> (state, reward, terminated, truncated)`.
    """

    name: str
    action_depths: int | dict
    start: Callable[[Array], PyTree]
    observe: Callable[[PyTree], PyTree]
    move: Callable[[PyTree, PyTree], _Move]

    @functools.cached_property
    def observation(self) -> PyTree:
        """The observation's structure, of `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(lambda key: self.reset(key)[1], jax.random.key(0))

    def reset(self, key: Array) -> tuple[PyTree, PyTree]:
        """Starts an episode: `(state, observation)`. The key is consumed."""
        state = self.start(key)
        return state, self.observe(state)

    def step(self, key: Array, state: PyTree, action: PyTree) -> tuple[PyTree, TimeStep]:
        """Acts, and starts the next episode by itself where this one ended. The key is consumed."""
        state, reward, terminated, truncated = self.move(state, action)
        observation = self.observe(state)
        step = TimeStep(
            observation=observation,
            reward=jnp.asarray(reward, jnp.float32),
            terminated=jnp.asarray(terminated, bool),
            truncated=jnp.asarray(truncated, bool),
            final_observation=observation,
        )
        return auto_reset(key, self.reset, state, step)


def _draw(key: Array, count: int) -> Array:
    return jax.random.randint(key, (), 0, count, jnp.int32)


def _sign(key: Array) -> Array:
    return jax.random.rademacher(key, (1,), jnp.float32)


def constant() -> Probe:
    """Episodes of one step, each with a reward of 1, whatever is done: is a value learnt at all?

    Right answer: the value is 1.
    """
    return Probe(
        "probe-constant",
        2,
        start=lambda key: jnp.zeros((), jnp.int32),
        observe=lambda state: jnp.ones((1,), jnp.float32),
        move=lambda state, action: _Move(state, jnp.float32(1), terminated=True),
    )


def observation() -> Probe:
    """Episodes of one step whose reward is the observation, -1 or 1: does the value depend on what is seen?

    Right answer: the value is `observation[0]`.
    """
    return Probe(
        "probe-observation",
        2,
        start=_sign,
        observe=lambda state: state,
        move=lambda state, action: _Move(state, state[0], terminated=True),
    )


def discount(length: int = 5) -> Probe:
    """One reward of 1 at the end of `length` steps: is the discount right, and does a reward travel back?

    The observation is the time, one-hot `[length]`. Right answer: at time t the value is
    `discount ** (length - 1 - t)`.
    """
    _check_at_least(1, length=length)

    def move(time: Array, action: Array) -> _Move:
        last = time == length - 1
        return _Move(time + 1, last.astype(jnp.float32), terminated=last)

    return Probe(
        "probe-discount",
        2,
        start=lambda key: jnp.zeros((), jnp.int32),
        observe=lambda time: jax.nn.one_hot(time, length, dtype=jnp.float32),
        move=move,
    )


def action(num_actions: int = 4) -> Probe:
    """Episodes of one step in which action 1 of `num_actions` pays 1: does the policy find the better action?

    Right answer: always action 1, with a return of 1; a uniform policy's is `1 / num_actions`.
    """
    _check_at_least(2, num_actions=num_actions)
    return Probe(
        "probe-action",
        num_actions,
        start=lambda key: jnp.zeros((), jnp.int32),
        observe=lambda state: jnp.ones((1,), jnp.float32),
        move=lambda state, action: _Move(state, (action == 1).astype(jnp.float32), terminated=True),
    )


def choice(num_actions: int = 3) -> Probe:
    """Episodes of one step in which the action shown pays 1: does the policy depend on what is seen?

    The observation is the paying action, one-hot `[num_actions]`.

    Right answer: that action, with a return of 1; a policy that does not look gets `1 / num_actions`.
    """
    _check_at_least(1, num_actions=num_actions)
    return Probe(
        "probe-choice",
        num_actions,
        start=lambda key: _draw(key, num_actions),
        observe=lambda cue: jax.nn.one_hot(cue, num_actions, dtype=jnp.float32),
        move=lambda cue, action: _Move(cue, (action == cue).astype(jnp.float32), terminated=True),
    )


class _Memory(NamedTuple):
    cue: Array  # int32 [], 0 is no cue
    time: Array  # int32 []


def memory(length: int = 5) -> Probe:
    """A cue at the first step must be recalled at the last: is the recurrent state kept, and reset in time?

    The observation is `[first cue, second cue, answer now]`, float32. In a third of the episodes no cue is
    shown and the right answer is 0; otherwise it is the cue's number, 1 or 2. A right answer at the last of
    `length` steps pays 1.

    Right answer: a return of 1. Without memory it is at most 1/3. An agent that recalls the last cue it ever
    saw, because its state is not reset at an episode's start, gets 2/3.
    """
    _check_at_least(2, length=length)

    def observe(state: _Memory) -> Array:
        shown = jnp.where(state.time == 0, state.cue, 0)
        return jnp.stack([shown == 1, shown == 2, state.time == length - 1]).astype(jnp.float32)

    def move(state: _Memory, action: Array) -> _Move:
        last = state.time == length - 1
        reward = (last & (action == state.cue)).astype(jnp.float32)
        return _Move(state._replace(time=state.time + 1), reward, terminated=last)

    return Probe(
        "probe-memory",
        3,
        start=lambda key: _Memory(_draw(key, 3), jnp.zeros((), jnp.int32)),
        observe=observe,
        move=move,
    )


class _Truncation(NamedTuple):
    sign: Array  # float32 [1]
    time: Array  # int32 []


def truncation(limit: int = 10) -> Probe:
    """An endless task cut every `limit` steps: is the value at the cut taken from the final observation?

    Every step pays the observation, -1 or 1, which stays for the whole episode.

    Right answer: the value is `observation[0] / (1 - discount)` at every step. At discount 0.9 and limit 10
    an agent that takes the cut for an end learns 0.41 (from whole returns) to 0.53 (from one-step targets) of
    that. So does one that bootstraps from the next episode's first observation, whose sign is independent.
    """
    _check_at_least(1, limit=limit)
    return Probe(
        "probe-truncation",
        2,
        start=lambda key: _Truncation(
            jax.random.rademacher(key, (1,), jnp.float32), jnp.zeros((), jnp.int32)
        ),
        observe=lambda state: state.sign,
        move=lambda state, action: _Move(
            state._replace(time=state.time + 1), state.sign[0], truncated=state.time == limit - 1
        ),
    )


class _Pixels(NamedTuple):
    lit: Array  # bool [4], quadrants in reading order
    time: Array  # int32 []


def pixels(size: int = 10, limit: int = 20) -> Probe:
    """An image whose quadrants are switched by the actions: does pixel control know what an action changes?

    The observation is uint8 `[size, size, 1]`: each quadrant is black (0) or white (255). Action 0 changes
    nothing, action k in 1..4 inverts quadrant k, counted in reading order. No reward; episodes are cut after
    `limit` steps.

    Right answer, without discount: the pixel change that action k brings (in units of full white) is 1 inside
    of quadrant k and 0 elsewhere; that of action 0 is 0 everywhere.
    """
    _check_at_least(1, limit=limit)
    if size < 2 or size % 2:
        raise ValueError(f"size must be even, so that the image has four equal quadrants; got {size}")

    def observe(state: _Pixels) -> Array:
        quadrants = jnp.where(state.lit, 255, 0).astype(jnp.uint8).reshape(2, 2)
        return jnp.repeat(jnp.repeat(quadrants, size // 2, axis=0), size // 2, axis=1)[..., None]

    def move(state: _Pixels, action: Array) -> _Move:
        lit = state.lit ^ (jnp.arange(1, 5) == action)
        return _Move(_Pixels(lit, state.time + 1), jnp.float32(0), truncated=state.time == limit - 1)

    return Probe(
        "probe-pixels",
        5,
        start=lambda key: _Pixels(jax.random.bernoulli(key, shape=(4,)), jnp.zeros((), jnp.int32)),
        observe=observe,
        move=move,
    )


def heads() -> Probe:
    """`choice` twice at once, in a dict of observations and a dict of actions: does each head learn its own?

    The observation is `{"left": [2], "right": [3]}`, one-hot; the actions are `{"left": 2, "right": 3}`. Each
    head that chooses the action shown in its stream pays 1/2.

    Right answer: a return of 1, 1/2 from each head; a policy that does not look gets 1/4 + 1/6.
    """
    depths = {"left": 2, "right": 3}

    def start(key: Array) -> dict[str, Array]:
        key_left, key_right = jax.random.split(key)
        return {"left": _draw(key_left, depths["left"]), "right": _draw(key_right, depths["right"])}

    def observe(cues: dict[str, Array]) -> dict[str, Array]:
        return {head: jax.nn.one_hot(cue, depths[head], dtype=jnp.float32) for head, cue in cues.items()}

    def move(cues: dict[str, Array], action: dict[str, Array]) -> _Move:
        right = [(action[head] == cue).astype(jnp.float32) for head, cue in cues.items()]
        return _Move(cues, jnp.mean(jnp.stack(right)), terminated=True)

    return Probe("probe-heads", depths, start, observe, move)


def _check_at_least(least: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")


PROBES: dict[str, Callable[..., Probe]] = {
    f"probe-{make.__name__}": make
    for make in (constant, observation, discount, action, choice, memory, truncation, pixels, heads)
}
"""The probes by name, for `btnn_jax.envs.make`."""
