"""Environments that run in Python or C beside the device, stepped from inside of compiled programs."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from btnn_jax._errors import first_line
from btnn_jax._types import PyTree
from btnn_jax.envs.base import TimeStep

__all__ = ["EnvironmentFailedError", "HostBatch", "HostPool", "Transition", "VectorEnvironment"]


class EnvironmentFailedError(RuntimeError):
    """An environment raised, hung or gave what it must not give; the message is one line."""


def _is_news(record: logging.LogRecord) -> bool:
    """Whether JAX's record of a failed callback says more than the line that the user gets anyway."""
    return not (record.exc_info and isinstance(record.exc_info[1], EnvironmentFailedError))


logging.getLogger("jax._src.callback").addFilter(_is_news)


class Transition(NamedTuple):
    """What a step of a pool led to; arrays of numpy."""

    observation: PyTree  # [num_envs, ...], before any reset
    reward: np.ndarray  # float [num_envs]
    terminated: np.ndarray  # bool [num_envs]
    truncated: np.ndarray  # bool [num_envs]


class VectorEnvironment(Protocol):
    """Environments of some library, stepped together, which do not start episodes by themselves."""

    def reset(self, seeds: np.ndarray) -> PyTree:
        """Starts an episode in each, by int32 `[num_envs]`; the first observations `[num_envs, ...]`."""

    def restart(self, where: np.ndarray) -> PyTree:
        """Starts an episode where bool `[num_envs]` is set; first observations there, anything elsewhere."""

    def step(self, action: PyTree) -> Transition:
        """Acts in each; the action's leaves are int32 `[num_envs]`."""

    def close(self) -> None:
        """Frees what it holds."""


class HostPool:
    """All batches that were made of one environment of the host, as a `btnn_jax.envs.base.HostEnvironment`.

    Attributes:
      name: of the environment.
      observation: the structure of one observation, of `jax.ShapeDtypeStruct`.
      action_depths: the number of actions, or a dict of them.
      failure: the line about what has gone wrong inside of a compiled program, or None.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[int, bool], VectorEnvironment],
        observation: PyTree,
        action_depths: Any,
        *,
        timeout: float = 60.0,
        num_envs: int | None = None,
    ) -> None:
        """Takes how to make environments; none is made yet.

        Args:
          name: see above.
          make: `(num_envs, evaluation) -> environments`.
          observation: see above.
          action_depths: see above.
          timeout: seconds after which a reset or a step counts as hung.
          num_envs: the only size of a batch that can be made; None for any.
        """
        self._num_envs = num_envs
        self.name, self.observation, self.action_depths = name, observation, action_depths
        self.failure: str | None = None
        self._make, self._timeout = make, timeout
        self._batches: list[HostBatch] = []

    def batch(self, num_envs: int, *, evaluation: bool = False) -> HostBatch:
        """See `btnn_jax.envs.base.HostEnvironment`.

        Raises:
          ValueError: environments that were given have another number.
        """
        if self._num_envs not in (None, num_envs):
            raise ValueError(
                f"{self.name} was given as {self._num_envs} environments, got num_envs={num_envs}"
            )
        made = HostBatch(self, functools.partial(self._make, num_envs, evaluation), num_envs, self._timeout)
        self._batches.append(made)
        return made

    def close(self) -> None:
        """Closes every batch; one that is used again is made anew."""
        for made in self._batches:
            made.close()
        self.failure = None


class HostBatch:
    """`num_envs` environments of the host as a `btnn_jax.envs.base.BatchedEnvironment`.

    `reset` and `step` call back from the compiled program. The state holds the number of the next call, so that calls
    happen in their order, and one that is out of order is told: the environments themselves are not in the state.
    """

    def __init__(
        self, pool: HostPool, make: Callable[[], VectorEnvironment], num_envs: int, timeout: float
    ) -> None:
        """Is made by `HostPool.batch`."""
        self.num_envs = num_envs
        self._pool, self._make, self._timeout = pool, make, timeout
        self._envs: VectorEnvironment | None = None
        self._worker: _Worker | None = None
        self._calls = 0

    def reset(self, keys: jax.Array) -> tuple[PyTree, PyTree]:
        """See `BatchedEnvironment`; makes the environments at the first call."""
        seeds = jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32))(keys) >> 1
        calls = jax.ShapeDtypeStruct((), jnp.int32)
        state, observation = io_callback(self._reset, (calls, self._many()), seeds.astype(jnp.int32))
        return jnp.broadcast_to(state, self.num_envs), observation

    def step(self, keys: jax.Array, state: PyTree, action: PyTree) -> tuple[PyTree, TimeStep]:
        """See `BatchedEnvironment`; the keys are not used: the environments draw from their own numbers."""
        del keys
        lead = (self.num_envs,)
        flags: Any = jax.ShapeDtypeStruct(lead, jnp.bool_)
        reward: Any = jax.ShapeDtypeStruct(lead, jnp.float32)
        shapes = (
            jax.ShapeDtypeStruct((), jnp.int32),
            TimeStep(self._many(), reward, flags, flags, self._many()),
        )
        calls, time_step = io_callback(self._step, shapes, state[0], action)
        return jnp.broadcast_to(calls, self.num_envs), time_step

    def close(self) -> None:
        """Closes the environments."""
        if self._envs is not None and self._worker is not None:
            envs, self._envs = self._envs, None
            worker, self._worker = self._worker, None
            worker.call(envs.close, self._timeout, wait=self._pool.failure is None)
            worker.end()

    def _many(self) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.num_envs, *x.shape), x.dtype), self._pool.observation
        )

    def _reset(self, seeds: jax.Array) -> tuple[np.int32, PyTree]:
        with _failures_kept(self._pool):
            if self._envs is None:
                self._worker = _Worker()
                self._envs = self._call("make", self._make)
            observation = self._call("reset", self._envs.reset, np.asarray(seeds))
            self._calls += 1
            return np.int32(self._calls), self._checked("reset", observation)

    def _step(self, calls: jax.Array, action: PyTree) -> tuple[np.int32, TimeStep]:
        with _failures_kept(self._pool):
            if self._envs is None or int(calls) != self._calls:
                raise EnvironmentFailedError(f"{self._pool.name} was stepped from a state that it is not in")
            moved = self._call("step", self._envs.step, jax.tree.map(np.asarray, action))
            final = self._checked("step", moved.observation)
            reward = self._row("reward", moved.reward, np.float32)
            if not np.all(np.isfinite(reward)):
                raise EnvironmentFailedError(
                    f"{self._pool.name} gave a reward of {reward[~np.isfinite(reward)][0]}"
                )
            terminated = self._row("terminated", moved.terminated, np.bool_)
            truncated = self._row("truncated", moved.truncated, np.bool_) & ~terminated
            observation, ended = final, terminated | truncated
            if ended.any():
                first = self._checked("reset", self._call("reset", self._envs.restart, ended))

                def chosen(new: np.ndarray, old: np.ndarray) -> np.ndarray:
                    return np.where(ended.reshape(-1, *[1] * (old.ndim - 1)), new, old)

                observation = jax.tree.map(chosen, first, final)
            self._calls += 1
            return np.int32(self._calls), TimeStep(observation, reward, terminated, truncated, final)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        assert self._worker is not None
        try:
            return self._worker.call(function, self._timeout, *arguments)
        except TimeoutError as error:
            raise EnvironmentFailedError(
                f"{self._pool.name} did not answer to {what} within {self._timeout:g} seconds"
            ) from error
        except BaseException as error:  # SystemExit of an environment ends the run, in order
            raise EnvironmentFailedError(
                f"{self._pool.name} raised at {what}: {type(error).__name__}: {first_line(error)}"
            ) from error

    def _checked(self, what: str, observation: PyTree) -> PyTree:
        """The observations as arrays of the promised shapes and dtypes."""
        wanted, expected = jax.tree.flatten(self._many())
        found: Any
        leaves, found = jax.tree.flatten(observation)
        if found != expected:
            raise EnvironmentFailedError(
                f"{self._pool.name} gave at {what} an observation of the structure {found}"
            )
        arrays = []
        for leaf, to in zip(leaves, wanted, strict=True):
            array = np.asarray(leaf)
            if array.shape != to.shape or not np.can_cast(array.dtype, to.dtype, "same_kind"):
                raise EnvironmentFailedError(
                    f"{self._pool.name} gave at {what} an observation {array.dtype}{[*array.shape]}, expected "
                    f"{to.dtype}{[*to.shape]}"
                )
            # A copy: many libraries write the next observation into the same memory.
            arrays.append(np.array(array, to.dtype))
            if array.dtype.kind == "f" and not np.all(np.isfinite(arrays[-1])):
                raise EnvironmentFailedError(
                    f"{self._pool.name} gave at {what} an observation that is not finite"
                )
        return jax.tree.unflatten(expected, arrays)

    def _row(self, what: str, given: Any, dtype: Any) -> Any:
        array = np.asarray(given)
        if array.shape != (self.num_envs,) or array.dtype == object:
            raise EnvironmentFailedError(
                f"{self._pool.name} gave a {what} {array.dtype}{[*array.shape]}, expected one each"
            )
        return array.astype(dtype)


@contextlib.contextmanager
def _failures_kept(pool: HostPool) -> Iterator[None]:
    """Keeps what goes wrong in a callback, of which XLA hands on a traceback as text."""
    if pool.failure is not None:
        raise EnvironmentFailedError(pool.failure)
    try:
        yield
    except Exception as error:
        pool.failure = first_line(error)
        raise


class _Worker:
    """A thread that makes calls one after the other, so that one that hangs can be given up."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue = queue.SimpleQueue()
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def call(self, function: Callable[..., Any], timeout: float, *arguments: Any, wait: bool = True) -> Any:
        """The result of `function(*arguments)`; with `wait=False` nobody waits for it.

        Raises:
          TimeoutError: it took longer than `timeout` seconds.
        """
        self._asked.put((function, arguments))
        if not wait:
            return None
        try:
            result, error = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return result

    def end(self) -> None:
        """Ends the thread once its calls are done."""
        self._asked.put(None)

    def _work(self) -> None:
        while (job := self._asked.get()) is not None:
            function, arguments = job
            try:
                self._answers.put((function(*arguments), None))
            except BaseException as error:
                self._answers.put((None, error))
