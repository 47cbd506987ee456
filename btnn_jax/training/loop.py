"""The loop on the host around a pure train step: compilation, files, progress, and an orderly end."""

from __future__ import annotations

import collections
import contextlib
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from btnn_jax.training.checkpoint import Checkpoints
from btnn_jax.training.folder import CHECKPOINTS
from btnn_jax.training.metrics import Means, MetricsWriter, add_metrics, no_means, read_means, read_metrics
from btnn_jax.training.progress import Progress, Reporter, short

PyTree = Any
Metrics = dict[str, jax.Array]  # float32 [] each

# Updates that the device may lag behind the host: enough to keep it busy, few enough to stop soon.
_IN_FLIGHT = 2


class Program(NamedTuple):
    """What a run computes, as the loop sees it."""

    title: str  # of the run, for people
    init: Callable[[jax.Array], PyTree]  # key -> state
    step: Callable[..., tuple[PyTree, Metrics]]  # (state, *inputs) -> (state, metrics)
    state: PyTree  # of shapes only
    metrics: Metrics  # those of one step, of shapes only
    num_updates: int  # calls of `step` that the run takes
    steps_per_update: int  # what is counted and shown: environment steps, or gradient steps
    result: Callable[[dict[str, float]], str]  # how well it goes, in a few words, from the metrics
    inputs: tuple[PyTree, ...] = ()  # what every step is given besides the state


class Outcome(NamedTuple):
    """How a loop ended."""

    state: PyTree
    steps: int  # in all
    seconds: float  # of training, without compilation, in all sessions of the run
    stopped: int | None  # the signal that stopped it; None if it came to its end


def run_loop(
    folder: pathlib.Path,
    program: Program,
    *,
    seed: int,
    reporter: Reporter,
    checkpoint_seconds: float,
    keep: int,
    log_seconds: float,
) -> Outcome:
    """Trains from the newest checkpoint, or from the start, to the end or to a signal.

    Args:
      folder: the run's.
      program: what to compute.
      seed: of the key that `program.init` gets.
      reporter: what is told of the progress.
      checkpoint_seconds: between two checkpoints; there is always one at the end.
      keep: how many of the newest checkpoints to keep.
      log_seconds: the shortest time between two records of metrics.

    Raises:
      RunError: the checkpoint or the metrics cannot be read.
      ModuleNotFoundError: a package of the extra `train` is missing.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(reporter.close)
        checkpoints = stack.enter_context(Checkpoints(folder / CHECKPOINTS, keep=keep))
        newest = checkpoints.latest()
        start = newest or 0
        steps = start * program.steps_per_update
        reporter.note(f"{program.title}, seed {seed}, in {folder}")
        if newest is None:
            state = jax.jit(program.init)(jax.random.key(seed))
            checkpoints.save(0, state)
        else:
            state = checkpoints.restore(program.state)
            reporter.note(f"resumed at {short(steps)} steps")
        if start >= program.num_updates:  # opening the metrics would touch them
            seconds = read_metrics(folder).get("seconds", [0.0])[-1]
            return Outcome(state, steps, float(seconds), None)

        writer = stack.enter_context(MetricsWriter(folder, resume_from=steps))
        step, nothing = _compile(program, reporter)
        stop = stack.enter_context(_signals())
        recorder = _Recorder(program, writer, reporter, start)
        update, saved, logged = start, time.monotonic(), time.monotonic()
        means = nothing
        in_flight: collections.deque[jax.Array] = collections.deque()
        while update < program.num_updates and stop.signum is None:
            state, means = step(state, means, *program.inputs)
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
        return Outcome(state, update * program.steps_per_update, recorder.recorded, stop.signum)


class _Recorder:
    """Hands means on to the files and the display, with the time they took."""

    def __init__(self, program: Program, writer: MetricsWriter, reporter: Reporter, update: int) -> None:
        self._program, self._writer, self._reporter = program, writer, reporter
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
        size = self._program.steps_per_update
        rate = size * (update - self._update) / (now - self._now)
        mean_rate = size * (update - self._first) / (now - self._started)
        self._update, self._now = update, now
        metrics["steps_per_second"] = rate
        self.recorded = self.seconds()
        self._writer.write(size * update, self.recorded, metrics)
        total = size * self._program.num_updates
        self._reporter.update(
            Progress(
                steps=size * update,
                total=total,
                steps_per_second=rate,
                result=self._program.result(metrics),
                seconds=self.recorded,
                left=(total - size * update) / mean_rate,
            )
        )


def _compile(program: Program, reporter: Reporter) -> tuple[Callable[..., tuple[PyTree, Means]], Means]:
    """The train step that adds its metrics up, compiled ahead of time, and the empty means to start from."""
    reporter.note("compiling the train step ...")
    started = time.monotonic()

    def step(state: PyTree, means: Means, *inputs: PyTree) -> tuple[PyTree, Means]:
        state, metrics = program.step(state, *inputs)
        return state, add_metrics(means, metrics)

    nothing = no_means(program.metrics)
    compiled = jax.jit(step, donate_argnums=0).lower(program.state, nothing, *program.inputs).compile()
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
