"""Prices over time, as one picture."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from btnn_jax._errors import first_line, import_extra
from btnn_jax.data.report import bar_length, duration
from btnn_jax.data.series import Series, asset_and_field, gaps, is_volume
from btnn_jax.plots.agent import COLOURS

__all__ = ["draw_prices", "plot_prices"]

_LABELLED = 12  # curves; of more, a legend would hide them
_LONG_GAP = 5  # bars that a gap must last to be shaded, and more than the usual weekend
_WEEKEND = np.timedelta64(4, "D")


def plot_prices(path: Any, series: Series, *, title: str = "") -> pathlib.Path:
    """Draws closes over time, with the range from low to high, volumes below, and long gaps shaded.

    Args:
      path: the picture's file, `.png` or another kind that matplotlib writes.
      series: of one asset or several; these are drawn relative to their first close.
      title: of the picture.

    Returns:
      The picture's file.

    Raises:
      ValueError: there are fewer than two rows, or the picture cannot be written.
      ModuleNotFoundError: matplotlib is not installed.
    """
    figure = draw_prices(series, title=title)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # no such folder, or no such kind of picture
        raise ValueError(f"cannot write {path}: {first_line(error)}") from error
    return pathlib.Path(path)


def draw_prices(series: Series, *, title: str = "") -> Any:
    """The picture as a `matplotlib.figure.Figure`, without any of pyplot's state; see `plot_prices`."""
    if len(series) < 2:
        raise ValueError(f"a picture needs at least two rows, got {len(series)}")
    figures = import_extra("matplotlib.figure", "plotting")
    closes = [
        name for name in series.names if asset_and_field(name)[1] in ("Close", "") and not is_volume(name)
    ]
    closes = closes or [name for name in series.names if not is_volume(name)][:1] or list(series.names[:1])
    volumes = [name for name in series.names if is_volume(name) and series.select(name).values.any()]
    volumes = volumes if len(closes) == 1 else []
    figure = figures.Figure(figsize=(13, 7 if volumes else 6), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    if volumes:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        _draw_volume(below, series, volumes[0])
    else:
        above = below = figure.subplots()
    _draw_closes(above, series, closes)
    _shade_gaps(above, series)
    _draw_time(below, series)
    return figure


def _draw_closes(axes: Any, series: Series, closes: list[str]) -> None:
    time = _places(series)
    for i, name in enumerate(closes):
        prices = series.select(name).values[:, 0]
        asset = asset_and_field(name)[0]
        if len(closes) > 1:
            prices = prices / prices[0]
        elif {"High", "Low"} <= {*series.names}:
            low, high = series.select("Low", "High").values.T
            axes.fill_between(time, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label="low to high")
        axes.plot(
            time, prices, color=COLOURS[i % len(COLOURS)], linewidth=1.2, label=asset or name.casefold()
        )
    several = len(closes) > 1
    axes.set_title(
        "Close, relative to the first" if several else "Price", fontsize=11, loc="left", fontweight="bold"
    )
    if len(closes) <= _LABELLED:
        axes.legend(loc="lower right", bbox_to_anchor=(1.005, 1.0), ncols=6, frameon=False, fontsize=10)
    _style(axes)


def _draw_volume(axes: Any, series: Series, name: str) -> None:
    axes.fill_between(
        _places(series), series.select(name).values[:, 0], step="mid", color=COLOURS[5], alpha=0.6
    )
    axes.set_title(name, fontsize=11, loc="left", fontweight="bold")
    axes.set_ylim(bottom=0)
    _style(axes)
    axes.yaxis.set_major_formatter(import_extra("matplotlib.ticker", "plotting").EngFormatter(sep=""))


def _shade_gaps(axes: Any, series: Series) -> None:
    """Marks where rows are missing for longer than nights and weekends explain."""
    least = max(np.timedelta64(_LONG_GAP * bar_length(series), "s"), _WEEKEND)
    long = [gap for gap in gaps(series) if gap.until - gap.since > least]
    for gap in long[:100]:
        axes.axvspan(_numbers(gap.since), _numbers(gap.until), color=COLOURS[1], alpha=0.15, linewidth=0)
    if long:
        longest = max(long, key=lambda gap: gap.until - gap.since)
        length = duration(int((longest.until - longest.since) / np.timedelta64(1, "s")))
        axes.annotate(
            f"{len(long)} long {'gap' if len(long) == 1 else 'gaps'} (shaded), up to {length}",
            (0.01, 0.97), xycoords="axes fraction", va="top", fontsize=9, color=COLOURS[1],
        )  # fmt: skip


def _draw_time(axes: Any, series: Series) -> None:
    time = _places(series)
    axes.set_xlim(time[0], time[-1])
    if series.times is None:
        axes.set_xlabel("row")
        return
    dates = import_extra("matplotlib.dates", "plotting")
    locator = dates.AutoDateLocator(minticks=5, maxticks=10)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))


def _places(series: Series) -> np.ndarray:
    return np.arange(len(series)) if series.times is None else _numbers(series.times)


def _numbers(times: Any) -> Any:
    return import_extra("matplotlib.dates", "plotting").date2num(times)


def _style(axes: Any) -> None:
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
