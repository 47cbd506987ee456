"""Numbers as people write them: decimal points and commas, marks between thousands, currencies and suffixes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["MISSING", "NumberFormat", "is_missing", "is_number", "parse_numbers", "recognise_numbers"]

MISSING = ("", "null", "nan", "na", "n/a", "#n/a", "none", "nil", "-", "--", ".")
"""What stands for a number that is not there, in lower case; add new ones here."""

_SPACES = " \u00a0\u202f\u2009"
_GROUPS = {
    ",": ",",
    ".": ".",
    " ": _SPACES,
    "'": "'\u2019",
}  # a mark between thousands, and how it is written
_OTHER = {".": ",", ",": "."}
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_CURRENCIES = "$\u20ac\u00a3\u00a5"
_NUMBER = re.compile(
    rf"[+-]?[{_CURRENCIES}]?[+-]?(?P<digits>\d[\d.,'\u2019{_SPACES}]*|[.,]\d+)(?P<power>e[+-]?\d+)?"
    rf"(?P<suffix>[kmbt])?",
    re.IGNORECASE,
)
_WORD = re.compile(r"[+-]?(inf|infinity)", re.IGNORECASE)


class NumberFormat(NamedTuple):
    """How a file writes its numbers.

    Attributes:
      decimal: before the decimals, "." or ",".
      thousands: between thousands: "", ",", ".", " " or "'".
      marked: whether some have a currency before them or a suffix (k, M, B, T) behind.
    """

    decimal: str = "."
    thousands: str = ""
    marked: bool = False


def is_missing(text: str) -> bool:
    """Whether a text stands for a number that is not there.

    >>> is_missing("null"), is_missing("N/A"), is_missing("0")
    (True, True, False)
    """
    return text.strip().casefold() in MISSING


def is_number(text: str) -> bool:
    """Whether a text is a number in any format, for telling columns of numbers from columns of text.

    >>> [is_number(text) for text in ("1,234.5", "$187.68", "1.25M", "1_000", "AAPL", "0.2%")]
    [True, True, True, False, False, False]
    """
    text = text.strip()
    return _NUMBER.fullmatch(text) is not None or _WORD.fullmatch(text) is not None


def recognise_numbers(texts: Iterable[str], decimal: str | None = None) -> NumberFormat:
    """The format that some numbers are written in.

    Args:
      texts: of numbers; others among them are passed over.
      decimal: "." or "," where it is known.

    Raises:
      ValueError: `1,234` may be one and a bit or more than a thousand, and no number says which.

    >>> recognise_numbers(["1.234,5", "100,25"])
    NumberFormat(decimal=',', thousands='.', marked=False)
    """
    if decimal not in (None, ".", ","):
        raise ValueError(f"decimal must be '.' or ',', got {decimal!r}")
    known, marked = decimal, False
    groups: set[str] = set()
    decimals = {".": 0, ",": 0}
    doubtful: dict[str, str] = {}  # by mark, the first number with three digits behind it
    for text in texts:
        match = _NUMBER.fullmatch(text.strip())
        if match is None:
            continue
        marked |= match["suffix"] is not None or any(sign in text for sign in _CURRENCIES)
        digits = match["digits"].strip()
        groups.update(mark for mark in (" ", "'") if any(sign in digits for sign in _GROUPS[mark]))
        points = re.sub(r"[^.,]", "", digits)
        if not points:
            continue
        last = points[-1]
        head, tail = digits.rsplit(last, 1)
        if len({*points}) == 2:
            decimals[last] += 1
            groups.add(_OTHER[last])
        elif len(points) > 1:
            decimals[_OTHER[last]] += 1
            groups.add(last)
        elif len(tail) == 3 and head != "0" and 0 < len(head) <= 3:
            doubtful.setdefault(last, text.strip())
        else:
            decimals[last] += 1
    if decimal is None:
        decimal = "," if decimals[","] > decimals["."] else "."
        if "," in doubtful and not any(decimals.values()):
            raise ValueError(
                f"{doubtful[',']!r} may have three decimals or a mark between thousands, and no number says which: "
                "choose decimal=',' or decimal='.'"
            )
    if known is not None or _OTHER[decimal] in groups or _OTHER[decimal] in doubtful:
        thousands = _OTHER[decimal]
    else:
        thousands = next((mark for mark in (" ", "'") if mark in groups), "")
    return NumberFormat(decimal, thousands, marked)


def parse_numbers(texts: Any, form: NumberFormat) -> tuple[np.ndarray, np.ndarray]:
    """Reads a column of numbers.

    Args:
      texts: a `pandas.Series` of str, `[T]`.
      form: how they are written.

    Returns:
      float64 `[T]`, NaN where a number is missing or no number, and which are no numbers, bool `[T]`.
    """
    column = texts.str.strip()
    lower = column.str.casefold()
    missing = lower.isin(MISSING).to_numpy(bool)
    if form.marked:
        column = column.str.replace(rf"^([+-]?)[{_CURRENCIES}]", r"\1", regex=True)
        suffix = column.str.extract(r"(?<=\d)([kmbtKMBT])$", expand=False).str.lower()
        factor = suffix.map(_SUFFIXES).astype("float64").fillna(1.0).to_numpy(np.float64)
        column = column.str.replace(r"(?<=\d)[kmbtKMBT]$", "", regex=True)
    if form.thousands:
        signs = re.escape(_GROUPS[form.thousands])
        column = column.str.replace(rf"(?<=\d)[{signs}](?=\d{{3}}(?!\d))", "", regex=True)
    if form.decimal == ",":
        column = column.str.replace(".", "?", regex=False).str.replace(",", ".", regex=False)
    plain = column.str.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(?i:inf|infinity)").to_numpy(
        bool
    )
    values = np.full(len(column), np.nan)
    values[plain] = [float(text) for text in column[plain]]
    if form.marked:
        values *= factor
    return values, ~plain & ~missing
