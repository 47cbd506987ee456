"""A trained agent that acts: loaded from a run's folder, with its own memory, for any loop.

>>> agent = load_agent("runs/cart")  # doctest: +SKIP
>>> action = agent.act(observation)  # doctest: +SKIP
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze

from btnn_jax._types import PyTree
from btnn_jax.envs.base import AnyEnvironment
from btnn_jax.protocol import AgentInput, Policy, PolicyOutput
from btnn_jax.runs.agent import make_agent
from btnn_jax.runs.checkpoint import Checkpoints
from btnn_jax.runs.folder import CHECKPOINTS, Folder, RunError
from btnn_jax.runs.keys import check_seeds, key_of
from btnn_jax.runs.run import read_run
from btnn_jax.training.acting import apply_step, choose_action

__all__ = ["Agent", "load_agent"]


def load_agent(
    folder: Folder,
    *,
    best: bool = False,
    seed: int | None = None,
    greedy: bool = True,
    sample_seed: int = 0,
    env: AnyEnvironment | None = None,
) -> Agent:
    """The agent that a run has trained.

    Args:
      folder: the run's; it may have been interrupted.
      best: take the checkpoint with the highest return in training rather than the newest.
      seed: which of several agents, by the seed that it was trained with; None for the first.
      greedy: take the most likely action rather than a sample.
      sample_seed: seed of sampled actions.
      env: the environment, of a run that was started with an object.

    Raises:
      RunError: the folder is not a run's, has no checkpoint that can be read, or no agent of that seed.
    """
    check_seeds(sample_seed)
    run = read_run(folder, env)
    seeds = range(run.seed, run.seed + run.seeds)
    if seed is not None and seed not in seeds:
        raise RunError(f"{folder} has agents of the seeds {seeds[0]} to {seeds[-1]}, got {seed}")
    bound = make_agent(run)
    with Checkpoints(pathlib.Path(folder) / CHECKPOINTS, create=False) as checkpoints:
        params = checkpoints.restore(bound.state, checkpoints.best() if best else None).params
    if run.seeds > 1:
        index = 0 if seed is None else seed - run.seed
        params = jax.tree.map(lambda x: x[index], params)
    return Agent(bound.policy, params, bound.env.observation, greedy=greedy, seed=sample_seed)


class Agent:
    """A policy with its parameters, its memory, its last action and reward.

    It acts without the noise of noisy layers, as evaluations do. Everything that it takes and gives is NumPy; the
    network is compiled once for each number of environments.

    Args:
      policy: the network.
      params: its parameters.
      observation: `jax.ShapeDtypeStruct` of one observation, or a dict of them.
      greedy: take the most likely action rather than a sample.
      seed: seed of sampled actions.
    """

    def __init__(
        self, policy: Policy, params: PyTree, observation: PyTree, *, greedy: bool = True, seed: int = 0
    ) -> None:
        self.policy, self.params, self.greedy = policy, params, greedy
        self.observation = observation
        self._key = key_of(seed, "acting")
        self._jitted = jax.jit(functools.partial(apply_step, policy))
        self.reset()

    def reset(self, batch_size: int | None = None) -> None:
        """Forgets everything: the next observation starts an episode.

        Args:
          batch_size: how many environments are acted in side by side, with observations `[batch_size, ...]`; None for
            one, with observations without that axis.
        """
        self._single = batch_size is None
        size = 1 if batch_size is None else batch_size
        self._core = self.policy.initial_state(size)
        self._action = jax.tree.map(lambda _: np.zeros(size, np.int32), unfreeze(self.policy.action_depths))
        self._first = np.ones(size, bool)

    def act(self, observation: PyTree, reward: Any = 0.0, ended: Any = False) -> PyTree:
        """The action for an observation.

        Args:
          observation: an array or a dict of arrays, of the environment's shapes and dtypes.
          reward: that the last action earned, float `[]` or `[batch_size]`; read by agents with memory.
          ended: bool `[]` or `[batch_size]`, whether the last action ended an episode, so that `observation` starts the
            next one. After `reset` it always does.

        Returns:
          int32 `[]` or `[batch_size]`, or a dict of them.

        Raises:
          ValueError: the observation has other shapes or dtypes than the agent was trained with.
        """
        output, self._core = self._apply(observation, reward, ended)
        self._key, key = jax.random.split(self._key)
        action = choose_action(output.logits, key, greedy=self.greedy)
        self._action = jax.tree.map(np.asarray, action)
        self._first = np.zeros_like(self._first)
        return self._out(self._action)

    def value(self, observation: PyTree, reward: Any = 0.0, ended: Any = False) -> np.ndarray:
        """The expected discounted return from an observation on, float32 `[]` or `[batch_size]`.

        The agent does not act: its memory stays as it is. See `act` for the arguments.
        """
        value: np.ndarray = self._out(np.asarray(self._apply(observation, reward, ended)[0].value))
        return value

    def probabilities(self, observation: PyTree, reward: Any = 0.0, ended: Any = False) -> PyTree:
        """The probability of each action, float32 `[A]` or `[batch_size, A]`, or a dict of them; see `value`."""
        logits = self._apply(observation, reward, ended)[0].logits
        return self._out(jax.tree.map(lambda x: np.asarray(jax.nn.softmax(x)), logits))

    def _apply(self, observation: PyTree, reward: Any, ended: Any) -> tuple[PolicyOutput, PyTree]:
        size = len(self._first)
        lead = () if self._single else (size,)
        expected = jax.tree.map(lambda x: (*lead, *x.shape), self.observation)
        found = jax.tree.map(np.shape, observation)
        if found != expected:
            raise ValueError(
                f"expected an observation of shape {expected}, got {found}; see reset(batch_size)"
            )
        inputs = AgentInput(
            observation=jax.tree.map(
                lambda x, spec: np.asarray(x, spec.dtype).reshape(size, *spec.shape),
                observation,
                self.observation,
            ),
            last_action=self._action,
            last_reward=jnp.broadcast_to(jnp.asarray(reward, jnp.float32), (size,)),
            reset=jnp.asarray(self._first | np.broadcast_to(np.asarray(ended, bool), (size,))),
        )
        return self._jitted(self.params, inputs, self._core)

    def _out(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x[0], tree) if self._single else tree
