"""Series of prices, read from CSV files of the common layouts."""

from __future__ import annotations

import csv
import datetime
import gzip
import itertools
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

__all__ = ["BARS", "TIMES", "Gap", "Path", "Series", "gaps", "is_volume", "load_csv"]

Path = str | os.PathLike[str]

TIMES = ("time", "date", "datetime", "date time", "gmt time", "local time", "utc time", "timestamp")
"""The headers by which a column of times is known; the first column is taken where there is none of them."""

BARS = ("Open", "High", "Low", "Close", "Volume")  # of a file without a header

_TIME_WIDTH = 48  # characters; the longest known, "01.01.2017 22:00:00.000 GMT-0000", has 32
_VOLUME = re.compile(r"volume|(?<![a-z])vol(?![a-z])")
_ROUNDING = 1e-9  # of prices that a file holds with few digits, relative
_EPOCH = datetime.datetime(1970, 1, 1)


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
    cut off. Columns that are just O, H, L, C and V, or BTGym's `1_O` to `5_V`, are named Open to Volume.

    Every number must be a price, above 0; only a volume (`is_volume`) may be 0. Where there are Open, High, Low and
    Close, high and low must enclose the others. A row is one line.

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
    series = Series(tuple(file.names[i] for i in chosen), times, values, file.lines)
    _check_values(file, series)
    _check_bars(file, series)
    return _in_order(file, series, unsorted, duplicates)


def is_volume(name: str) -> bool:
    """Whether a column counts what was traded, by its name; `V` alone is a share's.

    >>> [name for name in ("Volume", "VOL.", "Volume BTC", "V", "VOLV", "volatility") if is_volume(name)]
    ['Volume', 'VOL.', 'Volume BTC']
    """
    return _VOLUME.search(name.casefold()) is not None


class _File:
    """The layout of a CSV file, and its errors."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.lines = np.empty(0, int)  # of the rows, once they are read
        numbers: list[int] = []
        head = list(itertools.islice(self._text(numbers), 2))
        first = head[0].strip("\r\n") if head else ""
        self.separator = max(",;\t", key=first.count)
        rows = [self._cells(number, line) for number, line in zip(numbers, head, strict=True)]
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
        known = [i for i, name in enumerate(names) if name.casefold() in TIMES]
        self.time = known[0] if known else 0
        self.names = _in_full(names, self.time)
        folded = [name.casefold() for name in self.names]
        for i, name in enumerate(self.names):
            if name and folded.index(folded[i]) < i:
                raise self.error(f"two columns are named {name!r}", numbers[:1])
        self.columns = ["" if i == self.time else name for i, name in enumerate(self.names)]

    def _text(self, numbers: list[int]) -> Iterator[str]:
        """The lines that are not empty, a header first; their numbers, from 1, are added to `numbers`."""
        opener: Any = gzip.open if self.path.suffix == ".gz" else open
        try:
            with opener(self.path, "rt", encoding="utf-8-sig", newline="") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip("\r\n"):
                        numbers.append(number)
                        yield line
        except UnicodeDecodeError:
            raise ValueError(f"{self.path} is not a text file") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path} is not a whole gzip file: {error}") from None

    def read(self, columns: Sequence[int]) -> np.ndarray:
        """All rows as one structured array: field `f0` is column 0; only `columns` are numbers."""
        kinds = [(f"f{i}", "f8" if i in columns else "U1") for i in range(len(self.names))]
        kinds[self.time] = (f"f{self.time}", f"U{_TIME_WIDTH}")
        numbers: list[int] = []
        try:
            table = np.loadtxt(
                self._text(numbers),
                np.dtype(kinds),
                comments=None,
                delimiter=self.separator,
                skiprows=int(self.header),
                quotechar='"',
                ndmin=1,
            )
            self.lines = np.array(numbers[int(self.header) :])
            damage = None if len(table) == len(self.lines) else "a quoted cell has several lines"
        except ValueError as error:
            damage = str(error).splitlines()[0]
        if damage is not None:
            self._find_damage(columns)
            raise self.error(damage)
        return table

    def _find_damage(self, columns: Sequence[int]) -> None:
        """Raises an error about the first row that cannot be read."""
        numbers: list[int] = []
        for line in itertools.islice(self._text(numbers), int(self.header), None):
            cells = self._cells(numbers[-1], line)
            if len(cells) != len(self.names):
                raise self.error(f"has {len(cells)} cells, expected {len(self.names)}", numbers[-1:])
            for i in columns:
                if not _is_number(cells[i]):
                    raise self.error(f"{self.names[i]} is {cells[i][:60]!r}, not a number", numbers[-1:])

    def _cells(self, number: int, line: str) -> list[str]:
        try:
            return next(csv.reader([line], delimiter=self.separator, strict=True))
        except csv.Error as error:
            raise self.error(str(error), [number]) from None

    def error(self, what: str, lines: Sequence[int] | np.ndarray = ()) -> ValueError:
        """An error of one line; of several lines of the file, the first is named and the others are counted."""
        if not len(lines):
            return ValueError(f"{self.path}: {what}")
        more = f" (and {len(lines) - 1} more like it)" if len(lines) > 1 else ""
        return ValueError(f"{self.path}, line {lines[0]}: {what}{more}")


def _in_full(names: list[str], time: int) -> list[str]:
    """Names of columns, those of bars in full where all are abbreviated: one alone may be a share's."""
    full = dict(zip("ohlcv", BARS, strict=True))
    short = [re.sub(r"^\d_", "", name).casefold() for name in names]
    if {*short[:time], *short[time + 1 :]} not in ({*"ohlc"}, {*"ohlcv"}):
        return names
    return [name if i == time else full[short[i]] for i, name in enumerate(names)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and text.isascii()  # which Python takes for numbers, and NumPy does not


def _parse_time(text: str) -> datetime.datetime:
    if text[2:3] == ".":  # Dukascopy: dd.mm.yyyy
        text = f"{text[6:10]}-{text[3:5]}-{text[:2]}{text[10:].replace(' GMT', '')}"
    elif len(text) > 8 and text.isdigit():  # seconds or milliseconds since 1970 can look like a date
        if len(text) not in (12, 14) or not text.startswith(("19", "20")):
            raise ValueError(text)
        text = f"{text[:8]}T{text[8:]}"
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
            raise file.error(
                f"{file.names[file.time]} is {text!r}, not a time such as 2017-01-31 22:00:00 or 20170131 220000",
                file.lines[row : row + 1],
            ) from None
        except TypeError:
            raise file.error(
                f"the time {text!r} has {'no' if zone else 'a'} zone, unlike the first",
                file.lines[row : row + 1],
            ) from None
        seconds[row] = 86400 * since.days + since.seconds
    return seconds.astype("datetime64[s]")


def _check_values(file: _File, series: Series) -> None:
    for name, column in zip(series.names, series.values.T, strict=True):
        if len(rows := np.flatnonzero(~np.isfinite(column))):
            raise file.error(f"{name} is {column[rows[0]]}, not a number", file.lines[rows])
        volume = is_volume(name)
        if len(rows := np.flatnonzero(column < 0 if volume else column <= 0)):
            expected = "not be negative" if volume else "be above 0"
            raise file.error(f"{name} must {expected}, got {column[rows[0]]:g}", file.lines[rows])


def _check_bars(file: _File, series: Series) -> None:
    if not {name.casefold() for name in BARS[:4]} <= {name.casefold() for name in series.names}:
        return
    opens, high, low, close = bars = series.select(*BARS[:4]).values.T
    above = np.maximum(opens, close) > high * (1 + _ROUNDING)
    below = np.minimum(opens, close) < low * (1 - _ROUNDING)
    if len(rows := np.flatnonzero(above | below)):
        got = ", ".join(f"{name} {x}" for name, x in zip(BARS, bars[:, rows[0]], strict=False))
        raise file.error(f"High and Low must enclose Open and Close, got {got}", file.lines[rows])


def _in_order(file: _File, series: Series, unsorted: str, duplicates: str) -> Series:
    times, lines = series.times, file.lines
    assert times is not None
    if len(rows := 1 + np.flatnonzero(np.diff(times) < np.timedelta64(0, "s"))):
        if unsorted == "error":
            before = times[rows[0] - 1]
            raise file.error(f"the time {times[rows[0]]} comes after {before}", lines[rows])
        order = np.argsort(times, kind="stable")
        series, times, lines = series[order], times[order], lines[order]
    rows = 1 + np.flatnonzero(np.diff(times) == np.timedelta64(0, "s"))
    if not len(rows):
        return series
    if duplicates == "error":
        raise file.error(f"repeats the time {times[rows[0]]} of line {lines[rows[0] - 1]}", lines[rows])
    keep = np.ones(len(times), bool)
    keep[rows - (duplicates == "last")] = False
    return series[keep]


def _find(name: str, names: Sequence[str]) -> int:
    for column, known in enumerate(names):
        if known and known.casefold() == name.casefold():
            return column
    raise ValueError(f"no column {name!r}; there are {', '.join(filter(None, names))}")
