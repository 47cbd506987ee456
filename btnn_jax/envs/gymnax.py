"""The adapter to gymnax's environments."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from btnn_jax._errors import check_known, import_extra
from btnn_jax._types import PyTree
from btnn_jax.envs.base import TimeStep

__all__ = ["GymnaxEnvironment", "gymnax_names", "make_gymnax"]


def _import_gymnax() -> Any:
    return import_extra("gymnax", "an environment of gymnax")


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """Gymnax relies on implicit promotion of dtypes and ranks; whoever calls us need not allow it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _strong(tree: PyTree) -> PyTree:
    """Gives every leaf a dtype of its own, not Python's weak one, so that a scan can carry the tree."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.result_type(leaf)), tree)


@dataclasses.dataclass(frozen=True, eq=False)
class GymnaxEnvironment:
    """One environment of gymnax behind our protocol; `make_gymnax` builds it.

    MinAtar's frames of zeros and ones are handed on as bool, one byte each; coordinates and other integers as
    float32, because integers mean pixels to an encoder.

    Attributes:
        name: gymnax's name of it.
        environment: gymnax's own object.
        params: its parameters.
    """

    name: str
    environment: Any
    params: Any

    @functools.cached_property
    def observation(self) -> PyTree:
        """The observation's structure, of `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(lambda key: self.reset(key)[1], jax.random.key(0))

    @property
    def action_depths(self) -> int:
        """The number of actions."""
        return int(self.environment.action_space(self.params).n)

    def reset(self, key: Array) -> tuple[PyTree, PyTree]:
        """Starts an episode: `(state, observation)`. The key is consumed."""
        with _lenient():
            observation, state = self.environment.reset(key, self.params)
            return _strong(state), self._observation(observation)

    def step(self, key: Array, state: PyTree, action: Array) -> tuple[PyTree, TimeStep]:
        """Acts, and starts the next episode by itself where this one ended. The key is consumed."""
        with _lenient():
            observation, state, reward, terminated, truncated, info = self.environment.step(
                key, state, action, self.params
            )
            terminated = jnp.asarray(terminated, bool)
            return _strong(state), TimeStep(
                observation=self._observation(observation),
                reward=jnp.asarray(reward, jnp.float32),
                terminated=terminated,
                # gymnax reports the time limit also where the task ended by itself on that very step.
                truncated=jnp.asarray(truncated, bool) & ~terminated,
                final_observation=self._observation(info["final_observation"]),
            )

    def _observation(self, observation: PyTree) -> PyTree:
        if self.name.endswith("-MinAtar"):
            return jax.tree.map(lambda leaf: leaf.astype(bool), observation)
        # Under 64-bit types gymnax computes with them.
        cast = (jnp.int32, jnp.int64, jnp.float64)
        return jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32) if leaf.dtype in cast else leaf, _strong(observation)
        )


def gymnax_names() -> tuple[str, ...]:
    """The names that gymnax knows, also those registered by the user."""
    return tuple(_import_gymnax().registered_envs)


def make_gymnax(name: str, **params: Any) -> GymnaxEnvironment:
    """Builds an environment of gymnax.

    Args:
        name: one of `gymnax_names()`, such as `"Breakout-MinAtar"`.
        **params: parameters of the environment, whether gymnax keeps them in its `EnvParams`
            (`memory_length=20`) or takes them when it builds the environment (`num_bits=2`).

    Raises:
        ValueError: the name or a parameter is unknown, or the actions are not a single discrete choice.
        ModuleNotFoundError: gymnax is not installed.

    >>> env = make_gymnax("MemoryChain-bsuite", memory_length=20)
    >>> env.action_depths, env.observation
    (2, ShapeDtypeStruct(shape=(3,), dtype=float32))
    """
    gymnax = _import_gymnax()
    check_known("gymnax environment", [name], gymnax.registered_envs)
    factory = gymnax.registration._registry[name]
    accepted = set(inspect.signature(factory).parameters)
    arguments = {key: value for key, value in params.items() if key in accepted}
    with _lenient():
        environment, default_params = gymnax.make(name, **arguments)
    fields = {field.name for field in dataclasses.fields(default_params)}
    check_known(f"parameter of {name}", params, accepted | fields)
    space = environment.action_space(default_params)
    if not isinstance(space, gymnax.environments.spaces.Discrete):
        raise ValueError(f"{name} has actions in {space!r}; only discrete actions are supported")
    changes = {key: value for key, value in params.items() if key not in accepted}
    return GymnaxEnvironment(name, environment, default_params.replace(**changes))
