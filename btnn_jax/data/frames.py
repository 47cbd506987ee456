"""Tables in data frames of pandas and polars, and in Parquet files."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from btnn_jax._errors import first_line, import_extra
from btnn_jax.data.number_format import parse_numbers
from btnn_jax.data.text import Wanted

__all__ = ["FrameTable", "is_frame", "read_parquet"]

_SAMPLE = 2000  # rows that the layout is recognised from
_SHOWN = 60  # characters of a cell in a message


def is_frame(data: Any) -> bool:
    """Whether `data` is a data frame or a series of pandas or polars, neither of which needs to be installed."""
    return hasattr(data, "to_numpy") and (hasattr(data, "columns") or hasattr(data, "to_frame"))


def read_parquet(path: pathlib.Path) -> Any:
    """The data frame in a Parquet file.

    Raises:
      ValueError: it cannot be read.
      ModuleNotFoundError: pandas or pyarrow is not installed.
    """
    pandas = import_extra("pandas", "reading prices", "data")
    import_extra("pyarrow", "reading Parquet files", "data")
    try:
        return pandas.read_parquet(path, engine="pyarrow")
    except (ValueError, NotImplementedError, ArithmeticError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a Parquet file that can be read: {first_line(error)}") from error


class FrameTable:
    """A data frame as a table of cells; its attributes are those of `TextTable`.

    The index is a column where it has times or a name.

    Attributes:
      header: rows of `head` that are names.
      zones: columns of times that had a zone, and are in UTC.
    """

    def __init__(self, frame: Any, source: str = "the data frame") -> None:
        pandas = import_extra("pandas", "reading prices", "data")
        self.source = source
        self.lines = np.empty(0, int)
        self.skipped: list[str] = []
        if not hasattr(frame, "columns"):
            frame = frame.to_frame(getattr(frame, "name", None) or "Close")
        if hasattr(frame, "get_columns"):  # polars
            frame = pandas.DataFrame({name: _of_polars(pandas, frame[name]) for name in frame.columns})
        index = frame.index
        if index.nlevels > 1:
            raise ValueError(f"{source}: the index must have one level, got {index.nlevels}")
        if isinstance(index, pandas.PeriodIndex):
            frame = frame.set_axis(index.to_timestamp(), axis=0)
        if isinstance(index, pandas.RangeIndex) and index.name is None:
            self._columns, names = [], []
        else:
            self._columns, names = [frame.index.to_series()], [str(frame.index.name or "")]
        self._columns += [frame.iloc[:, i] for i in range(frame.shape[1])]
        levels = frame.columns.nlevels
        if levels > 2:
            raise ValueError(f"{source}: the columns must have one or two levels of names, got {levels}")
        labels = [frame.columns.get_level_values(level) for level in range(levels)]
        rows = [[*([""] * len(names)), *map(str, level)] for level in labels]
        if levels == 2:
            rows.append([*(names or [""]), *([""] * frame.shape[1])])
        elif names:
            rows[0][0] = names[0]
        self.header = len(rows)
        if not self._columns:
            raise ValueError(f"{source} has no columns")
        self.zones = {
            i for i, column in enumerate(self._columns) if getattr(column.dtype, "tz", None) is not None
        }
        sample = [_texts(column.iloc[:_SAMPLE]) for column in self._columns]
        self.head: list[list[str]] = rows + [list(row) for row in zip(*sample, strict=True)]
        self._length = len(frame)

    def error(self, what: str, rows: Sequence[int] | np.ndarray = (), hint: str = "") -> ValueError:
        """An error of one line; of several rows, counted from 0, the first is named and the others are counted."""
        if not len(rows):
            return ValueError(f"{self.source}: {what}{hint}")
        more = f" (and {len(rows) - 1} more like it)" if len(rows) > 1 else ""
        return ValueError(f"{self.source}, row {rows[0]}: {what}{more}{hint}")

    def place(self, row: int) -> str:
        """Where a row is, for people."""
        return f"row {row}"

    def header_error(self, what: str, row: int = 0) -> ValueError:
        """An error about a row of `head`."""
        return self.error(what)

    def cell(self, row: int, column: int) -> str:
        """The text of one cell."""
        return _texts(self._columns[column].iloc[row : row + 1])[0]

    def read(self, header: int, wanted: Wanted) -> dict[int, np.ndarray]:
        """Reads columns, as `TextTable.read`; texts that are times by their type are datetime64[s]."""
        pandas = import_extra("pandas", "reading prices", "data")
        found: dict[int, np.ndarray] = {}
        for i in wanted.numbers:
            column = self._columns[i]
            if pandas.api.types.is_numeric_dtype(column) and not pandas.api.types.is_bool_dtype(column):
                found[i] = column.to_numpy(np.float64, na_value=np.nan)
                continue
            cells = _texts(column)
            found[i], bad = parse_numbers(pandas.Series(cells, dtype="str"), wanted.form)
            if len(rows := np.flatnonzero(bad)):
                raise self.error(f"{wanted.names[i]} is {cells[rows[0]][:_SHOWN]!r}, not a number", rows[:1])
        for i in wanted.texts:
            column = self._columns[i]
            if pandas.api.types.is_datetime64_any_dtype(column.dtype):
                found[i] = _utc(column)
            else:
                found[i] = np.array(_texts(column), "U")
        return found


def _utc(column: Any) -> np.ndarray:
    """Times in UTC, or as they stand where they have no zone."""
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    return np.asarray(column.to_numpy(), "datetime64[s]")


def _texts(column: Any) -> list[str]:
    """The cells as text, those that are missing empty."""
    return [
        "" if gone else str(cell) for cell, gone in zip(column.tolist(), column.isna().tolist(), strict=True)
    ]


def _of_polars(pandas: Any, column: Any) -> Any:
    """A column of polars as one of pandas."""
    zone = getattr(column.dtype, "time_zone", None)
    values = column.to_numpy()
    return pandas.Series(values if zone is None else pandas.DatetimeIndex(values).tz_localize("UTC"))
