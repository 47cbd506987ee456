"""Reading one table of prices: its layout, numbers and times, and the checks of what it holds."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from btnn_jax.data.checks import check_bars, check_values, fill_missing, in_order
from btnn_jax.data.dates import TimeFormatError, Times, parse_times
from btnn_jax.data.frames import FrameTable, is_frame, read_parquet
from btnn_jax.data.layouts import (
    Column,
    Layout,
    LayoutError,
    find_column,
    listed,
    plain_name,
    recognise,
    shown,
)
from btnn_jax.data.number_format import is_missing, is_number, recognise_numbers
from btnn_jax.data.series import Series
from btnn_jax.data.text import TextTable, Wanted

__all__ = ["Options", "Reading", "read_table"]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was read, and how it was understood.

    Attributes:
      series: the prices.
      source: where they are from.
      layout: what people call the layout.
      columns: of the series, the names that they have in the source.
      ignored: names of columns that hold no prices.
      time: which columns the times are from, and how they are written; empty where there are none.
      zone: whether the times had a zone, and have been converted to UTC.
      notes: what was done to the rows.
      newest_first: whether the rows were, and have been sorted.
      repeated: rows that repeated a time and have been left out.
    """

    series: Series
    source: str
    layout: str
    columns: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    time: str = ""
    zone: bool = False
    notes: tuple[str, ...] = ()
    newest_first: bool = False
    repeated: int = 0


class Options(NamedTuple):
    """How to read prices; see `btnn_jax.data.load_prices`."""

    columns: Sequence[str] | None
    unsorted: str
    duplicates: str
    missing: str
    day_first: bool | None
    decimal: str | None
    time: str | None
    symbol: str | None
    separator: str | None
    encoding: str | None


def read_table(source: Any, options: Options) -> Reading:
    """Reads a file or a data frame.

    Raises:
      ValueError: it cannot be understood, or what it holds are no prices; the message is one line.
      OSError: the file cannot be read.
    """
    table = _open(source, options)
    header = table.header if isinstance(table, FrameTable) else None
    try:
        layout = recognise(table.head, header=header, time=options.time)
        chosen = _choose(layout, options.columns)
    except LayoutError as error:
        if error.row is not None:
            raise table.header_error(str(error), error.row) from None
        if str(error).startswith("has "):
            raise ValueError(f"{table.source} {error}") from None
        raise table.error(str(error)) from None
    if not chosen:
        raise table.error(f"no column of prices among {listed(layout.names)}")
    numbers = [column.number for column in chosen]
    cells = (row[i] for i in numbers for row in table.head[layout.header :] if i < len(row))
    try:
        form = recognise_numbers(cells, options.decimal)
    except ValueError as error:
        raise table.error(str(error)) from None
    symbols = _symbol_column(layout, table.head)
    texts = [*layout.times, *([] if symbols is None else [symbols])]
    read = table.read(layout.header, Wanted(_labels(layout, chosen), numbers, texts, form))
    rows = np.arange(len(read[layout.times[0]]))
    if not len(rows):
        raise ValueError(f"{table.source} has a header but no rows")
    if symbols is not None:
        rows = _of_symbol(table, layout.names[symbols], read[symbols], options.symbol)
    elif options.symbol is not None:
        raise table.error(f"symbol={options.symbol!r} was given, and no column names symbols")
    times = _read_times(table, layout, [read[i][rows] for i in layout.times], rows, options.day_first)
    lines = table.lines[rows] if len(table.lines) else None
    series = Series(
        tuple(column.name for column in chosen), times.values,
        np.stack([read[i][rows] for i in numbers], axis=1), lines,
    )  # fmt: skip

    def missing(row: int, column: int) -> ValueError:
        alike = rows[~np.isfinite(series.values[:, column])]
        text = table.cell(int(rows[row]), numbers[column])
        given = text if is_missing(text) and text.casefold() == "nan" else repr(text)
        hint = "; missing='drop' or missing='ffill' goes on without it"
        return table.error(f"{series.names[column]} is {given}, not a number", alike, hint)

    series, kept, notes = fill_missing(series, options.missing, missing)
    if not len(series):
        raise table.error("every row has missing values")
    rows, length = rows[kept], len(series)
    check_values(table, series, rows)
    check_bars(table, series, rows)
    newest_first = bool(series.times is not None and series.times[0] > series.times[-1])
    series, sorted_notes = in_order(table, series, rows, options.unsorted, options.duplicates)
    return Reading(
        series, table.source, layout.title, tuple(column.original for column in chosen),
        tuple(name for name in (*layout.ignored, *_unchosen(layout, chosen)) if name),
        f"{layout.name_of_time()}, {times.format}", times.zone,
        (*(f"left out: {part}" for part in table.skipped), *notes, *sorted_notes),
        newest_first and options.unsorted == "reverse", length - len(series),
    )  # fmt: skip


def _choose(layout: Layout, columns: Sequence[str] | None) -> tuple[Column, ...]:
    """The columns to read: those that were asked for, by the name in the series or in the source."""
    if columns is None:
        return layout.columns
    known = {column.number: column for column in layout.columns}
    rest = [i for i, name in enumerate(layout.names) if name and i not in layout.times]
    names = [known[i].name if i in known else layout.names[i] for i in rest]
    originals = [layout.names[i] for i in rest]
    chosen = []
    for name in columns:
        folded = name.casefold()
        as_named = names if folded in (word.casefold() for word in names) or not folded else originals
        if folded not in (word.casefold() for word in as_named):
            as_named = names  # for the message
        i = rest[find_column(name, as_named)]
        chosen.append(known.get(i, Column(i, layout.names[i], layout.names[i])))
    return tuple(chosen)


def _unchosen(layout: Layout, chosen: Sequence[Column]) -> list[str]:
    indices = {column.number for column in chosen}
    return [column.original for column in layout.columns if column.number not in indices]


def _labels(layout: Layout, chosen: Sequence[Column]) -> list[str]:
    """What messages call the columns."""
    names = list(layout.names)
    for column in chosen:
        names[column.number] = column.name
    return list(map(shown, names))


_SYMBOLS = ("symbol", "ticker", "name", "code", "instrument", "asset", "pair", "tic", "stock", "ts code")


def _symbol_column(layout: Layout, head: Sequence[Sequence[str]]) -> int | None:
    """The column that says which asset a row is of."""
    used = {*layout.times, *(column.number for column in layout.columns)}
    for i, name in enumerate(layout.names):
        if i not in used and plain_name(name) in _SYMBOLS:
            cells = [row[i] for row in head[layout.header :] if i < len(row)]
            if cells and not all(map(is_number, cells)):
                return i
    return None


def _of_symbol(table: Any, name: str, cells: np.ndarray, symbol: str | None) -> np.ndarray:
    """The rows of one asset."""
    found = np.unique(cells)
    known = listed(found.tolist())
    if symbol is None:
        if len(found) > 1:
            raise table.error(
                f"{name} names several assets, {known}: choose one, such as symbol={str(found[0])!r}"
            )
        return np.arange(len(cells))
    rows = np.flatnonzero(cells == symbol)
    if not len(rows):
        raise table.error(f"{name} has no {symbol!r}; there are {known}")
    return rows


def _read_times(
    table: Any, layout: Layout, parts: Sequence[np.ndarray], rows: np.ndarray, day_first: bool | None
) -> Times:
    name = layout.name_of_time()
    days, *clocks = parts
    if days.dtype.kind == "M" and not clocks:
        if len(gone := np.flatnonzero(np.isnat(days))):
            raise table.error(f"{name} has no time", rows[gone])
        return Times(days, "times", layout.times[0] in table.zones)
    if days.dtype.kind == "M":
        days = days.astype("datetime64[D]").astype(str)
    texts = days.tolist()
    if clocks:
        widths = max(map(len, clocks[0].tolist()))
        digits = 6 if widths > 4 else 4  # numbers may have lost the zeros before them
        texts = [
            f"{day} {clock.zfill(digits) if clock.isdigit() else clock}"
            for day, clock in zip(texts, clocks[0].tolist(), strict=True)
        ]
    try:
        return parse_times(texts, name, day_first)
    except TimeFormatError as error:
        raise table.error(str(error), rows[error.rows]) from None


def _open(source: Any, options: Options) -> TextTable | FrameTable:
    if is_frame(source):
        return FrameTable(source)
    path = pathlib.Path(source)
    if path.suffix.lower() in (".parquet", ".pq"):
        return FrameTable(read_parquet(path), str(path))
    return TextTable(path, separator=options.separator, encoding=options.encoding)
