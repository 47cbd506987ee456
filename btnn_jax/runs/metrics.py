"""Metrics: averaged on the device, written as JSON lines and TensorBoard events, and read back."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import sys
import time
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax._errors import import_extra
from btnn_jax.runs.folder import EVENTS, METRICS, Folder, RunError, write_text

__all__ = [
    "EPISODES",
    "LAST_VALUE",
    "MetricSums",
    "MetricsWriter",
    "add_metrics",
    "read_means",
    "read_metrics",
    "zero_sums",
]

# Running counts, schedules, and what was measured at the end: the newest value is recorded rather than a mean.
LAST_VALUE = ("skipped", "learning_rate", "beta", "validation_loss", "validation_kl")
EPISODES = "episode_"  # how the names of metrics start that are unknown until an episode has finished


class MetricSums(NamedTuple):
    """Metrics of several updates, summed on the device."""

    total: dict[str, jax.Array]  # float32 [], sum over updates; of `LAST_VALUE` the newest value
    known: dict[str, jax.Array]  # int32 [], the updates in which the metric was known; of `LAST_VALUE` 1
    updates: jax.Array  # int32 []


def zero_sums(metrics: Any) -> MetricSums:
    """The sums over no update, for metrics of these names (a dict with any values)."""
    zero = jnp.zeros((), jnp.int32)
    return MetricSums(
        {name: jnp.zeros((), jnp.float32) for name in metrics}, dict.fromkeys(metrics, zero), zero
    )


def add_metrics(sums: MetricSums, metrics: dict[str, jax.Array]) -> MetricSums:
    """The sums with one more update; pure.

    A metric of episodes is known once an episode has finished; that of one seed among several is NaN until then.
    """
    finished = jnp.asarray(metrics.get("episode_length", 0) > 0)
    total, count = {}, {}
    for name, x in metrics.items():
        if name in LAST_VALUE:
            total[name], count[name] = x, jnp.ones((), jnp.int32)
            continue
        known = finished & ~jnp.isnan(x) if name.startswith(EPISODES) else jnp.ones((), bool)
        total[name] = sums.total[name] + jnp.where(known, x, 0.0)
        count[name] = sums.known[name] + known.astype(jnp.int32)
    return MetricSums(total, count, sums.updates + 1)


def read_means(sums: MetricSums) -> dict[str, float]:
    """Fetches the means from the device, without those that no update knew; waits for the device."""
    host = jax.device_get(sums)
    return {name: float(x) / int(host.known[name]) for name, x in host.total.items() if host.known[name] > 0}


class MetricsWriter:
    """Appends records to `metrics.jsonl` and to TensorBoard's events in a run's folder; a context manager.

    Args:
      folder: the run's.
      resume_from: steps to go on from: later records, of a run that was killed, are dropped.
      silent: writes nothing: another process does.

    Attributes:
      seconds: training time up to `resume_from`.

    Raises:
      ModuleNotFoundError: tensorboardX is not installed.
    """

    def __init__(self, folder: Folder, *, resume_from: int = 0, silent: bool = False) -> None:
        path = pathlib.Path(folder) / METRICS
        self.seconds = 0.0
        self._silent = silent
        if silent:
            return
        if path.exists():
            kept = [record for record in _records(path) if record["steps"] <= resume_from]
            write_text(path, "".join(_line(record) for record in kept))
            self.seconds = kept[-1].get("seconds") or 0.0 if kept else 0.0
        self._events = _Events(path.with_name(EVENTS), resume_from)
        self._file = path.open("a", encoding="utf-8")

    def write(self, steps: int, seconds: float, metrics: dict[str, float]) -> None:
        """Appends one record.

        Args:
          steps: so far.
          seconds: training time so far.
          metrics: name -> value; a value that is not finite becomes null.

        Raises:
          OSError: the disk does not take it; the next call tries again.
        """
        if self._silent:
            return
        self._file.write(_line({"steps": steps, "seconds": seconds, **metrics}))
        self._events.write(steps, metrics)
        self._file.flush()
        self._events.flush()

    def __enter__(self) -> MetricsWriter:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the files."""
        if self._silent:
            return
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):  # of which the last `write` has told
                file.close()


class _Events:
    """A file of TensorBoard's events.

    `SummaryWriter`'s thread dies silently on a full disk and would hang training, so events are written directly.
    """

    def __init__(self, folder: pathlib.Path, resume_from: int) -> None:
        purpose = "writing TensorBoard's events"
        self._event = import_extra("tensorboardX.proto.event_pb2", purpose)
        self._summary = import_extra("tensorboardX.proto.summary_pb2", purpose).Summary
        folder.mkdir(exist_ok=True)
        self._file = import_extra("tensorboardX.event_file_writer", purpose).EventsWriter(
            str(folder / "events"), f".{resume_from}"
        )
        self.flush, self.close = self._file.flush, self._file.close
        # TensorBoard hides what a killed run wrote after these steps.
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(resume_from + 1, session_log=start)

    def write(self, steps: int, metrics: dict[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._write(steps, summary=self._summary(value=values))

    def _write(self, steps: int, **what: Any) -> None:
        self._file.write_event(self._event.Event(wall_time=time.time(), step=steps, **what))


def read_metrics(folder: Folder) -> dict[str, np.ndarray]:
    """Reads `metrics.jsonl` of a run.

    Returns:
      name -> float64 `[N]`, one value for each record, NaN where it has none; `steps` and `seconds` are names
      too. Empty where nothing has been recorded.

    Raises:
      RunError: there is no such file, or a line of it is damaged.
    """
    path = pathlib.Path(folder) / METRICS
    if not path.is_file():
        raise RunError(f"{folder} has no {METRICS}")
    records = _records(path)
    names = dict.fromkeys(name for record in records for name in record)
    return {
        name: np.array(
            [math.nan if record.get(name) is None else record[name] for record in records], np.float64
        )
        for name in names
    }


def _line(record: dict[str, Any]) -> str:
    return json.dumps({name: _readable(value) for name, value in record.items()}) + "\n"


def _readable(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.7g}")


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
    # What follows the last line's end is a record that a killed run was about to write.
    lines = path.read_text("utf-8", errors="replace").split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not _is_record(record):
            raise RunError(f"{path}, line {number} is not a record of metrics: {line[:60]!r}")
        records.append(record)
    return records


def _is_record(record: Any) -> bool:
    """Whether a line holds metrics: numbers, or null for those that were not finite, and how many steps there were."""
    if not isinstance(record, dict) or record.get("steps") is None:
        return False
    return all(
        x is None or (isinstance(x, int | float) and abs(x) <= sys.float_info.max) for x in record.values()
    )
