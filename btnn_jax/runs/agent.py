"""A whole run on the host: the pure train step in a loop, with files, progress and an orderly end.

>>> result = train("CartPole-v1", UnrealConfig(pc_weight=0), folder="runs/cart")  # doctest: +SKIP
>>> result = resume("runs/cart")  # after an interruption # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from btnn_jax import losses
from btnn_jax._errors import first_line
from btnn_jax._types import PyTree
from btnn_jax.data import PACKAGED_SERIES
from btnn_jax.envs.base import AnyEnvironment, is_host
from btnn_jax.envs.trading.market import GENERATORS
from btnn_jax.protocol import Policy
from btnn_jax.runs.folder import Folder, RunError, default_folder
from btnn_jax.runs.interrupt import say_on_interrupt
from btnn_jax.runs.keys import check_seeds
from btnn_jax.runs.loop import LoopOptions, Program, run_loop
from btnn_jax.runs.metrics import EPISODES
from btnn_jax.runs.processes import first_only
from btnn_jax.runs.progress import Reporter, make_reporter
from btnn_jax.runs.run import Run, create_run, read_run
from btnn_jax.runs.sources import check_written, describe_object, environment_of, lasting_source, opened
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.mapping import make_mapped, with_shardings
from btnn_jax.training.unreal import TrainState, make_unreal

__all__ = ["OF_EACH_SEED", "BoundRun", "RunResult", "first_devices", "make_agent", "resume", "train"]


OF_EACH_SEED = ("episode_return", "entropy", "explained_variance")
"""Metrics that a run of several seeds records for each of them too, as `episode_return_seed0` and so on."""


class RunResult(NamedTuple):
    """How a run ended."""

    folder: pathlib.Path
    run: Run
    state: TrainState
    steps: int  # environment steps in all
    seconds: float  # of training, without compilation, in all sessions of the run
    stopped: int | None  # the signal that stopped it; None if it came to its end


def train(
    env: str | AnyEnvironment,
    config: UnrealConfig,
    *,
    seed: int = 0,
    seeds: int = 1,
    folder: Folder | None = None,
    env_params: Mapping[str, Any] | None = None,
    pretrained: PyTree | None = None,
    reporter: Reporter | None = None,
    devices: int = 1,
    **loop: Unpack[LoopOptions],
) -> RunResult:
    """Trains an agent, or several side by side, and keeps all about it in a folder.

    Metrics are recorded at most every `log_seconds`, as the mean over the updates since the last record, and over the
    seeds. A SIGINT or SIGTERM ends the run after the updates under way, with a checkpoint; a second one has its usual
    effect.

    In a run of several processes (`btnn_jax.runs.processes.connect`) all of them call this with the same
    arguments, and with a folder that all of them see.

    Args:
      env: a name that `btnn_jax.envs.make` knows, `module:Class` for a class of your own among them, or an environment.
        An object is not kept in the folder: unless it is a dataclass of plain values in a module that can be imported,
        `resume` and `score_run` need it again.
      config: what to learn and how; its `shards` are divided among the devices.
      seed: two runs with the same seed are the same.
      seeds: agents of their own that learn in one program, from the seeds `seed` to `seed + seeds - 1`; every part of
        the state leads with an axis of them if there are several.
      folder: new or empty; None for `runs/<env>-<algorithm>-seed<seed>-<date-time>`.
      env_params: parameters of the environment.
      pretrained: parameters to start from in place of random ones, see `make_unreal`.
      reporter: what is told of the progress; None for a bar on a terminal and lines elsewhere.
      devices: how many of each process's to use.
      **loop: `checkpoint_minutes`, `keep`, `log_seconds`, `max_skipped`, `profile`, see
        `btnn_jax.runs.loop.run_loop`.

    Raises:
      RunError: the folder already holds something, the environment or one of its parameters is unknown, the agent
        does not fit it, or the shards do not fit the devices; and as `run_loop`.
      ModuleNotFoundError: a package of the extra `train` is missing.
    """
    params, given = dict(env_params or {}), None
    if not isinstance(env, str):
        if params:
            raise RunError(f"an environment that is an object has no env_params, got {params}")
        env, params, given = describe_object(env)
    if "data" in params:
        params["data"] = lasting_source(params["data"], (*GENERATORS, *PACKAGED_SERIES))
    check_written(params)
    check_seeds(seed, seeds)
    run = Run(env, config, seed, params, seeds, pretrained is not None, given is not None, given)
    agent = make_agent(run, pretrained, devices=devices)  # before the folder: what cannot be run leaves none
    path = pathlib.Path(
        folder if folder is not None else default_folder(run.env, run.config.algorithm, run.seed)
    )
    with first_only("making the folder") as first:
        if first:
            create_run(path, run)
    return _run_program(path, run, agent, reporter, **loop)


def resume(
    folder: Folder,
    *,
    env: AnyEnvironment | None = None,
    reporter: Reporter | None = None,
    devices: int = 1,
    **loop: Unpack[LoopOptions],
) -> RunResult:
    """Goes on with a run from a checkpoint, as if it had never stopped; see `train`.

    Args:
      folder: the run's.
      env: the environment, of a run that was started with an object.
      reporter: what is told of the progress.
      devices: may differ from those of before.
      **loop: as for `train`, and `checkpoint`, which one to go on from.

    Raises:
      RunError: the folder is not a run's, its checkpoint cannot be read, or the shards do not fit the devices.
    """
    path, run = pathlib.Path(folder), read_run(folder, env)
    agent = make_agent(run, devices=devices)
    if run.pretrained:
        agent = agent._replace(init=_no_second_start)
    return _run_program(path, run, agent, reporter, **loop)


def _no_second_start(seed: ArrayLike) -> TrainState:
    """For a run that was killed before its first checkpoint."""
    del seed
    raise RunError("the run has no checkpoint yet, and only there were the parameters that it started from")


class BoundRun(NamedTuple):
    """A run's environment, network and train step."""

    env: AnyEnvironment
    policy: Policy
    init: Callable[[ArrayLike], TrainState]  # seed -> state
    step: Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]]
    state: TrainState  # of shapes only, and of where they lie
    metrics: dict[str, jax.Array]  # those of one step, of shapes only
    replicated: jax.sharding.Sharding | None  # of what lies on all devices; None for the one there is
    act: Callable[[TrainState], PyTree]  # the rollouts of one step alone


def make_agent(run: Run, pretrained: PyTree | None = None, *, devices: int = 1) -> BoundRun:
    """Binds all that `run` names; `pretrained` as for `make_unreal`, `devices` as for `train`.

    Raises:
      RunError: the environment or one of its parameters is unknown, the agent does not fit it, what the configuration
        asks for cannot be computed, or the shards do not fit the devices.
    """
    env, config = environment_of(run), run.config
    used = first_devices(devices)
    if is_host(env) and (run.seeds > 1 or config.shards > 1):
        raise RunError(
            f"{run.env} is stepped on the host, so that a run has one seed and one shard; got {run.seeds} seeds and "
            f"{config.shards} shards"
        )
    if config.shards % len(used):
        raise RunError(
            f"the run's {config.shards} shards cannot be divided equally among {len(used)} devices"
        )
    try:
        replicated = None
        if config.shards == 1:
            init, step, act, policy = make_unreal(config, env, pretrained=pretrained)
        else:
            mapped = make_mapped(config, env, devices=used, pretrained=pretrained)
            init, step, act, policy, _ = mapped
            if len(used) > 1:
                replicated = mapped.shardings.params
        start, advance = _of_seeds(init, step, range(run.seed, run.seed + run.seeds))
        # Traced here, and not again when it is compiled into the loop.
        advance = jax.jit(advance, inline=True)
        state = jax.eval_shape(start, np.uint32(0))
        _, metrics = jax.eval_shape(advance, state)
    except (ValueError, OverflowError) as error:
        raise RunError(f"no agent fits {run.env} with this configuration: {first_line(error)}") from error
    if replicated is not None:
        state = with_shardings(state, mapped.shardings, lead=int(run.seeds > 1))
    return BoundRun(
        env, policy, start, advance, state, metrics, replicated, jax.vmap(act) if run.seeds > 1 else act
    )


def first_devices(count: int) -> list[jax.Device]:
    """The first `count` devices of each process.

    Raises:
      RunError: there are fewer, or none was asked for.
    """
    here = len(jax.local_devices())
    if count < 1:
        raise RunError(f"devices must be at least 1, got {count}")
    if count > here:
        raise RunError(f"{count} devices were asked for, but there are {here} of {jax.default_backend()}")
    every = range(jax.process_count())
    return [device for index in every for device in jax.local_devices(process_index=index)[:count]]


def _of_seeds(init: Callable, step: Callable, seeds: range) -> tuple[Callable, Callable]:
    """`seed -> state` and the step, for one seed or for several side by side.

    The metrics of several are means over them, with those of `OF_EACH_SEED` for each besides.
    """

    def start(seed: ArrayLike) -> TrainState:
        if len(seeds) == 1:
            return init(jax.random.key(seed))
        every = jnp.asarray(seed, jnp.uint32) + jnp.arange(len(seeds), dtype=jnp.uint32)
        return jax.vmap(lambda seed: init(jax.random.key(seed)))(every)

    def advance(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        if len(seeds) == 1:
            return step(state)
        state, metrics = jax.vmap(step)(state)
        finished = metrics["episode_length"] > 0
        means = {
            name: losses.masked_mean(x, finished if name.startswith(EPISODES) else None)
            for name, x in metrics.items()
        }
        deviations = jnp.square(metrics["episode_return"] - means["episode_return"])
        means["episode_return_std"] = jnp.sqrt(losses.masked_mean(deviations, finished))
        each = {"episode_return": jnp.where(finished, metrics["episode_return"], jnp.nan)}
        each |= {name: metrics[name] for name in OF_EACH_SEED[1:]}
        for name, values in each.items():
            means |= {f"{name}_seed{seed}": value for seed, value in zip(seeds, values, strict=True)}
        return state, means

    return start, advance


def _run_program(
    folder: pathlib.Path,
    run: Run,
    agent: BoundRun,
    reporter: Reporter | None,
    **loop: Unpack[LoopOptions],
) -> RunResult:
    seeds = f"seed {run.seed}" if run.seeds == 1 else f"seeds {run.seed} to {run.seed + run.seeds - 1}"
    program = Program(
        title=f"{run.title}, {seeds}",
        init=agent.init,
        step=agent.step,
        state=agent.state,
        metrics=agent.metrics,
        num_updates=run.config.num_updates,
        steps_per_update=run.config.steps_per_update,
        result=_result,
        score=lambda metrics: metrics.get("episode_return"),
        replicated=agent.replicated,
        act=None if is_host(agent.env) else agent.act,
        resumed=_new_episodes(agent, run.seed) if is_host(agent.env) else None,
    )
    say_on_interrupt(f"every checkpoint so far is kept; go on: btnn-jax train --resume {folder}")
    with opened(agent.env, f"; go on from the newest checkpoint: btnn-jax train --resume {folder}"):
        outcome = run_loop(folder, program, seed=run.seed, reporter=reporter or make_reporter(), **loop)
    say_on_interrupt(f"the trained agent is kept; evaluate: btnn-jax evaluate {folder}")
    return RunResult(folder, run, *outcome)


def _new_episodes(agent: BoundRun, seed: int) -> Callable[[TrainState, int], TrainState]:
    """What a restored state needs where the environments were not saved: episodes that begin anew.

    They are neither those that the run began with nor those of a run of another seed.
    """

    def resumed(state: TrainState, update: int) -> TrainState:
        other_seed = np.random.SeedSequence((seed, update)).generate_state(1)[0]
        fresh = jax.jit(agent.init)(other_seed).actors
        kept = {name: getattr(state.actors, name) for name in ("last_return", "last_length")}
        return dataclasses.replace(state, actors=fresh._replace(**kept))

    return resumed


def _result(metrics: dict[str, float]) -> str:
    return f"return {metrics['episode_return']:.2f}" if "episode_return" in metrics else "return -"
