"""Several processes that run one program together, through `jax.distributed`; alone, all of it is trivial."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np

from btnn_jax._errors import first_line
from btnn_jax.runs.folder import RunError

__all__ = [
    "ProcessLostError",
    "connect",
    "detect_lost_process",
    "first_only",
    "is_first",
    "max_over_processes",
]

# Long enough for a slow disk or network, short enough to learn of a lost process within a minute.
_HEARTBEAT_SECONDS = 20


class ProcessLostError(RunError):
    """Another process of the run has ended; this one can only end too."""


def connect(coordinator: str, process_id: int, num_processes: int) -> None:
    """Joins the processes of a run; to be called before JAX looks for devices.

    Args:
      coordinator: `HOST:PORT`, where process 0 listens.
      process_id: from 0 to `num_processes - 1`, another one for each process.
      num_processes: how many there are.

    Raises:
      RunError: the others cannot be reached.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=60,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except Exception as error:  # gRPC's, of several types
        raise RunError(
            f"process {process_id} of {num_processes} cannot meet the others at {coordinator}: {first_line(error)}"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def max_over_processes(*values: int) -> list[int]:
    """The largest of each value over all processes; all of them have to ask, and wait for each other."""
    if jax.process_count() == 1:
        return list(values)
    from jax.experimental import multihost_utils

    return [int(x) for x in np.max(multihost_utils.process_allgather(np.asarray(values, np.int32)), axis=0)]


@contextlib.contextmanager
def first_only(what: str) -> Iterator[bool]:
    """A block that does something on the first process only, where it gives True; the others wait for its end.

    Raises:
      RunError: on the others, if the first process raised something.
    """
    failed = False
    try:
        yield is_first()
    except BaseException:
        failed = True
        raise
    finally:
        (failed_somewhere,) = max_over_processes(int(failed))
        if failed_somewhere and not failed:
            raise RunError(f"{what} failed on process 0, which says why")


@contextlib.contextmanager
def detect_lost_process() -> Iterator[None]:
    """Turns the loss of another process into an error that says how to go on.

    Raises:
      ProcessLostError: a computation over several processes failed, or what failed was caused by one.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
            cause = cause.__cause__
        if cause is None or jax.process_count() == 1:
            raise
        raise ProcessLostError(
            f"process {jax.process_index()} has lost another process of this run ({first_line(cause)}); start all of "
            "them again with --resume"
        ) from error
