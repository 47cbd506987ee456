"""What must hold of prices, and what is done where it does not: missing values, order, repeated times, bars."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from btnn_jax.data.series import Series, asset_and_field, is_volume

__all__ = ["check_bars", "check_values", "fill_missing", "in_order"]

_ROUNDING = 1e-9  # of prices that a file holds with few digits, relative
_BAR = ("Open", "High", "Low", "Close")


class _Source(Protocol):
    """A table, for messages."""

    def error(self, what: str, rows: np.ndarray = ...) -> ValueError: ...

    def place(self, row: int) -> str: ...


def check_values(source: _Source, series: Series, rows: np.ndarray) -> None:
    """Raises an error about the first price that is not above 0, or volume that is below."""
    for name, column in zip(series.names, series.values.T, strict=True):
        if len(bad := np.flatnonzero(~np.isfinite(column))):
            raise source.error(f"{name} is {column[bad[0]]}, not a number", rows[bad])
        volume = is_volume(name)
        if len(bad := np.flatnonzero(column < 0 if volume else column <= 0)):
            expected = "not be negative" if volume else "be above 0"
            raise source.error(f"{name} must {expected}, got {column[bad[0]]:g}", rows[bad])


def check_bars(source: _Source, series: Series, rows: np.ndarray) -> None:
    """Raises an error about the first bar whose high and low do not enclose its open and close."""
    for asset, columns in _bars(series.names).items():
        if not {*_BAR} <= {*columns}:
            continue
        opens, high, low, close = bars = series.values[:, [columns[field] for field in _BAR]].T
        above = np.maximum(opens, close) > high * (1 + _ROUNDING)
        below = np.minimum(opens, close) < low * (1 - _ROUNDING)
        if len(bad := np.flatnonzero(above | below)):
            got = ", ".join(f"{name} {x}" for name, x in zip(_BAR, bars[:, bad[0]], strict=True))
            of = f" of {asset}" if asset else ""
            raise source.error(f"High and Low must enclose Open and Close{of}, got {got}", rows[bad])


def in_order(
    source: _Source, series: Series, rows: np.ndarray, unsorted: str, duplicates: str
) -> tuple[Series, list[str]]:
    """The rows in order of time, each time once, and what was done for it.

    Args:
      source: for messages.
      series: with times.
      rows: int `[T]`, of the source.
      unsorted: "error"; "reverse", to turn round what is newest first; or "sort".
      duplicates: "error", or "first" or "last" for which row of a time to keep.
    """
    times = series.times
    assert times is not None
    done: list[str] = []
    steps = np.diff(times)
    none = np.timedelta64(0, "s")
    if len(late := 1 + np.flatnonzero(steps < none)):
        if unsorted == "reverse" and np.all(steps <= none):
            order = np.arange(len(times))[::-1]
            done.append("the rows were newest first and have been sorted")
        elif unsorted == "sort":
            order = np.argsort(times, kind="stable")
            done.append("the rows were not in order of time and have been sorted")
        else:
            raise source.error(f"the time {times[late[0]]} comes after {times[late[0] - 1]}", rows[late])
        series, times, rows = series[order], times[order], rows[order]
    repeats = 1 + np.flatnonzero(np.diff(times) == none)
    if not len(repeats):
        return series, done
    if duplicates == "error":
        before = source.place(int(rows[repeats[0] - 1]))
        raise source.error(f"repeats the time {times[repeats[0]]} of {before}", rows[repeats])
    keep = np.ones(len(times), bool)
    keep[repeats - (duplicates == "last")] = False
    done.append(f"{len(repeats)} rows repeated a time: the {duplicates} of each has been kept")
    return series[keep], done


def fill_missing(
    series: Series, missing: str, error: Callable[[int, int], ValueError]
) -> tuple[Series, np.ndarray, list[str]]:
    """Takes rows with missing values (NaN) out, or fills them.

    Filled prices are the last close before them, of closes and opens; High and Low then enclose the two. So a bar that
    is missing as a whole stands still, and an order in it is filled at the last price that was known. A missing volume
    is 0. Rows before the first price are taken out.

    Args:
      series: what was read.
      missing: "error", "drop" or "ffill".
      error: of a row and a column, the first that is missing.

    Returns:
      The series, which rows are left (int) and what was done.
    """
    gone = np.isnan(series.values)
    every = np.arange(len(series))
    if not gone.any():
        return series, every, []
    if missing == "error":
        row = int(np.argmax(gone.any(axis=1)))
        raise error(row, int(np.argmax(gone[row])))
    if missing == "drop":
        keep = np.flatnonzero(~gone.any(axis=1))
        done = [f"{len(series) - len(keep)} rows with missing values have been left out"]
        return series[keep], keep, done
    values = series.values.copy()
    for i, name in enumerate(series.names):
        if is_volume(name):
            values[gone[:, i], i] = 0.0
    for columns in _bars(series.names).values():
        prices = {field: i for field, i in columns.items() if not is_volume(series.names[i])}
        for field in ("Close", "Adj Close", *prices):
            if field in prices and field not in ("Open", "High", "Low"):
                values[:, prices[field]] = _forward(values[:, prices[field]])
        if "Close" not in prices:
            for i in prices.values():
                values[:, i] = _forward(values[:, i])
            continue
        close = values[:, prices["Close"]]
        before = np.concatenate([[np.nan], close[:-1]])
        whole = gone[:, prices["Close"]]
        if "Open" in prices:
            opens = values[:, prices["Open"]]
            values[:, prices["Open"]] = opens = np.where(np.isnan(opens) | whole, before, opens)
        else:
            opens = close
        for field, extreme in (("High", np.fmax), ("Low", np.fmin)):
            if field in prices:
                column = values[:, prices[field]]
                ends = extreme(opens, close)
                values[:, prices[field]] = np.where(np.isnan(column) | whole, ends, column)
    keep = np.flatnonzero(~np.isnan(values).any(axis=1))
    done = [f"{int(gone.any(axis=1).sum())} rows with missing values have been filled with the last close"]
    if len(keep) < len(series):
        done.append(f"{len(series) - len(keep)} rows before the first price have been left out")
    return dataclasses.replace(series, values=values)[keep], keep, done


def _forward(column: np.ndarray) -> np.ndarray:
    """The last number before each that is missing; those before the first stay missing."""
    known = np.where(np.isnan(column), 0, np.arange(len(column)))
    return column[np.maximum.accumulate(known)]


def _bars(names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Columns by asset and field; a column that is no part of a bar is an asset of its own."""
    found: dict[str, dict[str, int]] = {}
    for i, name in enumerate(names):
        asset, field = asset_and_field(name)
        found.setdefault(asset, {})[field] = i
    return found
