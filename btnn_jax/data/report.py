"""How prices were understood, in words."""

from __future__ import annotations

import numpy as np

from btnn_jax.data.reading import Reading
from btnn_jax.data.series import Series, asset_and_field, gaps, is_volume

__all__ = ["bar_length", "describe", "duration"]

_UNITS = (("week", 604_800), ("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))


def describe(reading: Reading) -> str:
    """What was understood of a source of prices: layout, columns, span, bar length, gaps, duplicates and prices.

    Returns:
      Lines of text.
    """
    series = reading.series
    rows = [("layout", reading.layout), ("rows", f"{len(series):,}"), ("columns", _columns(reading))]
    if reading.ignored:
        rows.append(("left out", _shorten(reading.ignored)))
    if series.times is not None:
        zone = "in UTC" if reading.zone else "without a zone, as they stand"
        first, last = (str(time).replace("T", " ") for time in series.times[[0, -1]])
        rows += [("times", f"{reading.time}, {zone}"), ("span", f"{first} to {last}")]
        rows += [("bar length", _steps(series)), ("gaps", _gaps(series))]
        rows.append(("duplicates", _duplicates(reading)))
    for i, name in enumerate(series.names):
        if asset_and_field(name)[1] in ("Close", "") and not is_volume(name) and len(rows) < 20:
            low, high = np.min(series.values[:, i]), np.max(series.values[:, i])
            rows.append((name.casefold() if name == "Close" else name, f"{low:g} to {high:g}"))
    rows += [("note", note) for note in reading.notes]
    width = max(len(label) for label, _ in rows) + 2
    return "\n".join([reading.source, *(f"  {label:<{width}}{text}" for label, text in rows)])


def bar_length(series: Series) -> int:
    """Seconds between two rows, the most frequent; 0 where there are no two times."""
    if series.times is None or len(series) < 2:
        return 0
    lengths, counts = np.unique(np.diff(series.times).astype(np.int64), return_counts=True)
    return int(lengths[np.argmax(counts)])


def duration(seconds: int) -> str:
    """A length of time in at most two units.

    >>> duration(3600), duration(5 * 60), duration(2 * 86400 + 17 * 3600)
    ('1 hour', '5 minutes', '2 days 17 hours')
    """
    parts: list[str] = []
    for unit, length in _UNITS:
        count, seconds = divmod(seconds, length)
        if count and len(parts) < 2:
            parts.append(f"{count} {unit}{'' if count == 1 else 's'}")
    return " ".join(parts) or "0 seconds"


def _columns(reading: Reading) -> str:
    shown = [
        name if not original or original == name else f"{original} as {name}"
        for name, original in zip(reading.series.names, reading.columns or reading.series.names, strict=True)
    ]
    return _shorten(shown)


def _shorten(words: list[str] | tuple[str, ...]) -> str:
    return ", ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")


def _steps(series: Series) -> str:
    if series.times is None or len(series) < 2:
        return "unknown, of one row"
    length = bar_length(series)
    equal = int(np.sum(np.diff(series.times).astype(np.int64) == length))
    return f"{duration(length)}, {equal:,} of {len(series) - 1:,} steps"


def _gaps(series: Series) -> str:
    found = gaps(series)
    if not found:
        return "none"
    longest = max(found, key=lambda gap: gap.until - gap.since)
    length = duration(int((longest.until - longest.since) / np.timedelta64(1, "s")))
    where = "" if series.lines is None else f" (line {series.lines[longest.row]})"
    since = str(longest.since).replace("T", " ")
    return f"{len(found):,}, nights and weekends included; the longest of {length} from {since}{where}"


def _duplicates(reading: Reading) -> str:
    if not reading.repeated:
        return "none"
    return f"{reading.repeated:,} rows repeat a time: duplicates=first or duplicates=last keeps one of each"
