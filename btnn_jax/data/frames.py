"""Series of prices from the data frames of pandas and polars, neither of which needs to be installed."""

from __future__ import annotations

from typing import Any

import numpy as np

from btnn_jax.data.series import TIMES, Series

__all__ = ["from_frame", "is_frame"]


def is_frame(data: Any) -> bool:
    """Whether `data` is a data frame of pandas or polars."""
    return hasattr(data, "columns") and hasattr(data, "to_numpy") and hasattr(data, "shape")


def from_frame(frame: Any) -> Series:
    """A series with the columns of a data frame.

    Times are those of a pandas `DatetimeIndex`, converted to UTC where it has a zone, or of a column with one of the
    names in `btnn_jax.data.series.TIMES`; without either there are none.

    Args:
      frame: a data frame of pandas or polars, one row for each bar.

    Returns:
      The series, float64.

    Raises:
      ValueError: a column does not hold numbers, has several levels of names, or the times do not increase.
    """
    names = list(frame.columns)
    index = getattr(frame, "index", None)
    times = None
    if getattr(getattr(index, "dtype", None), "kind", "") == "M":
        times = _utc(index)
    else:
        column = next((name for name in names if str(name).casefold() in TIMES), None)
        if column is not None:
            names.remove(column)
            times = _utc(frame[column])
    if times is not None and len(rows := 1 + np.flatnonzero(np.diff(times) <= np.timedelta64(0, "s"))):
        raise ValueError(
            f"times must increase from row to row, got {times[rows[0]]} after {times[rows[0] - 1]} in row {rows[0]}"
        )
    columns = []
    for name in names:
        if isinstance(name, tuple):
            raise ValueError(
                f"columns must have one level of names, got {name}; choose one with frame[...] or xs"
            )
        try:
            columns.append(np.asarray(frame[name].to_numpy(), np.float64))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the column {name} must hold numbers, got {frame[name].dtype}") from error
    return Series(tuple(map(str, names)), times, np.stack(columns, axis=1))


def _utc(values: Any) -> np.ndarray:
    if getattr(values, "tz", None) is not None:
        values = values.tz_convert("UTC").tz_localize(None)
    try:
        return np.asarray(values, "datetime64[s]")
    except ValueError as error:
        raise ValueError(f"cannot read times: {error}") from error
