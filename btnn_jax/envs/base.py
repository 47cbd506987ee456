"""The protocol of an environment, and what every implementation of it shares."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from btnn_jax._types import PyTree

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = [
    "AnyEnvironment",
    "BatchedEnvironment",
    "Described",
    "Environment",
    "HostEnvironment",
    "Registration",
    "TimeStep",
    "Vmapped",
    "auto_reset",
    "batched",
    "check_environment",
    "is_host",
]


class TimeStep(NamedTuple):
    """The result of one step of one environment.

    `terminated` and `truncated` are never both true: an episode that reaches its own end at the time limit
    has terminated.

    Attributes:
        observation: what to act on next; after an episode's end, the first observation of the next episode.
        reward: float32 `[]`, for the action just taken.
        terminated: bool `[]`, the episode ended by the task's own rule: there is no value after it.
        truncated: bool `[]`, the episode was cut: bootstrap from `final_observation`.
        final_observation: what this step led to, before any reset; equals `observation` unless the episode
            ended.
    """

    observation: PyTree
    reward: Array
    terminated: Array
    truncated: Array
    final_observation: PyTree


class Described(Protocol):
    """What is known of an environment before it is made."""

    @property
    def name(self) -> str:
        """The name `btnn_jax.envs.make` knows it by."""

    @property
    def observation(self) -> PyTree:
        """The observation's structure, of `jax.ShapeDtypeStruct`."""

    @property
    def action_depths(self) -> int | dict:
        """The number of actions, or a (nested) dict of them."""


class Environment(Described, Protocol):
    """One environment as two pure functions; `batched` makes many of it.

    The state is a pytree of arrays whose shapes and dtypes never change: `jax.lax.scan` can carry it. `step` starts
    the next episode itself, most simply by ending with `auto_reset`. `docs/examples/environment.py` is a whole one, and
    `check_environment` tells what one of yours has got wrong.
    """

    def reset(self, key: Array) -> tuple[PyTree, PyTree]:
        """Starts an episode: `(state, observation)`. The key is consumed."""

    def step(self, key: Array, state: PyTree, action: PyTree) -> tuple[PyTree, TimeStep]:
        """Acts, and starts the next episode by itself where this one ended. The key is consumed."""


class BatchedEnvironment(Protocol):
    """`num_envs` environments that are stepped together; leaves of all arguments and results lead with `[num_envs]`.

    Rollouts and evaluations know environments only like this: `batched` makes one of any kind of environment.
    """

    @property
    def num_envs(self) -> int:
        """How many there are."""

    def reset(self, keys: Array) -> tuple[PyTree, PyTree]:
        """Starts an episode in each: `(state, observation)`. The keys `[num_envs]` are consumed."""

    def step(self, keys: Array, state: PyTree, action: PyTree) -> tuple[PyTree, TimeStep]:
        """Acts in each, and starts the next episode where one ended. The keys `[num_envs]` are consumed."""


class HostEnvironment(Described, Protocol):
    """An environment that runs outside of the device and is made in batches; see `btnn_jax.envs.host`.

    Its state cannot be saved, so that a resumed run begins new episodes, and it cannot be vmapped or sharded.
    """

    def batch(self, num_envs: int, *, evaluation: bool = False) -> BatchedEnvironment:
        """Makes `num_envs` of them; for an evaluation with rewards and episodes as the task defines them."""

    def close(self) -> None:
        """Closes every batch."""


AnyEnvironment = Environment | HostEnvironment


class Vmapped(NamedTuple):
    """`num_envs` of a pure environment, by `jax.vmap`."""

    environment: Environment
    num_envs: int

    def reset(self, keys: Array) -> tuple[PyTree, PyTree]:
        """See `BatchedEnvironment`."""
        return jax.vmap(self.environment.reset)(keys)

    def step(self, keys: Array, state: PyTree, action: PyTree) -> tuple[PyTree, TimeStep]:
        """See `BatchedEnvironment`."""
        return jax.vmap(self.environment.step)(keys, state, action)


def batched(env: AnyEnvironment, num_envs: int, *, evaluation: bool = False) -> BatchedEnvironment:
    """`num_envs` environments to be stepped together.

    Args:
        env: a pure environment, which is vmapped, or one of the host, which makes a batch of its own.
        num_envs: how many.
        evaluation: whether returns are to be those of the task itself, where training changes them (Atari's clipped
            rewards).

    >>> from btnn_jax import envs
    >>> batched(envs.make("CartPole-v1"), 8).num_envs
    8
    """
    return env.batch(num_envs, evaluation=evaluation) if is_host(env) else Vmapped(env, num_envs)


def is_host(env: AnyEnvironment) -> TypeIs[HostEnvironment]:
    """Whether `env` is a `HostEnvironment`."""
    return hasattr(env, "batch")


class Registration(NamedTuple):
    """An environment that `btnn_jax.envs.make` knows by a name of this package, and what its runs need to know."""

    make: Callable[..., Environment]
    # Parameters of a run that the command line starts without them: name -> value, and the line that says so.
    run_params: Mapping[str, tuple[Any, str]] = MappingProxyType({})
    # Names of parameters in the folders of earlier versions -> their names now.
    former_params: Mapping[str, str] = MappingProxyType({})
    backtested: bool = False  # evaluated once over time that was held out, rather than by episodes


def auto_reset(
    key: Array, reset: Callable[[Array], tuple[PyTree, PyTree]], state: PyTree, step: TimeStep
) -> tuple[PyTree, TimeStep]:
    """Starts the next episode where `step` ended one.

    Args:
        key: for `reset`; consumed.
        reset: `key -> (state, observation)`.
        state: the state that the step led to.
        step: the step, whose `final_observation` is what it led to; its `observation` is not read.

    Returns:
        The state to go on from, and the step with its `observation` to act on next.
    """
    ended = step.terminated | step.truncated
    state, observation = jax.tree.map(
        lambda new, old: jnp.where(ended, new, old), reset(key), (state, step.final_observation)
    )
    return state, step._replace(observation=observation)


def check_environment(env: AnyEnvironment) -> None:
    """Traces `env`, without running it, and holds what it gives against the protocol.

    Raises:
        ValueError: of one line, about the first thing that is otherwise.

    >>> from btnn_jax import envs
    >>> check_environment(envs.make("CartPole-v1"))
    """

    def check(what: str, got: PyTree, expected: PyTree) -> None:
        if (found := _shapes(got)) != (wanted := _shapes(expected)):
            raise ValueError(f"{what} of environment {env.name!r} must be {wanted}, got {found}")

    if not _are_depths(env.action_depths):
        raise ValueError(
            f"action_depths of environment {env.name!r} must be a number of actions, or a dict of them; got "
            f"{env.action_depths!r}"
        )
    if is_host(env):
        return  # what it gives is checked at every step
    key = jax.eval_shape(lambda: jax.random.key(0))
    began = jax.eval_shape(env.reset, key)
    if not (isinstance(began, tuple) and len(began) == 2):
        raise ValueError(f"reset of environment {env.name!r} must return (state, observation), got {began!r}")
    state, observation = began
    check("the observation that reset returns, (state, observation),", observation, env.observation)
    action = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.int32), _as_dict(env.action_depths))
    moved = jax.eval_shape(env.step, key, state, action)
    if not (isinstance(moved, tuple) and len(moved) == 2 and isinstance(moved[1], TimeStep)):
        raise ValueError(f"step of environment {env.name!r} must return (state, TimeStep), got {moved!r}")
    after, step = moved
    check("the state after a step", after, state)
    check("observation after a step", step.observation, env.observation)
    check("final_observation after a step", step.final_observation, env.observation)
    check("reward", step.reward, jax.ShapeDtypeStruct((), jnp.float32))
    for name in ("terminated", "truncated"):
        check(name, getattr(step, name), jax.ShapeDtypeStruct((), bool))


def _shapes(tree: PyTree) -> PyTree:
    """Dtype and shape of every leaf, as text."""
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leaf.shape]}", tree)


def _as_dict(depths: Any) -> Any:
    if isinstance(depths, Mapping):
        return {name: _as_dict(depth) for name, depth in depths.items()}
    return depths


def _are_depths(depths: Any) -> bool:
    if isinstance(depths, Mapping):
        return len(depths) > 0 and all(map(_are_depths, depths.values()))
    return isinstance(depths, numbers.Integral) and depths > 0  # type: ignore[operator]
