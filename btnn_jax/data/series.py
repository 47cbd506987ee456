"""Series of prices and what their columns are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

__all__ = ["FIELDS", "Gap", "Series", "asset_and_field", "gaps", "is_volume"]

FIELDS = ("Open", "High", "Low", "Close", "Adj Close", "Volume", "Tick Volume")
"""What the columns of bars are called."""

_VOLUME = re.compile(r"volume|(?<![a-z])vol(?![a-z])")


@dataclass(frozen=True)
class Series:
    """Columns of numbers over time.

    Indexed by a slice of rows, or an array that chooses some, it gives the series of those rows.

    Attributes:
        names: the columns'.
        times: datetime64[s] `[T]`, UTC where the file named a zone; strictly increasing. None where there are none.
        values: float64 `[T, columns]`.
        lines: int `[T]`, of the file that the rows were read from, counted from 1; None where there is none.
    """

    names: tuple[str, ...]
    times: np.ndarray | None
    values: np.ndarray
    lines: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Checks that the shapes agree."""
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise ValueError(
                f"values must be [T, {len(self.names)}] for the columns {', '.join(self.names)}, got shape "
                f"{self.values.shape}"
            )
        if self.times is not None and self.times.shape != self.values.shape[:1]:
            raise ValueError(
                f"times must be [T] for values {self.values.shape}, got shape {self.times.shape}"
            )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.values)

    def __getitem__(self, rows: slice | np.ndarray) -> Series:
        """The series of some rows."""
        times, lines = (None if x is None else x[rows] for x in (self.times, self.lines))
        return Series(self.names, times, self.values[rows], lines)

    def select(self, *names: str) -> Series:
        """The series of some columns, in the order asked for; upper and lower case are the same.

        >>> Series(("Open", "Close"), None, np.ones((3, 2))).select("close").names
        ('Close',)
        """
        columns = [_find(name, self.names) for name in names]
        return replace(self, names=tuple(self.names[i] for i in columns), values=self.values[:, columns])


class Gap(NamedTuple):
    """A place where a series misses rows."""

    row: int  # the first row after it
    since: np.datetime64  # time of the row before it
    until: np.datetime64  # time of `row`


def gaps(series: Series) -> list[Gap]:
    """Where the time between two rows is longer than the usual one, the most frequent; weekends too.

    Of a series from a file, `series.lines[gap.row]` is the line after a gap.

    >>> times = np.array(["2024-01-04", "2024-01-05", "2024-01-08"], "datetime64[s]")
    >>> [gap.row for gap in gaps(Series(("Close",), times, np.ones((3, 1))))]
    [2]
    """
    if series.times is None or len(series) < 2:
        return []
    steps = np.diff(series.times)
    lengths, counts = np.unique(steps, return_counts=True)
    after = np.flatnonzero(steps > lengths[np.argmax(counts)]) + 1
    return [Gap(int(row), series.times[row - 1], series.times[row]) for row in after]


def is_volume(name: str) -> bool:
    """Whether a column counts what was traded, by its name; `V` alone is a share's.

    >>> [name for name in ("Volume", "VOL.", "Volume BTC", "V", "VOLV", "volatility") if is_volume(name)]
    ['Volume', 'VOL.', 'Volume BTC']
    """
    return _VOLUME.search(name.casefold()) is not None


def asset_and_field(name: str) -> tuple[str, str]:
    """What a column is of: the asset, empty where there is one alone, and which part of its bars.

    The field is empty for a column that is no part of a bar: it is all that is known of an asset of its name.

    >>> [asset_and_field(name) for name in ("Close", "MSFT Adj Close", "EURUSD")]
    [('', 'Close'), ('MSFT', 'Adj Close'), ('EURUSD', '')]
    """
    for field in FIELDS[::-1]:  # the longer of two that end alike comes first
        if name.casefold() == field.casefold():
            return "", field
        if name.casefold().endswith(f" {field.casefold()}"):
            return name[: -len(field) - 1], field
    return name, ""


def _find(name: str, names: Sequence[str]) -> int:
    for column, known in enumerate(names):
        if known and known.casefold() == name.casefold():
            return column
    raise ValueError(f"no column {name!r}; there are {', '.join(filter(None, names))}")
