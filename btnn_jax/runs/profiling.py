"""Where a run's time and memory go: a table made from some updates, and a trace of some more."""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import jax

from btnn_jax._errors import first_line
from btnn_jax._types import PyTree
from btnn_jax.runs.processes import is_first
from btnn_jax.runs.progress import Reporter

__all__ = ["PROFILE", "TIMED", "TRACED", "WARM", "Profile", "Profiler", "peak_memory", "profile_table"]


PROFILE = "profile"
WARM, TIMED, TRACED = 3, 5, 5  # updates: the first ones are slower, tracing slows the last ones


class Profile(NamedTuple):
    """Measured seconds and bytes of one device."""

    compile_seconds: float
    update_seconds: float
    acting_seconds: float | None  # of the rollout alone; None where nothing acts
    steps_per_update: int
    memory_bytes: float | None  # None where nobody knows
    counted: bool  # whether the device counted its memory, rather than the compiler planned it


class Profiler:
    """A compiled train step that is measured while it trains; a context manager.

    Its first updates are called as always, then some are timed, then some traced into `folder/profile`, for
    TensorBoard's profiler; then what acts is timed alone on the state reached, and the table is told. What is computed
    stays the same.

    Args:
      step: `(state, *inputs) -> (state, ...)`, compiled.
      act: `state -> anything`, the part of it that acts; compiled here. None where nothing acts.
      state: the state's shapes, as `jax.ShapeDtypeStruct`.
      folder: the run's.
      reporter: what is told of the table.
      steps_per_update: what is counted per second.
      compile_seconds: what compiling `step` took.
      planned_bytes: what the compiler planned for it on each device.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        act: Callable[[PyTree], Any] | None,
        state: PyTree,
        *,
        folder: pathlib.Path,
        reporter: Reporter,
        steps_per_update: int,
        compile_seconds: float,
        planned_bytes: float | None,
    ) -> None:
        self._step = step
        self._act = None if act is None else jax.jit(act).lower(state).compile()
        self._folder, self._reporter = folder / PROFILE, reporter
        self._steps_per_update = steps_per_update
        self._compile_seconds, self._planned_bytes = compile_seconds, planned_bytes
        self._calls = 0
        self._started = self._update_seconds = 0.0
        self._tracing = self._traced = False

    def __call__(self, state: PyTree, *inputs: PyTree) -> Any:
        """Calls the step."""
        if self._calls in (WARM, WARM + TIMED, WARM + TIMED + TRACED):
            jax.block_until_ready(state)
            self._turn(state)
        self._calls += 1
        if not self._tracing:
            return self._step(state, *inputs)
        with jax.profiler.StepTraceAnnotation("update", step_num=self._calls):
            return self._step(state, *inputs)

    def __enter__(self) -> Profiler:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends a trace that is under way."""
        self._stop_trace()
        if error is None and self._calls <= WARM + TIMED + TRACED:
            least = WARM + TIMED + TRACED + 1
            self._reporter.note(f"no profile: the run ended after {self._calls} updates, it takes {least}")

    def _turn(self, state: PyTree) -> None:
        """From one phase to the next, with nothing under way on the device."""
        if self._calls == WARM:
            self._started = time.perf_counter()
        elif self._calls == WARM + TIMED:
            self._update_seconds = (time.perf_counter() - self._started) / TIMED
            if is_first():  # the traces of several processes of a host would have the same name
                with self._without_ending_the_run():
                    jax.profiler.start_trace(self._folder)
                    self._tracing = True
        else:
            self._stop_trace()
            counted = peak_memory()  # before acting alone, which needs memory of its own
            profile = Profile(
                self._compile_seconds,
                self._update_seconds,
                self._acting_seconds(state),
                self._steps_per_update,
                self._planned_bytes if counted is None else counted,
                counted is not None,
            )
            for line in profile_table(profile).splitlines():
                self._reporter.note(line)
            if self._traced:
                self._reporter.note(f"trace of {TRACED} updates: tensorboard --logdir {self._folder}")

    def _acting_seconds(self, state: PyTree) -> float | None:
        if self._act is None:
            return None
        jax.block_until_ready(self._act(state))
        started = time.perf_counter()
        for _ in range(TIMED):
            jax.block_until_ready(self._act(state))
        return (time.perf_counter() - started) / TIMED

    def _stop_trace(self) -> None:
        if self._tracing:
            self._tracing = False
            with self._without_ending_the_run():
                jax.profiler.stop_trace()
                self._traced = True

    @contextlib.contextmanager
    def _without_ending_the_run(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # another trace is under way, or the disk is full
            self._reporter.note(f"no trace: {first_line(error)}")


def profile_table(profile: Profile) -> str:
    """The measurements as text.

    >>> print(profile_table(Profile(12.3, 0.5, 0.2, 2048, 64 * 2**20, True)))
    profile       seconds  share    steps/s
    compiling        12.3
    update            0.5   100%      4,096
      acting          0.2    40%     10,240
      learning        0.3    60%      6,827
    memory of a device: 64 MB at most
    """
    whole = profile.update_seconds

    def row(name: str, seconds: float) -> str:
        rate = profile.steps_per_update / seconds if seconds > 0 else float("inf")
        return f"{name:<12} {seconds:8.3g} {seconds / whole:6.0%} {rate:10,.0f}"

    lines = [f"{'profile':<12} {'seconds':>8} {'share':>6} {'steps/s':>10}"]
    lines += [f"{'compiling':<12} {profile.compile_seconds:8.3g}", row("update", whole)]
    if profile.acting_seconds is not None:
        lines += [row("  acting", profile.acting_seconds), row("  learning", whole - profile.acting_seconds)]
    if profile.memory_bytes is not None:
        how = "at most" if profile.counted else "planned by the compiler"
        lines.append(f"memory of a device: {profile.memory_bytes / 2**20:.0f} MB {how}")
    return "\n".join(lines)


def peak_memory() -> int | None:
    """Bytes of the first device that were in use at most; None where the device does not count them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
