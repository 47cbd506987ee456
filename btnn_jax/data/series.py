"""Series of prices, read from CSV files of the common layouts."""

from __future__ import annotations

import contextlib
import csv
import datetime
import gzip
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TextIO

import numpy as np

Path = str | os.PathLike[str]

TIMES = ("time", "date", "datetime", "date time", "gmt time", "local time", "utc time", "timestamp")
"""The headers by which a column of times is known; the first column is taken where there is none of them."""

BARS = ("Open", "High", "Low", "Close", "Volume")  # of a file without a header

_TIME_WIDTH = 48  # characters; the longest known, "01.01.2017 22:00:00.000 GMT-0000", has 32
_VOLUME = re.compile(r"(?<![a-z])v(ol(ume)?)?(?![a-z])")
_EPOCH = datetime.datetime(1970, 1, 1)


@dataclass(frozen=True)
class Series:
    """Columns of numbers over time.

    Indexed by a slice of rows, it gives the series of those rows.

    Attributes:
        names: the columns', as in the file.
        times: datetime64[s] `[T]`, UTC where the file named a zone; strictly increasing. None where there are none.
        values: float64 `[T, columns]`.
    """

    names: tuple[str, ...]
    times: np.ndarray | None
    values: np.ndarray

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

    def __getitem__(self, rows: slice) -> Series:
        """The series of some rows."""
        return Series(self.names, None if self.times is None else self.times[rows], self.values[rows])

    def select(self, *names: str) -> Series:
        """The series of some columns, in the order asked for; upper and lower case are the same.

        >>> Series(("Open", "Close"), None, np.ones((3, 2))).select("close").names
        ('Close',)
        """
        columns = [_find(name, self.names) for name in names]
        return Series(tuple(self.names[i] for i in columns), self.times, self.values[:, columns])


class Gap(NamedTuple):
    """A place where a series misses rows."""

    row: int  # the first row after it
    since: np.datetime64  # time of the row before it
    until: np.datetime64  # time of `row`


def gaps(series: Series) -> list[Gap]:
    """Where the time between two rows is longer than the usual one, the most frequent; weekends too.

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


def load_csv(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    unsorted: str = "error",
    duplicates: str = "error",
) -> Series:
    """Reads a series of prices from a CSV file, gzipped or not.

    Known by themselves: HistData (`20170101 220000;O;H;L;C;V`, no header), Yahoo (`Date,Open,...,Adj Close,Volume`),
    Dukascopy (`Gmt time,...` with `01.01.2017 22:00:00.000`, with or without `GMT+0100`), and any file with a header
    and ISO times, separated by commas, semicolons or tabs. Times with a zone are converted to UTC; others are taken
    as they stand (HistData's are Eastern Standard Time, five hours behind UTC all year). A fraction of a second is
    cut off.

    Every number must be a price, above 0; only a column with a word "volume", "vol" or "v" in its name may be 0.

    Args:
        path: the file.
        columns: names of the columns to read, upper or lower case; None for all but the time.
        unsorted: "error", or "sort" to put the rows in order of time.
        duplicates: "error", or "first" or "last" for which of the rows with the same time to keep.

    Raises:
        ValueError: what is wrong with the file, as one line with its name and the number of the line.
        OSError: the file cannot be read.
    """
    if unsorted not in ("error", "sort") or duplicates not in ("error", "first", "last"):
        raise ValueError(
            "unsorted must be 'error' or 'sort' and duplicates 'error', 'first' or 'last', got "
            f"{unsorted!r} and {duplicates!r}"
        )
    file = _File(pathlib.Path(path))
    if columns is None:
        chosen = [i for i, name in enumerate(file.columns) if name]
    else:
        try:
            chosen = [_find(name, file.columns) for name in columns]
        except ValueError as error:
            raise file.error(str(error)) from None
    table = file.read(chosen)
    times = _read_times(file, table[f"f{file.time}"].tolist())
    values = np.stack([table[f"f{i}"] for i in chosen], axis=1)
    series = Series(tuple(file.names[i] for i in chosen), times, values)
    _check_values(file, series)
    return _in_order(file, series, unsorted, duplicates)


class _File:
    """The layout of a CSV file, and its errors."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        with self.open() as lines:
            try:
                head = "".join(line for line, _ in zip(lines, range(50), strict=False))
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not a text file") from None
        first = next((line for line in head.splitlines() if line.strip()), "")
        self.separator = max(",;\t", key=first.count)
        rows = [row for row in csv.reader(head.splitlines(), delimiter=self.separator) if row][:2]
        if not rows or len(rows[0]) < 2:
            raise ValueError(f"{path} is not a CSV file: its first line is {first[:60]!r}")
        names = [name.strip() for name in rows[0]]
        self.header = not _is_time(names[0])
        if not self.header:
            if len(names) != 1 + len(BARS):
                raise ValueError(
                    f"{path} has no header; expected one, or a time and {', '.join(BARS)}, got {first[:60]!r}"
                )
            names = ["Time", *BARS]
        elif len(rows) < 2:
            raise ValueError(f"{path} has a header but no rows")
        elif len(rows[1]) == len(names) + 1:  # the times are an index without a name
            names = ["Time", *names]
        self.names = names
        known = [i for i, name in enumerate(names) if name.casefold() in TIMES]
        self.time = known[0] if known else 0
        self.columns = ["" if i == self.time else name for i, name in enumerate(names)]

    @contextlib.contextmanager
    def open(self) -> Iterator[TextIO]:
        """The file's text."""
        opener: Any = gzip.open if self.path.suffix == ".gz" else open
        with opener(self.path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file

    def read(self, columns: Sequence[int]) -> np.ndarray:
        """All rows as one structured array: field `f0` is column 0; only `columns` are numbers."""
        kinds = [(f"f{i}", "f8" if i in columns else "U1") for i in range(len(self.names))]
        kinds[self.time] = (f"f{self.time}", f"U{_TIME_WIDTH}")
        try:
            with self.open() as lines:
                if self.header:
                    next(line for line in lines if line.strip("\r\n"))
                return np.loadtxt(
                    lines, np.dtype(kinds), comments=None, delimiter=self.separator, quotechar='"', ndmin=1
                )
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} is not a text file") from None
        except ValueError as error:
            self._find_damage(columns)
            raise self.error(str(error).splitlines()[0]) from None

    def _find_damage(self, columns: Sequence[int]) -> None:
        """Raises an error about the first row that cannot be read."""
        for row, cells in enumerate(self._rows()):
            if len(cells) != len(self.names):
                raise self.error(f"has {len(cells)} cells, expected {len(self.names)}", [row])
            for i in columns:
                try:
                    float(cells[i])
                except ValueError:
                    raise self.error(f"{self.names[i]} is {cells[i]!r}, not a number", [row]) from None

    def _rows(self) -> Iterator[list[str]]:
        with self.open() as lines:
            rows = (row for row in csv.reader(lines, delimiter=self.separator) if row)
            if self.header:
                next(rows)
            yield from rows

    def line(self, row: int) -> int:
        """The number of a row's line, from 1."""
        with self.open() as lines:
            filled = (number for number, line in enumerate(lines, start=1) if line.strip("\r\n"))
            return next(number for i, number in enumerate(filled) if i == row + self.header)

    def error(self, what: str, rows: Sequence[int] | np.ndarray = ()) -> ValueError:
        """An error of one line; of several rows, the first is named and the others are counted."""
        if not len(rows):
            return ValueError(f"{self.path}: {what}")
        more = f" (and {len(rows) - 1} more like it)" if len(rows) > 1 else ""
        return ValueError(f"{self.path}, line {self.line(int(rows[0]))}: {what}{more}")


def _parse_time(text: str) -> datetime.datetime:
    if text[2:3] == ".":  # Dukascopy: dd.mm.yyyy
        text = f"{text[6:10]}-{text[3:5]}-{text[:2]}{text[10:].replace(' GMT', '')}"
    return datetime.datetime.fromisoformat(text)


def _is_time(text: str) -> bool:
    try:
        _parse_time(text)
    except ValueError:
        return False
    return True


def _read_times(file: _File, texts: list[str]) -> np.ndarray:
    """Seconds since 1970 as datetime64[s] `[T]`."""
    zone = _is_time(texts[0]) and _parse_time(texts[0]).tzinfo is not None
    epoch = _EPOCH.replace(tzinfo=datetime.UTC) if zone else _EPOCH
    seconds = np.empty(len(texts), np.int64)
    for row, text in enumerate(texts):
        try:
            since = _parse_time(text) - epoch
        except ValueError:
            raise file.error(f"{file.names[file.time]} is {text!r}, not a time", [row]) from None
        except TypeError:
            raise file.error(
                f"the time {text!r} has {'no' if zone else 'a'} zone, unlike the first", [row]
            ) from None
        seconds[row] = 86400 * since.days + since.seconds
    return seconds.astype("datetime64[s]")


def _check_values(file: _File, series: Series) -> None:
    for name, column in zip(series.names, series.values.T, strict=True):
        if len(rows := np.flatnonzero(~np.isfinite(column))):
            raise file.error(f"{name} is {column[rows[0]]}, not a number", rows)
        volume = _VOLUME.search(name.casefold()) is not None
        if len(rows := np.flatnonzero(column < 0 if volume else column <= 0)):
            expected = "not be negative" if volume else "be above 0"
            raise file.error(f"{name} must {expected}, got {column[rows[0]]:g}", rows)


def _in_order(file: _File, series: Series, unsorted: str, duplicates: str) -> Series:
    times = series.times
    assert times is not None
    steps = np.diff(times)
    if len(rows := 1 + np.flatnonzero(steps < np.timedelta64(0, "s"))):
        if unsorted == "error":
            before = times[rows[0] - 1]
            raise file.error(f"the time {times[rows[0]]} comes after {before}", rows)
        order = np.argsort(times, kind="stable")
        times = times[order]
        series = Series(series.names, times, series.values[order])
        steps = np.diff(times)
    else:
        order = np.arange(len(times))
    again = steps == np.timedelta64(0, "s")
    if not again.any():
        return series
    rows = 1 + np.flatnonzero(again)
    if duplicates == "error":
        first = file.line(int(order[rows[0] - 1]))
        raise file.error(f"repeats the time {times[rows[0]]} of line {first}", order[rows])
    keep = np.ones(len(times), bool)
    keep[rows - (duplicates == "last")] = False
    return Series(series.names, times[keep], series.values[keep])


def _find(name: str, names: Sequence[str]) -> int:
    for column, known in enumerate(names):
        if known and known.casefold() == name.casefold():
            return column
    raise ValueError(f"no column {name!r}; there are {', '.join(filter(None, names))}")
