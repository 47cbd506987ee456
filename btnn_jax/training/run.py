"""A whole run on the host: the pure train step in a loop, with files, progress and an orderly end.

>>> result = train("CartPole-v1", UnrealConfig(pc_weight=0), folder="runs/cart")  # doctest: +SKIP
>>> result = resume("runs/cart")  # after an interruption # doctest: +SKIP
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import math
import pathlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from btnn_jax import envs
from btnn_jax.envs.base import Environment
from btnn_jax.policies import UnrealPolicy
from btnn_jax.training.checkpoint import Checkpoints
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.folder import CHECKPOINTS, Folder, Run, RunError, create_run, first_line, read_run
from btnn_jax.training.metrics import Means, MetricsWriter, add_metrics, no_means, read_means, read_metrics
from btnn_jax.training.progress import Progress, Reporter, make_reporter, short
from btnn_jax.training.unreal import TrainState, make_unreal, make_unreal_policy

# Updates that the device may lag behind the host: enough to keep it busy, few enough to stop soon.
_IN_FLIGHT = 2


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
    agent = make_agent(run)  # before the folder: what cannot be run leaves none
    path = create_run(folder if folder is not None else default_folder(run), run)
    return _go(path, run, agent, reporter or make_reporter(), 60 * checkpoint_minutes, keep, log_seconds)


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
    return _go(path, run, agent, reporter or make_reporter(), 60 * checkpoint_minutes, keep, log_seconds)


def default_folder(run: Run) -> pathlib.Path:
    """`runs/<env>-<algorithm>-seed<seed>-<date-time>`."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^\w.-]", "_", run.env)
    return pathlib.Path("runs") / f"{name}-{run.config.algorithm}-seed{run.seed}-{now}"


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


def make_agent(run: Run) -> Agent:
    """Binds all that `run` names.

    Raises:
      RunError: the environment or one of its parameters is unknown, the agent does not fit it, or what the
        configuration asks for cannot be computed.
    """
    env = make_env(run.env, run.env_params)
    try:
        policy = make_unreal_policy(run.config, env)
        init, step = make_unreal(run.config, env, policy=policy)
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
    reporter: Reporter,
    checkpoint_seconds: float,
    keep: int,
    log_seconds: float,
) -> RunResult:
    """Trains from the newest checkpoint, or from the start, to the end or to a signal."""
    config = run.config
    with contextlib.ExitStack() as stack:
        stack.callback(reporter.close)
        checkpoints = stack.enter_context(Checkpoints(folder / CHECKPOINTS, keep=keep))
        newest = checkpoints.latest()
        start = newest or 0
        steps = start * config.steps_per_update
        reporter.note(f"{run.title}, seed {run.seed}, in {folder}")
        if newest is None:
            state = jax.jit(agent.init)(jax.random.key(run.seed))
            checkpoints.save(0, state)
        else:
            state = checkpoints.restore(agent.state)
            reporter.note(f"resumed at {short(steps)} steps")
        if start >= config.num_updates:  # opening the metrics would touch them
            seconds = read_metrics(folder).get("seconds", [0.0])[-1]
            return RunResult(folder, run, state, steps, float(seconds), None)

        writer = stack.enter_context(MetricsWriter(folder, resume_from=steps))
        step, nothing = _compile(agent, reporter)
        stop = stack.enter_context(_signals())
        recorder = _Recorder(config, writer, reporter, start)
        update, saved, logged = start, time.monotonic(), time.monotonic()
        means = nothing
        in_flight: collections.deque[jax.Array] = collections.deque()
        while update < config.num_updates and stop.signum is None:
            state, means = step(state, means)
            update += 1
            in_flight.append(means.updates)
            recorder.flush()  # now that the device has the next update to do
            if len(in_flight) > _IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            now = time.monotonic()
            if now >= logged + log_seconds:
                recorder.keep(update, means)
                means, logged = nothing, now
            if now >= saved + checkpoint_seconds:
                checkpoints.save(update, state)
                saved = time.monotonic()
        if stop.signum is not None:
            reporter.close()
            reporter.note("stopping with a checkpoint; once more to abort at once")
        recorder.flush()
        if means is not nothing:
            recorder.keep(update, means)
            recorder.flush()
        if checkpoints.latest() != update:
            checkpoints.save(update, state)
        # The recorded time: a resumed run counts on from it, and saving is not training.
        return RunResult(folder, run, state, update * config.steps_per_update, recorder.recorded, stop.signum)


class _Recorder:
    """Hands means on to the files and the display, with the time they took."""

    def __init__(self, config: UnrealConfig, writer: MetricsWriter, reporter: Reporter, update: int) -> None:
        self._config, self._writer, self._reporter = config, writer, reporter
        self._first = self._update = update
        self._started = self._now = time.monotonic()
        self._kept: tuple[int, Means] | None = None
        self.recorded = writer.seconds  # of training, up to the last record

    def seconds(self) -> float:
        """Of training in all sessions of the run."""
        return self._writer.seconds + time.monotonic() - self._started

    def keep(self, update: int, means: Means) -> None:
        """Takes the means of the updates up to `update`, which may still be under way."""
        self._kept = update, means

    def flush(self) -> None:
        """Records what has been kept; waits for it."""
        if self._kept is None:
            return
        update, means = self._kept
        self._kept = None
        metrics = read_means(means)
        now = time.monotonic()
        size = self._config.steps_per_update
        rate = size * (update - self._update) / (now - self._now)
        mean_rate = size * (update - self._first) / (now - self._started)
        self._update, self._now = update, now
        metrics["steps_per_second"] = rate
        self.recorded = self.seconds()
        self._writer.write(size * update, self.recorded, metrics)
        total = size * self._config.num_updates
        self._reporter.update(
            Progress(
                steps=size * update,
                total=total,
                steps_per_second=rate,
                episode_return=metrics.get("episode_return", math.nan),
                seconds=self.recorded,
                left=(total - size * update) / mean_rate,
            )
        )


def _compile(
    agent: Agent, reporter: Reporter
) -> tuple[Callable[[TrainState, Means], tuple[TrainState, Means]], Means]:
    """The train step that adds its metrics up, compiled ahead of time, and the empty means to start from."""
    reporter.note("compiling the train step ...")
    started = time.monotonic()

    def step(state: TrainState, means: Means) -> tuple[TrainState, Means]:
        state, metrics = agent.step(state)
        return state, add_metrics(means, metrics)

    nothing = no_means(agent.metrics)
    compiled = jax.jit(step, donate_argnums=0).lower(agent.state, nothing).compile()
    reporter.note(f"compiled in {time.monotonic() - started:.1f} s")
    return compiled, nothing


@dataclass
class _Stop:
    signum: int | None = None


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    """Turns the first SIGINT or SIGTERM into a request to stop; the second goes to whoever had it before."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread gets signals
        return
    before = {
        signum: signal.getsignal(signum) or signal.SIG_DFL for signum in (signal.SIGINT, signal.SIGTERM)
    }

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def handle(signum: int, frame: Any) -> None:
        del frame
        stop.signum = signum
        restore()

    for signum in before:
        signal.signal(signum, handle)
    try:
        yield stop
    finally:
        restore()
