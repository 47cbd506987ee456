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
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np

from btnn_jax._types import PyTree
from btnn_jax.runs.checkpoint import CheckpointError, Checkpoints
from btnn_jax.runs.folder import CHECKPOINTS, METRICS, RunError, locked, read_settings
from btnn_jax.runs.interrupt import one_interrupt_is_handled
from btnn_jax.runs.metrics import MetricSums, MetricsWriter, add_metrics, read_means, read_metrics, zero_sums
from btnn_jax.runs.processes import detect_lost_process, first_only, is_first, max_over_processes
from btnn_jax.runs.profiling import Profiler, peak_memory
from btnn_jax.runs.progress import Progress, Reporter, Silent, format_count

__all__ = ["LoopOptions", "Outcome", "Program", "run_loop"]

Metrics = dict[str, jax.Array]  # float32 [] each

# Updates that the device may lag behind the host: enough to keep it busy, few enough to stop soon.
_IN_FLIGHT = 2


class Program(NamedTuple):
    """The computation of a run, as the loop sees it."""

    title: str  # of the run with its seed, for people
    init: Callable[[Any], PyTree]  # seed, uint32 -> state
    step: Callable[..., tuple[PyTree, Metrics]]  # (state, *inputs) -> (state, metrics)
    state: PyTree  # of shapes only
    metrics: Metrics  # those of one step, of shapes only
    num_updates: int  # calls of `step` that the run takes
    steps_per_update: int  # what is counted and shown: environment steps, or gradient steps
    result: Callable[[dict[str, float]], str]  # how well it goes, in a few words, from the metrics
    score: Callable[[dict[str, float]], float | None]  # higher is better; None where it is not known yet
    inputs: tuple[PyTree, ...] = ()  # what every step is given besides the state
    replicated: jax.sharding.Sharding | None = None  # of what lies on all devices; None for the one there is
    act: Callable[[PyTree], Any] | None = (
        None  # the part of `step` that acts; None where nothing does so alone
    )
    # (state, update) -> state, of what a checkpoint cannot hold; None where it holds everything
    resumed: Callable[[PyTree, int], PyTree] | None = None


class LoopOptions(TypedDict, total=False):
    """How the loop runs, which does not change what it computes; see `run_loop`."""

    checkpoint_minutes: float
    keep: int
    log_seconds: float
    max_skipped: int
    checkpoint: int | None
    profile: bool


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
    checkpoint_minutes: float = 5.0,
    keep: int = 2,
    log_seconds: float = 1.0,
    max_skipped: int = 1000,
    checkpoint: int | None = None,
    profile: bool = False,
) -> Outcome:
    """Trains from the newest checkpoint, or from the start, to the end or to a signal.

    Args:
      folder: the run's.
      program: what to compute.
      seed: what `program.init` gets.
      reporter: what is told of the progress.
      checkpoint_minutes: between two checkpoints; there is always one at the end.
      keep: how many of the newest checkpoints to keep; the best is kept besides.
      log_seconds: the shortest time between two records of metrics.
      max_skipped: gradient steps left out since the start of this call, because they were not finite, after which
        the run gives up.
      checkpoint: which one to go on from; newer ones are moved aside. None for the newest.
      profile: say where time and memory of the first updates go, and write a trace of some, which takes seconds that
        count as training; see `btnn_jax.runs.profiling.Profiler`.

    Raises:
      RunError: the folder is in use, the checkpoint or the metrics cannot be read, the first checkpoint cannot be
        written or the last one at the second try either, too many gradient steps were not finite, or another process
        of the run is lost.
      ModuleNotFoundError: a package of the extra `train` is missing.
    """
    with contextlib.ExitStack() as stack:
        if not is_first():
            reporter = Silent()
        stack.callback(reporter.close)
        with first_only("opening the folder") as first:
            if first:
                stack.enter_context(locked(folder))
        settings = {
            name: x for name, x in read_settings(folder).items() if name not in ("versions", "device")
        }
        checkpoints = stack.enter_context(Checkpoints(folder / CHECKPOINTS, keep=keep, settings=settings))
        stack.enter_context(detect_lost_process())
        reporter.note(f"{program.title}, in {folder}")
        newest = checkpoints.latest()
        if newest is None and (checkpoint is not None or (folder / METRICS).exists()):
            raise CheckpointError(f"no checkpoint in {folder / CHECKPOINTS}, where the run has left some")
        if newest is None:
            start, state = 0, jax.jit(program.init)(np.uint32(seed))
            checkpoints.save(0, state)
            checkpoints.wait()  # a disk that cannot take it is known before the training
        else:
            start = newest if checkpoint is None else checkpoint
            state = checkpoints.restore(program.state, start)
            checkpoints.drop_after(start)
            reporter.note(f"resumed at {format_count(start * program.steps_per_update)} steps")
            if program.resumed is not None and start < program.num_updates:
                reporter.note("the environments begin new episodes: their state is not in the checkpoint")
                state = program.resumed(state, start)
        if start >= program.num_updates:  # opening the metrics would touch them
            seconds = read_metrics(folder).get("seconds", [0.0])[-1]
            return Outcome(state, start * program.steps_per_update, float(seconds), None)

        steps = start * program.steps_per_update
        writer = stack.enter_context(MetricsWriter(folder, resume_from=steps, silent=not is_first()))
        step, nothing, compile_seconds, planned = _compile(program, reporter)
        if profile:
            step = stack.enter_context(
                Profiler(
                    step,
                    program.act,
                    program.state,
                    folder=folder,
                    reporter=reporter,
                    steps_per_update=program.steps_per_update,
                    compile_seconds=compile_seconds,
                    planned_bytes=planned,
                )
            )
        stack.enter_context(one_interrupt_is_handled())
        stop = stack.enter_context(_signals())
        recorder = _Recorder(program, writer, reporter, start, np.mean(jax.device_get(state.skipped)))
        update, saved, logged = start, time.monotonic(), time.monotonic()
        means = nothing
        in_flight: collections.deque[jax.Array] = collections.deque()
        signum = 0
        while update < program.num_updates and not signum and recorder.skipped <= max_skipped:
            state, means = step(state, means, *program.inputs)
            update += 1
            in_flight.append(means.updates)
            recorder.flush()  # now that the device has the next update to do
            if len(in_flight) > _IN_FLIGHT:
                in_flight.popleft().block_until_ready()
            now = time.monotonic()
            signum, save, record = max_over_processes(
                stop.signum or 0, now >= saved + 60 * checkpoint_minutes, now >= logged + log_seconds
            )
            if record:
                recorder.keep(update, means)
                means, logged = nothing, now
            if save:
                try:
                    checkpoints.save(update, state, score=recorder.score)
                except CheckpointError as error:
                    reporter.note(
                        f"{error}; the run goes on, and tries again in {checkpoint_minutes:g} minutes"
                    )
                saved = time.monotonic()
        if signum:
            reporter.close()
            reporter.note("stopping with a checkpoint; once more to abort at once")
        recorder.flush()
        if means is not nothing:
            recorder.keep(update, means)
            recorder.flush()
        for last_try in (False, True):
            try:
                if checkpoints.latest() != update:
                    checkpoints.save(update, state, score=recorder.score)
                checkpoints.wait()
            except CheckpointError as error:
                if last_try:
                    raise
                reporter.note(f"{error}; once more")
        if recorder.skipped > max_skipped:
            raise RunError(
                f"{recorder.skipped:.0f} gradient steps were not finite; the run stopped at "
                f"{format_count(update * program.steps_per_update)} steps; its last finite parameters are in {folder}"
            )
        # The recorded time: a resumed run counts on from it, and saving is not training.
        return Outcome(state, update * program.steps_per_update, recorder.recorded, signum or None)


class _Recorder:
    """Hands means on to the files and the display, with the time they took."""

    def __init__(
        self, program: Program, writer: MetricsWriter, reporter: Reporter, update: int, skipped: float
    ) -> None:
        self._program, self._writer, self._reporter = program, writer, reporter
        self._first = self._update = update
        self._started = self._now = time.monotonic()
        self._kept: tuple[int, MetricSums] | None = None
        self.recorded = writer.seconds  # of training, up to the last record
        self.score: float | None = None  # as of the last record
        self.skipped = 0.0  # gradient steps left out since `update`
        self._skipped_before = skipped

    def seconds(self) -> float:
        """Of training in all sessions of the run."""
        return self._writer.seconds + time.monotonic() - self._started

    def keep(self, update: int, means: MetricSums) -> None:
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
        if memory := peak_memory():
            metrics["device_memory_mb"] = memory / 2**20
        self.score = self._program.score(metrics)
        self.skipped = metrics.get("skipped", 0.0) - self._skipped_before
        self.recorded = self.seconds()
        try:
            self._writer.write(size * update, self.recorded, metrics)
        except OSError as error:
            self._reporter.note(f"cannot write the metrics yet: {error.strerror}; the run goes on")
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


class _Compiled(NamedTuple):
    """The train step that adds its metrics up, compiled ahead of time."""

    step: Callable[..., tuple[PyTree, MetricSums]]
    nothing: MetricSums  # the empty means to start from
    compile_seconds: float
    planned_bytes: float | None  # on each device; None where the compiler does not say


def _compile(program: Program, reporter: Reporter) -> _Compiled:
    reporter.note("compiling the train step ...")
    started = time.monotonic()

    def step(state: PyTree, means: MetricSums, *inputs: PyTree) -> tuple[PyTree, MetricSums]:
        state, metrics = program.step(state, *inputs)
        return state, add_metrics(means, metrics)

    nothing = jax.device_put(zero_sums(program.metrics), program.replicated)
    compiled = jax.jit(step, donate_argnums=0).lower(program.state, nothing, *program.inputs).compile()
    seconds, memory = time.monotonic() - started, compiled.memory_analysis()
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else None
    needed = "" if planned is None else f"; takes {planned / 2**20:.0f} MB on each device"
    reporter.note(f"compiled in {seconds:.1f} s{needed}")
    return _Compiled(compiled, nothing, seconds, planned)


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
