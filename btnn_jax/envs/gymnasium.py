"""The adapter to Gymnasium: any of its environments, single or vectorised."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax._errors import first_line, import_extra
from btnn_jax._types import PyTree
from btnn_jax.envs.host import HostPool, Transition

__all__ = ["from_gymnasium", "gymnasium_names", "make_gymnasium"]


def _import_gymnasium() -> Any:
    return import_extra("gymnasium", "an environment of Gymnasium", extra="gymnasium")


def gymnasium_names() -> tuple[str, ...]:
    """The ids that Gymnasium knows, also those registered by the user."""
    return tuple(_import_gymnasium().registry)


def make_gymnasium(id: str, *, processes: bool = False, timeout: float = 60.0, **params: Any) -> HostPool:
    """Builds an environment of Gymnasium, which is stepped on the host.

    Images stay uint8; other numbers become float32, choices one-hot. A tuple of observations, and the choices of a
    `MultiDiscrete` action, are a dict with the keys "0", "1" and so on.

    Args:
      id: as `gymnasium.make` takes it, such as `"CartPole-v1"`.
      processes: whether each environment runs in a process of its own, which pays where a step is slow.
      timeout: seconds after which a reset or a step counts as hung.
      **params: parameters that `gymnasium.make` passes on.

    Raises:
      ValueError: the id or a parameter is unknown, or the spaces are of a kind that no agent here can use.
      ModuleNotFoundError: Gymnasium is not installed.

    >>> make_gymnasium("CartPole-v1").action_depths
    2
    """
    gymnasium = _import_gymnasium()
    try:
        make = functools.partial(gymnasium.make, id, **params)
        return from_gymnasium(make, name=f"gymnasium:{id}", processes=processes, timeout=timeout)
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium:{id}: {first_line(error)}") from error


def from_gymnasium(
    source: Any, *, name: str | None = None, processes: bool = False, timeout: float = 60.0
) -> HostPool:
    """Makes an environment for `btnn_jax.train` of one of Gymnasium.

    Args:
      source: a function that makes a `gymnasium.Env`, or a `gymnasium.vector.VectorEnv` of any autoreset mode, whose
        number of environments is then the only one that can be trained with.
      name: what to call it; None takes the name of its class or of its registration.
      processes: see `make_gymnasium`.
      timeout: see `make_gymnasium`.

    Raises:
      ValueError: the source makes no environment, or its spaces are of a kind that no agent here can use.
    """
    gymnasium = _import_gymnasium()
    if isinstance(source, gymnasium.vector.VectorEnv):
        single, make = source, _always(source)
    elif callable(source):
        single, make = _made(gymnasium, source), functools.partial(_new_vector, source, processes)
    else:
        raise ValueError(f"expected a function that makes a gymnasium.Env, or a VectorEnv, got {source!r}")
    spec = getattr(single, "spec", None)
    name = name or (spec.id if spec is not None else type(single).__name__)
    vector = isinstance(single, gymnasium.vector.VectorEnv)
    seen = single.single_observation_space if vector else single.observation_space
    done = single.single_action_space if vector else single.action_space
    if not vector:
        single.close()
    spaces = _Spaces(_observations(gymnasium, name, seen), _actions(gymnasium, name, done))
    observation = jax.tree.map(
        lambda leaf: leaf.shape, spaces.observation, is_leaf=lambda leaf: isinstance(leaf, _Leaf)
    )

    def make_batch(num_envs: int, evaluation: bool) -> _Vector:
        del evaluation  # returns are those of the environment in training too
        return _Vector(make(num_envs), spaces)

    size = single.num_envs if vector else None
    return HostPool(name, make_batch, observation, spaces.depths, timeout=timeout, num_envs=size)


def _always(vector: Any) -> Callable[[int], Any]:
    return lambda num_envs: vector


def _made(gymnasium: Any, source: Callable[[], Any]) -> Any:
    env = source()
    if not isinstance(env, gymnasium.Env):
        raise ValueError(f"expected a function that makes a gymnasium.Env, it made {type(env).__name__}")
    return env


def _new_vector(source: Callable[[], Any], processes: bool, num_envs: int) -> Any:
    vector = _import_gymnasium().vector
    disabled = vector.AutoresetMode.DISABLED
    if processes:  # spawned: JAX has threads, which a fork would not survive
        return vector.AsyncVectorEnv([source] * num_envs, context="spawn", autoreset_mode=disabled)
    return vector.SyncVectorEnv([source] * num_envs, autoreset_mode=disabled)


class _Leaf(NamedTuple):
    """How one array of an observation is handed on."""

    shape: jax.ShapeDtypeStruct
    convert: Callable[[np.ndarray], np.ndarray]  # [num_envs, ...]


class _Spaces(NamedTuple):
    """The spaces of an environment in our terms."""

    observation: PyTree  # of _Leaf
    action: Any  # of (depth, first), or a dict of them, or of lists of them for MultiDiscrete

    @property
    def depths(self) -> Any:
        """The number of actions, or a dict of them."""
        return _map_actions(lambda leaf: leaf[0], self.action)


class _Vector:
    """A `gymnasium.vector.VectorEnv` as a `VectorEnvironment`.

    In the mode SAME_STEP the first observations of new episodes come with the step that ended the last ones. In the
    others they are asked for by a reset of those that have ended, which keeps NEXT_STEP from spending a step on it.
    """

    def __init__(self, vector: Any, spaces: _Spaces) -> None:
        modes = _import_gymnasium().vector.AutoresetMode
        self._vector, self._spaces = vector, spaces
        self._same_step = modes(vector.metadata.get("autoreset_mode", modes.NEXT_STEP)) == modes.SAME_STEP
        self._first: PyTree = None  # of the episodes that the latest step began, in the mode SAME_STEP

    def reset(self, seeds: np.ndarray) -> PyTree:
        observation, _ = self._vector.reset(seed=[int(seed) for seed in seeds])
        return self._observation(observation)

    def restart(self, where: np.ndarray) -> PyTree:
        if self._same_step:
            return self._first
        observation, _ = self._vector.reset(options={"reset_mask": where})
        return self._observation(observation)

    def step(self, action: PyTree) -> Transition:
        observation, reward, terminated, truncated, info = self._vector.step(
            _to_gymnasium(self._spaces.action, action)
        )
        after = self._observation(observation)
        if self._same_step and np.any(np.logical_or(terminated, truncated)):
            self._first, after = after, self._finals(after, info)
        return Transition(after, reward, terminated, truncated)

    def close(self) -> None:
        self._vector.close()

    def _observation(self, observation: PyTree) -> PyTree:
        return _convert(self._spaces.observation, observation)

    def _finals(self, after: PyTree, info: Mapping[str, Any]) -> PyTree:
        """The observations with those that ended an episode in place of the next episode's first."""
        after = jax.tree.map(np.array, after)
        for i in np.flatnonzero(info["_final_obs"]):
            one = jax.tree.map(lambda x: np.asarray(x)[None], info["final_obs"][i])
            final = _convert(self._spaces.observation, one)
            jax.tree.map(lambda many, last, i=i: many.__setitem__(i, last[0]), after, final)
        return after


def _observations(gymnasium: Any, name: str, space: Any) -> PyTree:
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return {str(key): _observations(gymnasium, name, part) for key, part in parts}
    if isinstance(space, spaces.Box):
        kept = space.dtype in (np.uint8, np.bool_)
        dtype = space.dtype if kept else np.float32
        return _Leaf(jax.ShapeDtypeStruct(space.shape, dtype), _array(space.dtype, dtype))
    if isinstance(space, spaces.MultiBinary):
        return _Leaf(jax.ShapeDtypeStruct(space.shape, jnp.bool_), _array(space.dtype, np.bool_))
    if isinstance(space, spaces.Discrete):
        rows, start = np.eye(int(space.n), dtype=np.float32), int(space.start)
        return _Leaf(
            jax.ShapeDtypeStruct((int(space.n),), jnp.float32), lambda x: rows[np.asarray(x) - start]
        )
    raise ValueError(
        f"{name} has observations in {space!r}; known are Box, Discrete, MultiBinary, and Dict or Tuple of them"
    )


def _array(given: np.dtype, dtype: Any) -> Callable[[Any], np.ndarray]:
    """What is of the space's dtype becomes `dtype`; anything else is handed on, to be refused by its own dtype."""

    def convert(x: Any) -> np.ndarray:
        array = np.asarray(x)
        return array.astype(dtype, copy=False) if np.can_cast(array.dtype, given, "same_kind") else array

    return convert


def _convert(leaves: PyTree, observation: Any) -> PyTree:
    if isinstance(leaves, _Leaf):
        return leaves.convert(observation)
    if isinstance(observation, Mapping):
        return {key: _convert(part, observation[key]) for key, part in leaves.items()}
    return {key: _convert(part, observation[int(key)]) for key, part in leaves.items()}


def _actions(gymnasium: Any, name: str, space: Any) -> Any:
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Discrete):
        return int(space.n), int(space.start)
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        return [(int(n), int(first)) for n, first in zip(space.nvec, space.start, strict=True)]
    if isinstance(space, spaces.Dict):
        return {str(key): _actions(gymnasium, name, part) for key, part in space.spaces.items()}
    raise ValueError(f"{name} has actions in {space!r}; known are Discrete, MultiDiscrete and Dict of them")


def _map_actions(function: Callable[[tuple[int, int]], Any], action: Any) -> Any:
    if isinstance(action, tuple):
        return function(action)
    parts = enumerate(action) if isinstance(action, list) else action.items()
    return {str(key): _map_actions(function, part) for key, part in parts}


def _to_gymnasium(space: Any, action: PyTree) -> Any:
    """Our int32 `[num_envs]`, or a dict of them, as a batch of Gymnasium's actions."""
    if isinstance(space, tuple):
        return np.asarray(action, np.int64) + space[1]
    if isinstance(space, list):
        return np.stack([_to_gymnasium(part, action[str(i)]) for i, part in enumerate(space)], axis=-1)
    return {key: _to_gymnasium(part, action[key]) for key, part in space.items()}
