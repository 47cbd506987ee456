"""Ctrl-C at any time: the process ends at once and says what is kept and how to go on.

While XLA compiles or a device computes, Python runs no signal handler. A thread answers instead: the handler in C wakes
it through a pipe.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["one_interrupt_is_handled", "say_on_interrupt", "watch_interrupts"]


class _Watch:
    """What the thread knows."""

    def __init__(self) -> None:
        self.text = "nothing has been written"
        self.received = 0
        self.handled = 0  # how many a training loop answers by itself


_watch: _Watch | None = None


def say_on_interrupt(text: str) -> None:
    """What an interrupt says from now on, after "stopped: "; without effect outside of `watch_interrupts`."""
    if _watch is not None:
        _watch.text = text


@contextlib.contextmanager
def one_interrupt_is_handled() -> Iterator[None]:
    """Leaves the first SIGINT within the block to the handler that is installed there; the second ends the process."""
    watch = _watch
    if watch is None:
        yield
        return
    watch.received, watch.handled = 0, 1
    try:
        yield
    finally:
        watch.handled = 0


@contextlib.contextmanager
def watch_interrupts() -> Iterator[None]:
    """Ends the process with exit code 130 and one line wherever SIGINT arrives in the block.

    Without effect outside of the main thread, or where somebody else handles SIGINT.
    """
    global _watch
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _ignore)
    _watch = watch = _Watch()
    threading.Thread(target=_listen, args=(watch, reading), daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(before)
        _watch = None
        os.close(writing)


def _ignore(signum: int, frame: Any) -> None:
    """SIGINT's handler in Python: the thread answers."""


def _listen(watch: _Watch, reading: int) -> None:
    while number := os.read(reading, 1):
        if number[0] != signal.SIGINT:
            continue
        watch.received += 1
        if watch.received > watch.handled:
            print(f"\nbtnn-jax: stopped: {watch.text}", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGINT)
    os.close(reading)
