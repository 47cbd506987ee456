"""Reading prices as people have them: files, data frames and arrays of any common layout."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from btnn_jax._errors import check_choice
from btnn_jax.data.checks import check_bars, check_values, fill_missing
from btnn_jax.data.frames import is_frame
from btnn_jax.data.reading import Options, Reading, read_table
from btnn_jax.data.series import FIELDS, Series, asset_and_field

__all__ = ["OPTIONS", "load_csv", "load_prices", "read_prices"]

Path = str | os.PathLike[str]

OPTIONS = Options._fields
"""The keyword arguments of `load_prices`."""


def load_prices(
    source: Any,
    *,
    columns: str | Sequence[str] | None = None,
    unsorted: str = "reverse",
    duplicates: str = "error",
    missing: str = "error",
    day_first: bool | None = None,
    decimal: str | None = None,
    time: str | None = None,
    symbol: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
) -> Series:
    """Reads a series of prices, of one asset or of several.

    The layout is recognised: separator, header, columns, numbers and times, whether they come from MetaTrader, Binance,
    Kraken, TradingView, yfinance, Alpha Vantage, Stooq, Dukascopy, HistData, Yahoo, a spreadsheet or code of your own.
    What can be read in two ways is an error that names the option that settles it. `read_prices` tells how a source was
    understood.

    Columns of bars are named Open, High, Low, Close, Adj Close and Volume, with the asset before it where there are
    several (`"MSFT Close"`); where there is no close, every column of numbers is an asset. Other columns are left out.

    Args:
      source: a file (CSV, also gzipped, or Parquet), a data frame of pandas or polars, an array of closes `[T]` or
        `[T, A]` or of bars `[T, A, 4]`, or several files or frames: a list, or a dict by name of the asset.
      columns: names of the columns to read, upper or lower case, also as `"Open,Close"`; None for all prices.
      unsorted: "reverse" turns rows round that are newest first, with a warning, and refuses any other disorder;
        "sort" sorts any; "error" refuses both.
      duplicates: "error", or "first" or "last" for which of the rows with the same time to keep.
      missing: "error"; "drop" takes rows with missing values out; "ffill" puts the last close in their place.
      day_first: whether 01/02/2024 is the first of February, where no row says it.
      decimal: "." or ",", where no number says it.
      time: name of the column of times, where there are several.
      symbol: which one to read of a file with the rows of several assets.
      separator: of cells; None to recognise it.
      encoding: of the text; None for UTF-8, or what its first bytes say.

    Returns:
      The series, its times in UTC where the source names a zone and otherwise as they stand.

    Raises:
      ValueError: what is wrong, as one line with the name of the file and the number of the line.
      OSError: the file cannot be read.
      ModuleNotFoundError: a package is missing; the message says which.

    >>> load_prices(np.array([100.0, 101.0])).names
    ('Close',)
    """
    reading = read_prices(
        source, columns=columns, unsorted=unsorted, duplicates=duplicates, missing=missing, day_first=day_first,
        decimal=decimal, time=time, symbol=symbol, separator=separator, encoding=encoding,
    )  # fmt: skip
    if reading.newest_first:
        told = "the rows were newest first and have been sorted"
        warnings.warn(f"{reading.source}: {told}", UserWarning, stacklevel=2)
    return reading.series


def load_csv(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    unsorted: str = "error",
    duplicates: str = "error",
) -> Series:
    """Reads a text file as `load_prices` does, and refuses by default rows that are newest first.

    Args:
      path: the file.
      columns: names of the columns to read, upper or lower case; None for all prices.
      unsorted: as of `load_prices`.
      duplicates: as of `load_prices`.

    Raises:
      ValueError: what is wrong with the file, as one line with its name and the number of the line.
      OSError: the file cannot be read.
    """
    return load_prices(path, columns=columns, unsorted=unsorted, duplicates=duplicates)


def read_prices(
    source: Any,
    *,
    columns: str | Sequence[str] | None = None,
    unsorted: str = "reverse",
    duplicates: str = "error",
    missing: str = "error",
    day_first: bool | None = None,
    decimal: str | None = None,
    time: str | None = None,
    symbol: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
) -> Reading:
    """Reads prices and tells how they were understood; arguments and errors are those of `load_prices`."""
    if unsorted not in ("error", "reverse", "sort") or duplicates not in ("error", "first", "last"):
        raise ValueError(
            "unsorted must be 'error', 'reverse' or 'sort' and duplicates 'error', 'first' or 'last', got "
            f"{unsorted!r} and {duplicates!r}"
        )
    check_choice("missing", missing, ("error", "drop", "ffill"))
    check_choice("day_first", day_first, (None, True, False))
    check_choice("decimal", decimal, (None, ".", ","))
    if separator is not None and (not isinstance(separator, str) or len(separator) != 1):
        raise ValueError(f"separator must be one character, got {separator!r}")
    if isinstance(columns, str):
        columns = [name.strip() for name in columns.split(",")]
    options = Options(
        columns, unsorted, duplicates, missing, day_first, decimal, time, symbol, separator, encoding
    )
    if isinstance(source, Mapping):
        return _read_several({str(name): part for name, part in source.items()}, options)
    if isinstance(source, list | tuple) and source and all(_is_table(part) for part in source):
        names = [
            pathlib.Path(part).name.split(".")[0] if _is_path(part) else f"asset_{i}"
            for i, part in enumerate(source)
        ]
        if len({*names}) < len(names):
            raise ValueError(f"several files need several names, got {', '.join(names)}: use a dict by asset")
        return _read_several(dict(zip(names, source, strict=True)), options)
    if _is_table(source):
        return read_table(source, options)
    if columns is not None:
        raise ValueError(f"an array has no columns to choose, got {tuple(columns)}")
    return _read_array(source)


def _is_path(source: Any) -> bool:
    return isinstance(source, str | os.PathLike)


def _is_table(source: Any) -> bool:
    return _is_path(source) or is_frame(source)


def _read_array(source: Any) -> Reading:
    try:
        values = np.asarray(source, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"prices must be a file, a data frame or an array of numbers, got a {type(source).__name__}"
        ) from error
    bars = FIELDS[:4]
    names: tuple[str, ...]
    if values.ndim == 1:
        values, names = values[:, None], ("Close",)
    elif values.ndim == 2:
        names = tuple(f"asset_{i}" for i in range(values.shape[1]))
    elif values.ndim == 3 and values.shape[2] == len(bars):
        assets = values.shape[1]
        names = tuple(f"asset_{i} {field}" if assets > 1 else field for i in range(assets) for field in bars)
        values = values.reshape(len(values), -1)
    else:
        raise ValueError(f"an array of prices must be [T], [T, A] or [T, A, 4], got shape {values.shape}")
    if not values.size:
        raise ValueError(f"an array of prices must not be empty, got shape {values.shape}")
    series = Series(names, None, values)
    check_values(_Array(), series, np.arange(len(values)))
    check_bars(_Array(), series, np.arange(len(values)))
    return Reading(series, "an array", "array")


class _Array:
    """An array, for messages."""

    def error(self, what: str, rows: Any = ()) -> ValueError:
        return ValueError(f"{self.place(rows[0])} of the array: {what}" if len(rows) else what)

    def place(self, row: int) -> str:
        return f"row {row}"


def _read_several(sources: Mapping[str, Any], options: Options) -> Reading:
    """Reads a table for each asset, and joins them at their times."""
    if not sources:
        raise ValueError("there are no prices: the dict is empty")
    parts = {}
    for asset, source in sources.items():
        if not _is_table(source):
            raise TypeError(
                f"prices of {asset} must be a file or a data frame, got a {type(source).__name__}"
            )
        parts[asset] = read_table(source, options)
    first, *others = parts.values()
    for other in others:
        if other.zone != first.zone:
            with_zone, without = (first, other) if first.zone else (other, first)
            raise ValueError(
                f"the times in {with_zone.source} have a zone, and those in {without.source} have none"
            )
    every = np.unique(np.concatenate([_times(part.series) for part in parts.values()]))
    names: list[str] = []
    columns: list[np.ndarray] = []
    for asset, part in parts.items():
        values = np.full((len(every), len(part.series.names)), np.nan)
        values[np.searchsorted(every, _times(part.series))] = part.series.values
        fields = [asset_and_field(name) for name in part.series.names]
        names += [f"{asset} {field}" if field and not of else f"{asset} {name}"
                  for (of, field), name in zip(fields, part.series.names, strict=True)]  # fmt: skip
        columns.append(values)

    def missing(row: int, column: int) -> ValueError:
        asset = asset_and_field(names[column])[0]
        return ValueError(
            f"{asset} has no row at {every[row]}, as others have; missing='drop' keeps the times that all have, "
            "missing='ffill' puts the last close there"
        )

    series = Series(tuple(names), every, np.concatenate(columns, axis=1))
    series, _, notes = fill_missing(series, options.missing, missing)
    if not len(series):
        raise ValueError(f"no time is in all of {', '.join(part.source for part in parts.values())}")
    told = [f"{part.source}: {note}" for part in parts.values() for note in part.notes]
    return Reading(
        series, ", ".join(part.source for part in parts.values()), first.layout,
        tuple(name for part in parts.values() for name in part.columns), first.ignored, first.time, first.zone,
        (*told, *notes), any(part.newest_first for part in parts.values()),
        sum(part.repeated for part in parts.values()),
    )  # fmt: skip


def _times(series: Series) -> np.ndarray:
    assert series.times is not None  # every table has them
    return series.times
