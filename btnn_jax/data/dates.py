"""Times as people write them: recognised from the texts themselves, and refused where they can be read in two ways."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from btnn_jax._errors import import_extra

__all__ = ["TimeFormatError", "Times", "has_clock", "is_clock", "is_epoch", "is_time", "parse_times"]

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"

_DATES = (
    (r"\d{4}-\d{1,2}-\d{1,2}", "%Y-%m-%d"),
    (r"\d{4}/\d{1,2}/\d{1,2}", "%Y/%m/%d"),
    (r"\d{4}\.\d{1,2}\.\d{1,2}", "%Y.%m.%d"),
    (r"(?:19|20)\d{6}", "%Y%m%d"),
    (r"\d{4}-\d{2}", "%Y-%m"),
    (r"\d{1,2}\.\d{1,2}\.\d{4}", "%d.%m.%Y"),
    (r"\d{1,2}\.\d{1,2}\.\d{2}", "%d.%m.%y"),
    (r"\d{1,2}/\d{1,2}/\d{4}", "%d/%m/%Y"),
    (r"\d{1,2}/\d{1,2}/\d{2}", "%d/%m/%y"),
    (r"\d{1,2}-\d{1,2}-\d{4}", "%d-%m-%Y"),
    (r"\d{1,2}-\d{1,2}-\d{2}", "%d-%m-%y"),
    (rf"\d{{1,2}}-{_MONTH}-\d{{4}}", "%d-%b-%Y"),
    (rf"\d{{1,2}}-{_MONTH}-\d{{2}}", "%d-%b-%y"),
    (rf"\d{{1,2}} {_MONTH} \d{{4}}", "%d %b %Y"),
    (rf"\d{{1,2}} {_MONTH} \d{{2}}", "%d %b %y"),
    (rf"{_MONTH} \d{{1,2}}, \d{{4}}", "%b %d, %Y"),
    (rf"{_MONTH} \d{{1,2}} \d{{4}}", "%b %d %Y"),
)
"""A pattern of a date and its format, the day before the month where both are numbers; add new ones here."""

_CLOCKS = (
    (r"\d{1,2}:\d{2}:\d{2}\.\d+", "%H:%M:%S.%f"),
    (r"\d{1,2}:\d{2}:\d{2},\d+", "%H:%M:%S,%f"),
    (r"\d{1,2}:\d{2}:\d{2} [ap]m", "%I:%M:%S %p"),
    (r"\d{1,2}:\d{2}:\d{2}[ap]m", "%I:%M:%S%p"),
    (r"\d{1,2}:\d{2}:\d{2}", "%H:%M:%S"),
    (r"\d{1,2}:\d{2} [ap]m", "%I:%M %p"),
    (r"\d{1,2}:\d{2}[ap]m", "%I:%M%p"),
    (r"\d{1,2}:\d{2}", "%H:%M"),
    (r"\d{1,2}-[ap]m", "%I-%p"),
    (r"\d{6}", "%H%M%S"),
    (r"\d{4}", "%H%M"),
    (r"\d{2}", "%H"),
)
"""A pattern of a time of day and its format; add new ones here."""

_ZONE = r"\s?(?:(?P<utc>utc|gmt)(?![+-])|(?P<word>utc|gmt)?(?P<offset>z|[+-]\d{2}:?\d{2}))"
_WEEKDAY = r"(?:(?P<weekday>(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*),? )?"


def _alternatives(table: tuple[tuple[str, str], ...], letter: str) -> str:
    return "|".join(f"(?P<{letter}{i}>{pattern})" for i, (pattern, _) in enumerate(table))


_TIME = re.compile(
    rf"{_WEEKDAY}(?:{_alternatives(_DATES, 'd')})"
    rf"(?:(?P<gap>(?:,? +)|[Tt-]|)(?:{_alternatives(_CLOCKS, 'c')})(?:{_ZONE})?|(?:{_ZONE.replace('P<', 'P<d_')})?)",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[ap]m)?", re.IGNORECASE)
_EPOCH = re.compile(r"(\d{9,10}|\d{12,13}|\d{15,16}|\d{18,19})(\.\d+)?")
_MONTH_AND_DAY = re.compile(r"%d([./-])%m")
_SHOWN = 60  # characters of a text in a message
_SHAPES = 16  # ways of writing the time in one series, such as with and without seconds
_EXPECTED = "not a time such as 2017-01-31 22:00:00 or 20170131 220000"


class Times(NamedTuple):
    """Times that were read."""

    values: np.ndarray  # datetime64[s] [T]
    format: str  # how they were written, for people
    zone: bool  # whether they named their zone, and so are UTC


class TimeFormatError(ValueError):
    """A text is no time, or not one like those before it.

    Attributes:
      rows: the rows it is about, int `[n]`; the first is the one that the message describes. Empty for all of them.
    """

    def __init__(self, message: str, rows: np.ndarray) -> None:
        super().__init__(message)
        self.rows = rows


class _Format(NamedTuple):
    text: str  # for strptime
    zone: bool  # names a zone
    clock: bool  # has a time of day


def is_time(text: str) -> bool:
    """Whether a text is a date, with or without a time of day; see `is_epoch` for counts of seconds.

    >>> [is_time(text) for text in ("2024-02-05", "05.02.2024 09:30", "Feb 5, 2024", "20240205 093000", "100.5")]
    [True, True, True, True, False]
    """
    return _format_of(text.strip()) is not None


def is_clock(text: str) -> bool:
    """Whether a text is a time of day with a colon.

    >>> is_clock("09:30"), is_clock("9:30 PM"), is_clock("930")
    (True, True, False)
    """
    return _CLOCK.fullmatch(text.strip()) is not None


def is_epoch(text: str) -> bool:
    """Whether a text can be a count of seconds since 1970, or of thousandths, millionths or billionths of them.

    >>> is_epoch("1707125400"), is_epoch("1707125400000"), is_epoch("20240205")
    (True, True, False)
    """
    return _EPOCH.fullmatch(text.strip()) is not None


def has_clock(text: str) -> bool:
    """Whether a text that is a time has a time of day."""
    found = _format_of(text.strip())
    return found is not None and found.clock


def parse_times(texts: Any, name: str, day_first: bool | None = None) -> Times:
    """Reads times, all written alike but for seconds, fractions and offsets.

    Args:
      texts: `[T]` of str.
      name: of their column, for messages.
      day_first: whether 01/02/2024 is the first of February; None to find out from days above 12.

    Raises:
      TimeFormatError: a text is no time, only some have a zone, or day and month cannot be told apart.
      ModuleNotFoundError: pandas is not installed.
    """
    pandas = import_extra("pandas", "reading prices", "data")
    column = pandas.Series(texts, dtype="str").str.strip()
    if len(column) and is_epoch(column.iloc[0]) and not is_time(column.iloc[0]):
        return _parse_epochs(column, name)
    orders: tuple[bool, ...] = (True, False) if day_first is None else (day_first,)
    found: list[Times] = []
    errors: list[TimeFormatError] = []
    for order in orders:
        try:
            times, swapped = _parse(pandas, column, name, order)
        except TimeFormatError as error:
            errors.append(error)
            continue
        found.append(times)
        if not swapped:
            break
    if not found:
        raise max(errors, key=lambda error: int(error.rows[0]))
    if len(found) == 2:
        differ = np.flatnonzero(found[0].values != found[1].values)
        if len(differ):
            first, other = (str(times.values[differ[0]].astype("datetime64[D]")) for times in found)
            raise TimeFormatError(
                f"{name} is {column.iloc[differ[0]][:_SHOWN]!r}, which may be {first} or {other}, and no row says "
                "which: choose day_first=True or day_first=False",
                differ[:1],
            )
    return found[0]


def _parse(pandas: Any, column: Any, name: str, day_first: bool) -> tuple[Times, bool]:
    """Times read with the day before the month or after it, and whether that made a difference."""
    values = np.full(len(column), "NaT", "datetime64[s]")
    zone = np.zeros(len(column), bool)
    formats: list[str] = []
    swapped = False
    rows = np.arange(len(column))
    for _ in range(_SHAPES):
        if not len(rows):
            break
        text = column.iloc[rows[0]]
        form = _format_of(text)
        if form is None:
            break
        order = _MONTH_AND_DAY.search(form.text)
        swapped |= order is not None and order[1] != "."  # with dots, the day comes first everywhere
        written = form.text if day_first else _MONTH_AND_DAY.sub(r"%m\1%d", form.text)
        parsed = _strptime(pandas, column.iloc[rows], written, form.zone)
        good = ~np.isnat(parsed)
        if not good[0]:
            break
        formats.append(written)
        values[rows[good]], zone[rows[good]] = parsed[good], form.zone
        rows = rows[~good]
    if len(rows):
        raise TimeFormatError(f"{name} is {column.iloc[rows[0]][:_SHOWN]!r}, {_EXPECTED}", rows[:1])
    if len(other := np.flatnonzero(zone != zone[:1])):
        word = "no" if zone[0] else "a"
        raise TimeFormatError(
            f"the time {column.iloc[other[0]][:_SHOWN]!r} has {word} zone, unlike the first", other[:1]
        )
    shown = re.sub(r"%([a-zA-Z])", lambda code: _SYMBOLS.get(code[1], code[0]), formats[0]) if formats else ""
    return Times(values, shown, bool(zone.any())), swapped


_SYMBOLS = {
    "Y": "YYYY", "y": "YY", "m": "MM", "d": "DD", "b": "Mon", "B": "Month", "H": "hh", "I": "hh", "M": "mm", "S": "ss",
    "f": "fff", "p": "AM/PM", "z": "offset", "a": "Day", "A": "Weekday",
}  # fmt: skip
"""How the codes of strptime are shown to people."""


def _strptime(pandas: Any, column: Any, form: str, zone: bool) -> np.ndarray:
    """Times in UTC or as they stand, datetime64[s] `[T]`; NaT where a text is written otherwise."""
    parsed = pandas.to_datetime(column, format=form, errors="coerce", utc=zone)
    if zone:
        parsed = parsed.dt.tz_localize(None)
    return np.asarray(parsed.to_numpy(), "datetime64[s]")


def _format_of(text: str) -> _Format | None:
    """The format that a text is written in: what is not a part of the time stays as it is."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    parts: list[tuple[tuple[int, int], str]] = []  # from where to where in the text, and its code
    for group, found in match.groupdict().items():
        if found is None or group in ("word", "gap", "utc", "d_utc", "d_word"):
            continue
        if group == "weekday":
            code = "%A" if len(found) > 3 else "%a"
        elif group.endswith("offset"):
            code = "%z"
        else:
            code = (_DATES if group[0] == "d" else _CLOCKS)[int(group[1:])][1]
        if "%b" in code and len(re.search("[a-z]+", found, re.IGNORECASE)[0]) > 3:  # type: ignore[index]
            code = code.replace("%b", "%B")
        parts.append((match.span(group), code))
    codes = [code for _, code in parts]
    gap, digits = match["gap"], {"%H%M%S", "%H%M"} & {*codes}
    if (digits and not gap and "%Y%m%d" not in codes) or ("%H" in codes and gap not in ("T", "t")):
        return None  # digits that belong to something else
    form = text
    for (start, end), code in sorted(parts, reverse=True):
        form = form[:start] + code + form[end:]
    zone = any(match[group] is not None for group in ("utc", "offset", "d_utc", "d_offset"))
    return _Format(form, zone, gap is not None)


_UNITS: tuple[tuple[str, float, int], ...] = (
    ("seconds", 1e8, 1),
    ("milliseconds", 1e11, 10**3),
    ("microseconds", 1e14, 10**6),
    ("nanoseconds", 1e17, 10**9),
)
"""Units of an epoch: their name, the least count that is taken for one (1973) and how many make a second."""


def _parse_epochs(column: Any, name: str) -> Times:
    texts = column.str.replace(r"\.\d+$", "", regex=True)
    if len(bad := np.flatnonzero(~texts.str.fullmatch(r"\d{9,19}").to_numpy(bool))):
        raise TimeFormatError(f"{name} is {column.iloc[bad[0]][:_SHOWN]!r}, not a count of seconds", bad[:1])
    counts = texts.astype("int64").to_numpy()
    unit, least, per_second = next(
        unit for unit in reversed(_UNITS) if counts[0] >= unit[1] or unit is _UNITS[0]
    )
    if len(bad := np.flatnonzero((counts < least) | (counts >= least * 1e3))):
        raise TimeFormatError(f"{name} is {counts[bad[0]]}, which does not count {unit} since 1970", bad[:1])
    return Times((counts // per_second).astype("datetime64[s]"), f"{unit} since 1970", True)
