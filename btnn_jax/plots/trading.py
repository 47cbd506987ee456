"""Draws price, trades, equity and drawdown of a trading agent as one picture."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from btnn_jax._errors import import_extra
from btnn_jax.envs.trading import performance
from btnn_jax.plots.style import COLOURS, ROUND_STEPS, make_figure, save, tidy
from btnn_jax.runs.folder import Folder

__all__ = [
    "AGENT",
    "LONG",
    "OTHERS",
    "PRICE",
    "REFERENCE",
    "SHORT",
    "draw_trades",
    "gain",
    "plot_backtest",
    "plot_trades",
    "spans",
]

AGENT, SHORT, LONG, *OTHERS = COLOURS
PRICE, REFERENCE = "#2f343b", "#8a929c"
_MARKED = 150  # changes of position; of more, markers would hide the price, and only the shading is left


def plot_trades(
    path: Folder,
    *,
    time: np.ndarray,
    price: np.ndarray,
    position: np.ndarray,
    equity: np.ndarray,
    baselines: Mapping[str, np.ndarray] | None = None,
    name: str = "agent",
    title: str = "",
) -> pathlib.Path:
    """Draws price and trades, the gain beside that of others, and the drawdown over one axis of time.

    Rows are those of `btnn_jax.envs.trading.performance`: `position[t]` was held while the price went from
    `price[t - 1]` to `price[t]`, so the order for it is marked at row t - 1.

    Args:
      path: the picture's file, `.png` or another kind that matplotlib writes.
      time: `[T]`, rising: datetime64, or numbers of steps.
      price: `[T]`, of what is traded.
      position: `[T]`; its sign says what was held: short, nothing or long.
      equity: `[T]`, the agent's.
      baselines: equities `[T]` by name; `"flat"` is drawn as a reference. Each curve counts from its own first row.
      name: name of the agent.
      title: title of the picture.

    Returns:
      The picture's file.

    Raises:
      ValueError: the shapes differ, or there are fewer than two rows.
      RunError: the picture cannot be written.
      ModuleNotFoundError: matplotlib is not installed.
    """
    figure = draw_trades(time, price, position, equity, baselines or {}, name=name, title=title)
    return save(figure, path)


def plot_backtest(folder: Folder, output: Folder | None = None, *, part: str = "test") -> pathlib.Path:
    """Draws what a trading run's agent made of a part of the time, with sampled actions as in training.

    Of several seeds it is the one in the middle, and of the draws of its actions, or of random ones, that in the middle
    too. What its most likely actions alone came to is drawn as `greedy`.

    Args:
      folder: the run's.
      output: the picture's file; None for `trades.png` in the folder.
      part: "train", "validation" or "test".

    Returns:
      The picture's file.

    Raises:
      RunError: as `backtest_run`, or the picture cannot be written.
      ModuleNotFoundError: matplotlib is not installed.
    """
    from btnn_jax.runs.backtests import backtest_run
    from btnn_jax.training.backtest import DRAWS, STRATEGIES

    (backtest,) = backtest_run(folder, part=part)
    returns = np.mean(backtest.performance["sampled"].total_return, axis=1)  # of each seed, over its draws
    middle = int(np.argsort(returns)[len(returns) // 2])
    account = jax.tree.map(lambda x: np.asarray(x)[middle], backtest.accounts["sampled"])
    assets, times = backtest.env.assets, backtest.env.times
    close = np.asarray(backtest.env.close)[account.bar]
    others = {"greedy": np.asarray(backtest.accounts["greedy"].equity)[middle]}
    for strategy in STRATEGIES:
        (equity,) = np.asarray(backtest.accounts[strategy].equity)
        others["random, one draw" if strategy == "random" else strategy] = equity
    data = pathlib.Path(backtest.data).name  # of a file the name is enough
    what = data if len(assets) == 1 else f"{data}, the mean of {len(assets)} assets"
    return plot_trades(
        pathlib.Path(folder) / "trades.png" if output is None else output,
        time=account.bar if times is None else times[account.bar],
        price=close[:, 0] if len(assets) == 1 else np.mean(close / close[:1], axis=1),
        position=np.sum(account.weight, axis=1),
        equity=account.equity,
        baselines=others,
        name="sampled, one draw",
        title=f"{what}: {part} part, seed {backtest.seeds[middle]}, the middle of {DRAWS} draws of its actions",
    )


def draw_trades(
    time: np.ndarray,
    price: np.ndarray,
    position: np.ndarray,
    equity: np.ndarray,
    baselines: Mapping[str, np.ndarray],
    *,
    name: str = "agent",
    title: str = "",
) -> Any:
    """The picture as a `matplotlib.figure.Figure`, without any of pyplot's state; see `plot_trades`."""
    time, price, position, equity = (np.asarray(x) for x in (time, price, position, equity))
    others = {other: np.asarray(curve) for other, curve in baselines.items()}
    given = {"time": time, "price": price, "position": position, "equity": equity, **others}
    shapes = {what: x.shape for what, x in given.items()}
    if len(set(shapes.values())) > 1 or time.ndim != 1 or len(time) < 2:
        raise ValueError(f"expected one shape [T >= 2], got {shapes}")
    figure = make_figure((13, 9), title, fontsize=15)
    figure.get_layout_engine().set(hspace=0.04)
    above, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2.2, 1.1])
    places = _draw_time(below, time)
    _draw_price(above, places, price, np.sign(position))
    _draw_gains(middle, places, equity, others, name)
    _draw_drawdown(below, places, equity, name)
    return figure


def _draw_price(axes: Any, time: np.ndarray, price: np.ndarray, side: np.ndarray) -> None:
    axes.plot(time, price, color=PRICE, linewidth=1.2, zorder=2)
    for sign, colour, name in ((1, LONG, "long"), (-1, SHORT, "format_count")):
        axes.broken_barh(
            [(time[start], time[end] - time[start]) for start, end in spans(side == sign)],
            (0, 1),
            transform=axes.get_xaxis_transform(),
            facecolor=colour,
            edgecolor="none",
            alpha=0.16,
            zorder=0,
            label=name,
        )
    before = np.concatenate([[0.0], side[:-1]])
    changes = np.flatnonzero(side != before)
    if len(changes) <= _MARKED:
        # Smaller as they become many, so that what they are about stays visible.
        size = float(np.interp(len(changes), [30, _MARKED], [70, 22]))
        for sign, marker, colour, name in (
            (1, "^", LONG, "buys"),
            (-1, "v", SHORT, "sells short"),
            (0, "o", "white", "goes flat"),
        ):
            rows = np.maximum(changes[side[changes] == sign] - 1, 0)
            edge = PRICE if sign == 0 else "white"
            axes.scatter(
                time[rows],
                price[rows],
                size * (0.5 if sign == 0 else 1),
                color=colour,
                marker=marker,
                edgecolors=edge,
                linewidths=1.0 if sign == 0 else 0.6,
                zorder=3,
                label=name,
            )
    _style(axes, "Price")
    _legend(axes)


def _draw_gains(
    axes: Any, time: np.ndarray, equity: np.ndarray, others: Mapping[str, np.ndarray], name: str
) -> None:
    axes.plot(time, gain(equity), color=AGENT, linewidth=2.2, zorder=3, label=_label(name, equity))
    colours = iter(OTHERS * len(others))
    for other, curve in others.items():
        if other == "flat":
            axes.plot(time, gain(curve), color=REFERENCE, linestyle="--", linewidth=1.2, label=other)
        else:
            axes.plot(time, gain(curve), color=next(colours), linewidth=1.5, label=_label(other, curve))
    _style(axes, "Gain since the start", percent=True)
    _legend(axes)


def _draw_drawdown(axes: Any, time: np.ndarray, equity: np.ndarray, name: str) -> None:
    drawdown = -100 * np.asarray(performance.drawdown(jnp.asarray(equity, jnp.float32)))
    axes.fill_between(time, drawdown, 0, color=AGENT, alpha=0.25, linewidth=0)
    axes.plot(time, drawdown, color=AGENT, linewidth=1.2)
    axes.set_ylim(min(1.08 * drawdown.min(), -0.1), 0)
    _style(axes, f"Drawdown ({name}), at most {-drawdown.min():.1f} %", percent=True)


def _draw_time(axes: Any, time: np.ndarray) -> np.ndarray:
    """Makes the axis of time, and returns where on it the rows are."""
    if np.issubdtype(time.dtype, np.datetime64):
        dates = import_extra("matplotlib.dates", "plotting")
        time = dates.date2num(time)
        locator = dates.AutoDateLocator(minticks=5, maxticks=10)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(
            dates.ConciseDateFormatter(
                locator,
                formats=["%Y", "%b", "%d %b", "%H:%M", "%H:%M", "%S.%f"],
                zero_formats=["", "%Y", "%b", "%d %b", "%H:%M", "%H:%M"],
                offset_formats=["", "%Y", "%Y", "%Y", "%d %b %Y", "%d %b %Y"],
            )
        )
    else:
        axes.set_xlabel("step")
    margin = 0.005 * (time[-1] - time[0])  # for the markers of the first and the last row
    axes.set_xlim(time[0] - margin, time[-1] + margin)
    return time


def spans(held: np.ndarray) -> list[tuple[int, int]]:
    """Between which rows something was held: from the row before the first step of each run to its last one.

    >>> spans(np.array([False, True, True, False, True]))
    [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], held, [False]])))
    return [(max(int(start) - 1, 0), int(end) - 1) for start, end in edges.reshape(-1, 2)]


def gain(equity: np.ndarray) -> np.ndarray:
    """Gain since the first row, in percent of it.

    >>> gain(np.array([200.0, 210.0, 190.0]))
    array([ 0.,  5., -5.])
    """
    return 100 * (equity - equity[0]) / equity[0]


def _label(name: str, equity: np.ndarray) -> str:
    return f"{name}: {_minus(f'{gain(equity)[-1]:+.1f}')} %"


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def _legend(axes: Any) -> None:
    """Beside the title, where it hides nothing."""
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1.005, 0.99),
        ncols=len(handles),
        frameon=False,
        fontsize=10,
        borderaxespad=0.2,
        columnspacing=1.6,
        handletextpad=0.5,
    )


def _style(axes: Any, title: str, *, percent: bool = False) -> None:
    ticker = import_extra("matplotlib.ticker", "plotting")
    tidy(axes, title)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=ROUND_STEPS))
    if percent:
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{_minus(f'{value:g}')} %"))
    else:
        axes.ticklabel_format(axis="y", style="plain", useOffset=False)  # prices as they are quoted
