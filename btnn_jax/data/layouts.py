"""What the columns of a table of prices mean, recognised from their names and their first rows.

The tables of words below are all that knows vendors and languages: a new layout is a new word or a new row there.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from btnn_jax.data.dates import has_clock, is_clock, is_epoch, is_time
from btnn_jax.data.number_format import is_missing, is_number
from btnn_jax.data.series import FIELDS, is_volume

__all__ = ["Column", "Layout", "LayoutError", "find_column", "listed", "plain_name", "recognise", "shown"]

FIELD_WORDS = {
    "Open": "open, open price, opening price, first, eroffnung, eroffnungskurs, eroffn, erster, ouverture, "
    "ouv, apertura, abertura, otwarcie, opening, 始値, 开盘, 开盘价, 開盤價, 시가, открытие, откр, bid open, px "
    "open",
    "High": "high, high price, highest, hoch, hochst, hochstkurs, plus haut, + haut, haut, maximo, maxima, "
    "massimo, max, najwyzszy, hoog, hoogste, 高値, 最高, 最高价, 最高價, 고가, максимум, макс, bid high, px high",
    "Low": "low, low price, lowest, tief, tiefst, tiefstkurs, plus bas, + bas, bas, minimo, minima, min, "
    "najnizszy, laag, laagste, 安値, 最低, 最低价, 最低價, 저가, минимум, мин, bid low, px low",
    "Close": "close, close price, closing price, close last, last, last price, schluss, schlusskurs, zuletzt, "
    "cloture, dernier, cierre, ultimo, fechamento, chiusura, zamkniecie, slot, laatste, settle, "
    "price, 終値, 收盘, 收盘价, 收盤價, 종가, закрытие, цена, bid close, px last, px close",
    "Adj Close": "adj close, adjclose, adjusted close, adjusted closing price, close adjusted, adjusted",
    "Volume": "volume, vol, volumen, volumes, wolumen, 出来高, 成交量, 거래량, объем, quantity, total traded quantity, "
    "no of shares, px volume",
    "Tick Volume": "tickvol, tick vol, tick volume",
}
"""Names of the columns of a bar, as `plain_name` writes them; of two in one table, the earlier word counts."""

TIME_WORDS = (
    "datetime, date time, timestamp, time, gmt time, local time, utc time, time utc, open time, "
    "opentime, bar time, snapped at, time open, timeopen, start time, start, date gmt, date, trade "
    "date, tradedate, observation date, day, dt, datum, data, fecha, datetime utc, unix, unix "
    "timestamp, unix time, unixtime, epoch, ts, ts event, window start, t, 日付, 日時, 日期, 时间, 時間, 날짜, "
    "дата, date et, datum zeit"
)
"""Names of columns of times, with or without a time of day."""

CLOCK_WORDS = (
    "time, clock, zeit, uhrzeit, hora, heure, ora, godzina, czas, tijd, hour, 時刻, 时间, 時間, время"
)
"""Names of columns of the time of day, beside one of dates."""

NOT_PRICES = (
    "dividends, dividend, dividend amount, div cash, stock splits, split coefficient, split factor, "
    "capital gains, open interest, openint, oi, spread, trades, count, number of trades, change, chg, "
    "change %, index, per, market cap, vw, n, vwap, average, bar count, pre close, pct chg, amount"
)
"""Names of columns of numbers that are no prices."""

WITHOUT_HEADER = (
    ("HistData", "Time Open High Low Close Volume"),
    ("bars", "Time Open High Low Close"),
    ("MetaTrader 4", "Date Clock Open High Low Close Volume"),
    ("bars", "Date Clock Open High Low Close"),
    ("MetaTrader 5", "Date Clock Open High Low Close TickVol Vol Spread"),
    ("MetaStock", "Ticker Date Open High Low Close Volume"),
    ("bars with an epoch", "Epoch Open High Low Close"),
    ("bars with an epoch", "Epoch Open High Low Close Volume"),
    ("Kraken", "Epoch Open High Low Close Volume Trades"),
    ("Kraken", "Epoch Open High Low Close Vwap Volume Trades"),
    ("Binance", "Epoch Open High Low Close Volume Epoch - - - - -"),
)
"""Columns of files without a header; `-` is one that is left out."""

WITH_HEADER = (
    ("MetaTrader 5", "<DATE> <OPEN> <TICKVOL>"),
    ("Stooq", "<TICKER> <PER> <DATE>"),
    ("Dukascopy", "Gmt-time"),
    ("Dukascopy", "Local-time"),
    ("yfinance, history", "Dividends Stock-Splits"),
    ("Yahoo", "Open High Low Close Adj-Close"),
    ("Alpha Vantage", "timestamp open high low close volume"),
    ("Binance", "open_time close_time"),
    ("CryptoDataDownload", "unix date symbol"),
    ("Nasdaq", "Date Close/Last"),
    ("Investing.com", "Price Open Change-%"),
    ("TradingView", "time open high low close"),
    ("BTGym", "1_O 2_H 3_L 4_C"),
)
"""What people call a layout, and names that tell it, with hyphens for spaces."""

_SHOWN, _LISTED = 40, 10  # characters of a name and names in a message
_SAMPLE = 50  # rows that tell what a column holds
_BEFORE = 20  # rows in which a header is looked for
_LETTERS = {"o": "Open", "h": "High", "l": "Low", "c": "Close", "v": "Volume"}
_FIELD = r"(?P<field>adj[ ._]?close|adjusted|open|high|low|close|volume)"
_ASSET_FIRST = re.compile(rf"(?P<asset>.*\S)[ ._:/-]+{_FIELD}", re.IGNORECASE)
_FIELD_FIRST = re.compile(rf"{_FIELD}[ ._:/-]+(?P<asset>\S.*)", re.IGNORECASE)


def _ranks(words: str) -> dict[str, int]:
    return {word.strip(): rank for rank, word in enumerate(words.split(","))}


_FIELDS = {
    word: (field, rank) for field, words in FIELD_WORDS.items() for word, rank in _ranks(words).items()
}
_TIMES, _CLOCKS, _OTHERS = _ranks(TIME_WORDS), _ranks(CLOCK_WORDS), _ranks(NOT_PRICES)


class Column(NamedTuple):
    """A column of prices or volumes."""

    number: int  # in the table
    name: str  # in the series
    original: str  # in the table


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a table holds.

    Attributes:
      title: what people call it.
      header: rows before the first bar.
      names: of all columns, as the table has them.
      times: the column of times, or those of dates and of times of day.
      columns: those of prices and volumes.
      ignored: names of the others.
    """

    title: str
    header: int
    names: tuple[str, ...]
    times: tuple[int, ...]
    columns: tuple[Column, ...]
    ignored: tuple[str, ...]

    def name_of_time(self) -> str:
        """What messages call the times."""
        return shown(" ".join(filter(None, (self.names[i] for i in self.times)))) or "the time"


class LayoutError(ValueError):
    """The rows of a table do not say what they are; `row` is the one that shows it, counted in its head."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def plain_name(name: str) -> str:
    """A name without case, accents, brackets and numbering, as the tables of words have them.

    >>> [plain_name(name) for name in ("<CLOSE>", "4. close", "1_O", "Er\u00f6ffn.", "Adj_Close", "Close (USD)")]
    ['close', 'close', 'o', 'eroffn', 'adj close', 'close']
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.strip())  # openPrice
    text = unicodedata.normalize("NFKD", words.casefold())
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    text = unicodedata.normalize("NFC", text).strip("<>*\"' ")
    text = re.sub(r"^\d+[._)]+\s*", "", text)
    text = re.sub(r"\s*[(\[][^)\]]*[)\]]$", "", text)
    return re.sub(r"[\s_./-]+", " ", text).strip()


def recognise(head: Sequence[Sequence[str]], *, header: int | None = None, time: str | None = None) -> Layout:
    """Finds out what the columns of a table mean.

    Args:
      head: its first rows, cells of text, the names among them.
      header: how many of them are names, where that is known.
      time: name of the column of times; None to find it.

    Raises:
      LayoutError: a name comes twice, there are no rows, or there is no such column.
    """
    start = _find_header(head) if header is None else 0
    levels = _count_levels(head[start:]) if header is None else header
    rows = head[start + levels : start + levels + _SAMPLE]
    if not rows:
        raise LayoutError("has a header but no rows")
    title, names, meanings = _read_names([list(row) for row in head[start : start + levels]], rows)
    width = len(names)
    cells = [[row[i].strip() for row in rows if i < len(row)] for i in range(width)]
    kinds = [_kind(column) for column in cells]
    times = _find_times(names, kinds, cells) if time is None else (find_column(time, names),)
    columns = _find_columns(names, kinds, times, meanings, start)
    chosen = {column.number for column in columns}
    ignored = tuple(name for i, name in enumerate(names) if name and i not in chosen and i not in times)
    if not title:
        title = _title(names, columns)
    return Layout(title, start + levels, tuple(names), times, columns, ignored)


def find_column(name: str, names: Sequence[str]) -> int:
    """The first column of a name, upper and lower case being the same.

    Raises:
      LayoutError: there is none; the message lists those that there are.
    """
    for column, known in enumerate(names):
        if known and known.casefold() == name.casefold():
            return column
    raise LayoutError(f"no column {shown(name)!r}; there are {listed(names)}")


def shown(text: str) -> str:
    """A text as messages show it: not much of it."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def listed(names: Iterable[str]) -> str:
    """Names as messages list them: not many of them."""
    known = [shown(name) for name in names if name]
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return ", ".join(known[:_LISTED]) + more


def _find_header(head: Sequence[Sequence[str]]) -> int:
    """The first row, or one below it that names a time or a close and is longer than a title above it."""
    lengths = [len(row) for row in head]
    width = max({*lengths}, key=lengths.count)
    for i, row in enumerate(head[:_BEFORE]):
        whole = len(row) >= width - 1  # one less where the times are an index without a name
        if whole and _is_data(row):
            break
        named = {plain_name(cell) for cell in row} & {*_TIMES, *_CLOCKS, "close"}
        if named and (i == 0 or (whole and len(row) > len(head[0]))):
            return i
    return 0


def _is_data(row: Sequence[str]) -> bool:
    return any(is_time(cell) for cell in row) or (bool(row) and is_epoch(row[0]))


def _count_levels(head: Sequence[Sequence[str]]) -> int:
    """How many rows are names: none, one, or those of fields and of assets, which may be followed by the index's."""
    if _is_data(head[0]):
        return 0
    if len(head) > 2 and len(head[0]) == len(head[1]) > 1 and not _is_data(head[1]):
        first, second = ([cell.strip() for cell in row[1:]] for row in head[:2])
        repeated = len({*first}) < len(first) or len({*second}) < len(second) or len(first) == 1
        words = all(cell and not is_number(cell) for cell in second)
        fields = any({plain_name(cell) for cell in level} & {*_FIELDS} for level in (first, second))
        if repeated and words and fields:
            third = [cell.strip() for cell in head[2]]
            return 3 if third[0] and not any(third[1:]) and not _is_data(third) else 2
    return 1


def _read_names(
    header: list[list[str]], rows: Sequence[Sequence[str]]
) -> tuple[str, list[str], list[tuple[str, str] | None] | None]:
    """A title where it is known, the names of all columns, and their assets and fields where names have two levels."""
    width = len(rows[0])
    if not header:
        return (*_names_without_header(rows[0]), None)
    if len(header) == 1:
        names = [name.strip() for name in header[0]]
        if width == len(names) + 1:
            first_is_time = plain_name(names[0]) in _TIMES
            # Each row ends with a separator, or the times are an index without a name.
            ends = first_is_time and all(not row[-1].strip() for row in rows if len(row) == width)
            names = [*names, ""] if ends else ["Time", *names]
        return "", names, None
    upper, lower = ([cell.strip() for cell in row] for row in header[:2])

    def fields(level: list[str]) -> int:
        return len({plain_name(cell) for cell in level[1:]} & {*_FIELDS})

    if fields(lower) > fields(upper):
        upper, lower = lower, upper
    meanings: list[tuple[str, str] | None] = [None]
    for field, asset in zip(upper[1:], lower[1:], strict=True):
        known = _FIELDS.get(plain_name(field))
        meanings.append((asset, known[0] if known else field))
    time = header[2][0].strip() if len(header) > 2 else ""
    names = [time or "Time", *(f"{asset} {field}" for field, asset in zip(upper[1:], lower[1:], strict=True))]
    return "yfinance, download", names, meanings


def _names_without_header(row: Sequence[str]) -> tuple[str, list[str]]:
    tests = {"Time": is_time, "Date": is_time, "Clock": is_clock, "Epoch": is_epoch, "Ticker": _is_word}
    for title, words in WITHOUT_HEADER:
        names = words.split()
        if len(names) == len(row) and all(
            tests.get(name, is_number)(cell.strip()) or name == "-"
            for name, cell in zip(names, row, strict=True)
        ):
            seen = [name if i == 0 or name != "Epoch" else "-" for i, name in enumerate(names)]
            return title, ["" if name == "-" else "Time" if name == "Clock" else name for name in seen]
    raise LayoutError(
        "has no header; expected one, or a time and Open, High, Low, Close and Volume, got "
        f"{','.join(row)[:60]!r}",
        0,
    )


def _is_word(text: str) -> bool:
    return not is_number(text) and not is_time(text)


def _kind(cells: Sequence[str]) -> str:
    """What the cells of a column are: time, date, clock, epoch, number, empty or text."""
    present = [cell for cell in cells if not is_missing(cell)]
    if not present:
        return "empty"
    if all(map(is_time, present)):
        return "time" if any(map(has_clock, present)) else "date"
    for kind, test in (("clock", is_clock), ("epoch", is_epoch), ("number", is_number)):
        if all(map(test, present)):
            return kind
    return "text"


def _find_times(
    names: Sequence[str], kinds: Sequence[str], cells: Sequence[Sequence[str]]
) -> tuple[int, ...]:
    plain = [plain_name(name) for name in names]
    named = sorted((i for i, name in enumerate(plain) if name in _TIMES), key=lambda i: _TIMES[plain[i]])
    every = list(range(len(names)))
    clocks = [i for i in every if kinds[i] == "clock"]
    clocks += [i for i in every if kinds[i] == "number" and plain[i] in _CLOCKS and _is_digits(cells[i])]
    for columns in (named, every):
        of_kind = {kind: [i for i in columns if kinds[i] == kind] for kind in ("time", "date", "epoch")}
        if of_kind["time"]:
            return (of_kind["time"][0],)
        if of_kind["date"] and clocks:
            return (of_kind["date"][0], clocks[0])
        if columns is named and of_kind["epoch"]:
            return (of_kind["epoch"][0],)
        if of_kind["date"]:
            return (of_kind["date"][0],)
    if not names[0] and kinds[0] == "epoch":
        return (0,)
    return (named[0] if named else 0,)


def _is_digits(cells: Sequence[str]) -> bool:
    return all(re.fullmatch(r"\d{1,6}", cell) for cell in cells)


def _find_columns(
    names: Sequence[str],
    kinds: Sequence[str],
    times: tuple[int, ...],
    meanings: list[tuple[str, str] | None] | None,
    start: int,
) -> tuple[Column, ...]:
    rest = [i for i, name in enumerate(names) if name and i not in times]
    if meanings is not None:
        pairs = {i: pair for i in rest if (pair := meanings[i]) is not None and pair[1] in FIELDS}
        return _of_assets(names, pairs)
    folded = [name.casefold() for name in names]
    for i, name in enumerate(names):
        if name and folded.index(folded[i]) < i:
            raise LayoutError(f"two columns are named {shown(name)!r}", start)
    fields = _find_fields(names, rest)
    if "Close" in fields.values():
        return tuple(
            Column(i, fields.get(i, names[i]), names[i])
            for i in rest
            if i in fields or (is_volume(names[i]) and kinds[i] == "number")
        )
    numbers = [i for i in rest if kinds[i] in ("number", "epoch") and plain_name(names[i]) not in _OTHERS]
    split = {i: pair for i in numbers if (pair := _split(names[i])) is not None}
    if split and len(split) == len(numbers) and any(field == "Close" for _, field in split.values()):
        return _of_assets(names, split)
    whole = [i for i in rest if i in numbers or i in fields]
    return tuple(Column(i, names[i], names[i]) for i in whole)


def _find_fields(names: Sequence[str], rest: Sequence[int]) -> dict[int, str]:
    """The columns that are parts of one bar."""
    plain = {i: plain_name(names[i]) for i in rest}
    if {*"ohlc"} <= {*plain.values()}:
        others = [i for i, name in plain.items() if name not in _LETTERS and name not in _OTHERS]
        if not any(re.fullmatch("[A-Z]+", names[i]) for i in others if not is_volume(names[i])):  # tickers
            return {i: _LETTERS[name] for i, name in plain.items() if name in _LETTERS}
    best: dict[str, tuple[int, int]] = {}
    for i, name in plain.items():
        if (found := _FIELDS.get(name)) is not None and found[1] < best.get(found[0], (len(_FIELDS), 0))[0]:
            best[found[0]] = (found[1], i)
    return {i: field for field, (_, i) in best.items()}


def _split(name: str) -> tuple[str, str] | None:
    """The asset and the field of a name such as `AAPL.Open` or `Close MSFT`."""
    match = _ASSET_FIRST.fullmatch(name) or _FIELD_FIRST.fullmatch(name)
    if match is None:
        return None
    return match["asset"], _FIELDS[plain_name(match["field"])][0]


def _of_assets(names: Sequence[str], pairs: dict[int, tuple[str, str]]) -> tuple[Column, ...]:
    """Columns named by field alone where there is one asset."""
    several = len({asset for asset, _ in pairs.values()}) > 1
    return tuple(
        Column(i, f"{asset} {field}" if several else field, names[i]) for i, (asset, field) in pairs.items()
    )


def _title(names: Sequence[str], columns: Sequence[Column]) -> str:
    for title, words in WITH_HEADER:
        if {word.replace("-", " ") for word in words.split()} <= {*names}:
            return title
    bars = {"Open", "High", "Low", "Close"} <= {column.name for column in columns}
    return "bars under a header" if bars else "columns under a header"
