"""A whole run on the host: the pure train step in a loop, with files, progress and an orderly end.

>>> result = train("CartPole-v1", UnrealConfig(pc_weight=0), folder="runs/cart")  # doctest: +SKIP
>>> result = resume("runs/cart")  # after an interruption # doctest: +SKIP
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from btnn_jax import envs
from btnn_jax.envs.base import Environment, PyTree
from btnn_jax.policies import UnrealPolicy
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.folder import Folder, Run, RunError, create_run, default_folder, first_line, read_run
from btnn_jax.training.loop import Program, run_loop
from btnn_jax.training.progress import Reporter, make_reporter
from btnn_jax.training.unreal import TrainState, make_unreal, make_unreal_policy


class RunResult(NamedTuple):
    """How a run ended."""

    folder: pathlib.Path
    run: Run
    state: TrainState
    steps: int  # environment steps in all
    seconds: float  # of training, without compilation, in all sessions of the run
    stopped: int | None  # the signal that stopped it; None if it came to its end


def train(
    env: str,
    config: UnrealConfig,
    *,
    seed: int = 0,
    folder: Folder | None = None,
    env_params: Mapping[str, Any] | None = None,
    pretrained: PyTree | None = None,
    reporter: Reporter | None = None,
    checkpoint_minutes: float = 5.0,
    keep: int = 2,
    log_seconds: float = 1.0,
) -> RunResult:
    """Trains an agent and keeps all about it in a folder.

    Metrics are recorded at most every `log_seconds`, as the mean over the updates since the last record. A
    SIGINT or SIGTERM ends the run after the updates under way, with a checkpoint; a second one has its usual
    effect.

    Args:
      env: a name that `btnn_jax.envs.make` knows.
      config: what to learn and how.
      seed: two runs with the same seed are the same.
      folder: new or empty; None for `runs/<env>-<algorithm>-seed<seed>-<date-time>`.
      env_params: parameters of the environment.
      pretrained: parameters to start from in place of random ones, see `make_unreal`.
      reporter: what is told of the progress; None for a bar on a terminal and lines elsewhere.
      checkpoint_minutes: between two checkpoints; there is always one at the end.
      keep: how many of the newest checkpoints to keep.
      log_seconds: the shortest time between two records of metrics.

    Raises:
      RunError: the folder already holds something, the environment or one of its parameters is unknown, or
        the agent does not fit it.
      ModuleNotFoundError: a package of the extra `train` is missing.
    """
    run = Run(env, config, seed, dict(env_params or {}))
    agent = make_agent(run, pretrained)  # before the folder: what cannot be run leaves none
    path = create_run(
        folder if folder is not None else default_folder(run.env, run.config.algorithm, run.seed), run
    )
    return _go(path, run, agent, reporter, checkpoint_minutes, keep, log_seconds)


def resume(
    folder: Folder,
    *,
    reporter: Reporter | None = None,
    checkpoint_minutes: float = 5.0,
    keep: int = 2,
    log_seconds: float = 1.0,
) -> RunResult:
    """Goes on with a run from its newest checkpoint, as if it had never stopped; see `train`.

    Raises:
      RunError: the folder is not a run's, or its checkpoint cannot be read.
    """
    path, run = pathlib.Path(folder), read_run(folder)
    agent = make_agent(run)
    return _go(path, run, agent, reporter, checkpoint_minutes, keep, log_seconds)


class Agent(NamedTuple):
    """A run's environment, network and train step."""

    env: Environment
    policy: UnrealPolicy
    init: Callable[[jax.Array], TrainState]
    step: Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]]
    state: TrainState  # of shapes only
    metrics: dict[str, jax.Array]  # those of one step, of shapes only


def make_env(name: str, params: Mapping[str, Any]) -> Environment:
    """`btnn_jax.envs.make`, for people.

    Raises:
      RunError: the environment or one of its parameters is unknown or makes no sense.
    """
    try:
        env = envs.make(name, **params)
        _ = env.observation  # gymnax computes with its parameters only here
    except ValueError as error:
        raise RunError(first_line(error)) from error
    except TypeError as error:  # a value of another type than the environment computes with
        raise RunError(
            f"{name} makes no sense of its parameters {dict(params)}: {first_line(error)}"
        ) from error
    return env


def make_agent(run: Run, pretrained: PyTree | None = None) -> Agent:
    """Binds all that `run` names; `pretrained` as for `make_unreal`.

    Raises:
      RunError: the environment or one of its parameters is unknown, the agent does not fit it, or what the
        configuration asks for cannot be computed.
    """
    env = make_env(run.env, run.env_params)
    try:
        policy = make_unreal_policy(run.config, env)
        init, step = make_unreal(run.config, env, policy=policy, pretrained=pretrained)
        step = jax.jit(step, inline=True)  # traced here, and not again when it is compiled into the loop
        state = jax.eval_shape(init, jax.random.key(0))
        _, metrics = jax.eval_shape(step, state)
    except ValueError as error:
        raise RunError(f"no agent fits {run.env} with this configuration: {first_line(error)}") from error
    return Agent(env, policy, init, step, state, metrics)


def _go(
    folder: pathlib.Path,
    run: Run,
    agent: Agent,
    reporter: Reporter | None,
    checkpoint_minutes: float,
    keep: int,
    log_seconds: float,
) -> RunResult:
    program = Program(
        title=run.title,
        init=agent.init,
        step=agent.step,
        state=agent.state,
        metrics=agent.metrics,
        num_updates=run.config.num_updates,
        steps_per_update=run.config.steps_per_update,
        result=_result,
    )
    state, steps, seconds, stopped = run_loop(
        folder,
        program,
        seed=run.seed,
        reporter=reporter or make_reporter(),
        checkpoint_seconds=60 * checkpoint_minutes,
        keep=keep,
        log_seconds=log_seconds,
    )
    return RunResult(folder, run, state, steps, seconds, stopped)


def _result(metrics: dict[str, float]) -> str:
    return f"return {metrics['episode_return']:.2f}" if "episode_return" in metrics else "return -"
