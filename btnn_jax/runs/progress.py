"""How a run shows its progress: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, NamedTuple, Protocol, TextIO

from btnn_jax._errors import import_extra

__all__ = [
    "Bar",
    "Lines",
    "Progress",
    "Reporter",
    "Silent",
    "format_count",
    "format_duration",
    "make_reporter",
    "progress_line",
    "progress_words",
]


class Progress(NamedTuple):
    """How far a run is."""

    steps: int  # so far
    total: int  # steps of the whole run
    steps_per_second: float  # of late; 0 until the first update
    result: str  # how well it goes, in a few words
    seconds: float  # of training so far
    left: float  # seconds that the rest will take; NaN when not known yet


class Reporter(Protocol):
    """Receives the progress of a run."""

    def note(self, text: str) -> None:
        """Shows one line that stays."""

    def update(self, progress: Progress) -> None:
        """Shows how far the run is, at most about once a second."""

    def close(self) -> None:
        """Ends the display; whatever comes after is a plain note."""


class Silent:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Shows nothing."""

    def update(self, progress: Progress) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Does nothing."""


class Lines:
    """Whole lines without control codes, for log files and pipes.

    Args:
      stream: where to; None for standard output.
      every: seconds between two lines of progress; the first and the last are always shown.
    """

    def __init__(self, stream: TextIO | None = None, *, every: float = 10.0) -> None:
        self._stream = stream
        self._every = every
        self._next = -math.inf
        self._unseen: Progress | None = None

    def note(self, text: str) -> None:
        """Prints a line."""
        print(text, file=self._stream, flush=True)

    def update(self, progress: Progress) -> None:
        """Prints a line if the last one is old enough."""
        self._unseen = progress
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            self._show()

    def close(self) -> None:
        """Prints the latest progress unless it has been printed."""
        if self._unseen is not None:
            self._show()

    def _show(self) -> None:
        assert self._unseen is not None
        self.note(progress_line(self._unseen))
        self._unseen = None


class Bar:
    """A progress bar on a terminal, drawn by rich."""

    def __init__(self) -> None:
        rich = import_extra("rich.progress", "the progress bar")
        text = rich.TextColumn
        self._bar: Any = rich.Progress(
            text("{task.percentage:>3.0f}%"),
            rich.BarColumn(bar_width=None),
            text("{task.fields[steps]}"),
            text("{task.fields[rate]}", style="cyan"),
            text("{task.fields[result]}", style="green"),
            text("{task.fields[clock]}"),
            refresh_per_second=2,
            expand=True,
        )
        self._task: Any = None

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, progress: Progress) -> None:
        """Moves the bar."""
        steps, rate, result, clock = progress_words(progress)
        fields = {
            "completed": progress.steps,
            "steps": steps,
            "rate": rate,
            "result": result,
            "clock": clock,
        }
        if self._task is None:
            self._task = self._bar.add_task("", total=progress.total, **fields)
            self._bar.start()
        else:
            self._bar.update(self._task, **fields)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()


def make_reporter() -> Reporter:
    """A bar where standard output is a terminal, lines elsewhere."""
    return Bar() if sys.stdout.isatty() else Lines()


def progress_line(progress: Progress) -> str:
    """One line about a run's progress.

    >>> progress_line(Progress(250_000, 1_000_000, 2500.0, "return 3.25", 100.0, 300.0))
    ' 25%  250k/1M steps  2,500 steps/s  return 3.25  0:01:40, 0:05:00 left'
    """
    return f"{100 * progress.steps // progress.total:3d}%  " + "  ".join(progress_words(progress))


def progress_words(progress: Progress) -> tuple[str, str, str, str]:
    """Steps, speed, result and times of `progress`, each as a few words."""
    return (
        f"{format_count(progress.steps)}/{format_count(progress.total)} steps",
        f"{progress.steps_per_second:,.0f} steps/s",
        progress.result,
        f"{format_duration(progress.seconds)}, {format_duration(progress.left)} left",
    )


def format_count(count: float) -> str:
    """A number with a suffix, at most four digits.

    >>> [format_count(x) for x in (0, 999, 1000, 131_072, 2_000_000, 2_560_000)]
    ['0', '999', '1k', '131k', '2M', '2.56M']
    """
    for size, suffix in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if abs(count) >= size:
            return f"{float(f'{count / size:.3g}'):g}{suffix}"
    return f"{count:g}"


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> format_duration(3725.0), format_duration(float("nan"))
    ('1:02:05', '-:--:--')
    """
    if not math.isfinite(seconds):
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"
