"""How a run learned, as one picture."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from btnn_jax._errors import import_extra
from btnn_jax.plots.style import COLOURS, ROUND_STEPS, legend_label, make_figure, save, tidy
from btnn_jax.runs.folder import Folder, RunError
from btnn_jax.runs.metrics import read_metrics
from btnn_jax.runs.progress import format_count
from btnn_jax.runs.run import read_run
from btnn_jax.runs.scores import Score, read_scores

__all__ = [
    "COLOURS",
    "LINE_STYLES",
    "PANELS",
    "Curves",
    "Panel",
    "draw",
    "finite_values",
    "plot_runs",
    "read_curves",
    "smooth",
]

LINE_STYLES = ("-", "--", ":", "-.")


class Curves(NamedTuple):
    """Metrics and scores of one run."""

    label: str
    title: str
    metrics: dict[str, np.ndarray]  # [N], by record
    scores: dict[str, Score]


class Panel(NamedTuple):
    """One small plot: metrics that share an axis."""

    title: str
    unit: str
    metrics: dict[str, str]  # metric -> its words in the legend
    log: bool = False


PANELS = (
    Panel("Policy entropy", "nats", {"entropy": "entropy"}),
    Panel("Value", "explained variance", {"explained_variance": "explained variance"}),
    Panel("Value loss", "squared error", {"value_loss": "value loss"}, log=True),
    Panel(
        "Auxiliary losses",
        "loss, unweighted",
        {
            "pixel_control_loss": "pixel control",
            "value_replay_loss": "value replay",
            "reward_prediction_loss": "reward prediction",
        },
        log=True,
    ),
    Panel("Policy change per update", "nats, fraction", {"approx_kl": "KL", "clip_fraction": "clipped"}),
    Panel("Gradient norm", "before clipping", {"gradient_norm": "gradient norm"}, log=True),
    Panel("Noise in the heads", "mean |sigma|", {"noise_sigma": "sigma"}),
    Panel("Speed", "environment steps / s", {"steps_per_second": "steps / s"}),
)


def plot_runs(folders: Sequence[Folder], output: Folder | None = None) -> pathlib.Path:
    """Draws the learning curves and the learner's vital signs of one or several runs.

    Args:
      folders: the runs', interrupted ones too.
      output: the picture's file; None for `curves.png` in the first run's folder.

    Returns:
      The picture's file.

    Raises:
      RunError: a folder is not a run's, nothing has been recorded in it, or the picture cannot be written.
      ModuleNotFoundError: matplotlib is not installed.
    """
    figure = draw([read_curves(folder) for folder in folders])
    return save(figure, pathlib.Path(folders[0]) / "curves.png" if output is None else output)


def read_curves(folder: Folder) -> Curves:
    """Reads what is known of a run.

    Raises:
      RunError: the folder is not a run's, or nothing has been recorded in it.
    """
    run, metrics = read_run(folder), read_metrics(folder)
    if not metrics:
        raise RunError(f"nothing has been recorded in {folder} yet")
    return Curves(legend_label(pathlib.Path(folder).resolve().name), run.title, metrics, read_scores(folder))


def draw(runs: Sequence[Curves]) -> Any:
    """The picture of `runs` as a `matplotlib.figure.Figure`, without any of pyplot's state."""
    panels = [panel for panel in PANELS if any(name in run.metrics for run in runs for name in panel.metrics)]
    columns = 4
    rows = -(-len(panels) // columns)
    figure = make_figure((14, 4.6 + 2.4 * rows))
    figure.get_layout_engine().set(wspace=0.05, hspace=0.06)
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[2.1] + [1] * rows)
    titles = list(dict.fromkeys(run.title for run in runs))
    figure.suptitle(textwrap.fill(" / ".join(titles), 100), fontsize=15, fontweight="bold")
    _draw_returns(figure.add_subplot(grid[0, :]), runs)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(grid[1 + index // columns, index % columns])
        _draw_panel(axes, panel, runs)
    return figure


def _draw_returns(axes: Any, runs: Sequence[Curves]) -> None:
    for run, colour in zip(runs, _colours(runs), strict=True):
        steps, returns = finite_values(run.metrics, "episode_return")
        if not len(steps):
            continue
        name = run.label if len(runs) > 1 else "training episodes"
        every = _of_each_seed(run.metrics)
        if len(every):
            name = f"{name}, mean of {len(every)} seeds and its 95 % interval"
            for values in every:
                axes.plot(run.metrics["steps"], values, color=colour, alpha=0.2, linewidth=0.8)
            low, high = _interval(every)
            axes.fill_between(run.metrics["steps"], low, high, color=colour, alpha=0.2, linewidth=0)
        else:
            axes.plot(steps, returns, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, smooth(returns), color=colour, linewidth=2.2, label=name, **_dots(steps))
    if len(runs) == 1:
        _draw_scores(axes, runs[0], COLOURS[0])
    if not any(len(finite_values(run.metrics, "episode_return")[0]) for run in runs):
        axes.text(
            0.5, 0.5, "no episode has ended yet", transform=axes.transAxes, ha="center", color="#777777"
        )
    random = [run.scores["random"].mean_return for run in runs if "random" in run.scores]
    if random:
        axes.axhline(
            float(np.mean(random)),
            color="#777777",
            linestyle="--",
            linewidth=1.2,
            label=f"random: {np.mean(random):.3g}",
        )
    _style(axes, "Return of an episode", "undiscounted return", runs)
    axes.set_xlabel("environment steps")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=10, loc="best")


def _of_each_seed(metrics: dict[str, np.ndarray]) -> np.ndarray:
    """The smoothed returns of each seed, `[S, N]`, NaN where unknown; of a run with one seed none."""
    names = [name for name in metrics if name.startswith("episode_return_seed")]
    curves = []
    for name in names:
        steps, values = finite_values(metrics, name)
        curve = np.full_like(metrics["steps"], np.nan)
        curve[np.isin(metrics["steps"], steps)] = smooth(values)
        curves.append(curve)
    return np.array(curves)


def _interval(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval of 95 % of the mean over seeds at each record, by bootstrap."""
    draws = np.random.default_rng(0).integers(0, len(curves), (1000, len(curves)))
    means = np.stack([curves[draw].mean(axis=0) for draw in draws])
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def _draw_scores(axes: Any, run: Curves, colour: str) -> None:
    """The evaluation at the end of a run: a filled mark for greedy actions, a hollow one for sampled ones."""
    for name, face in (("greedy", colour), ("sampled", "white")):
        if name not in run.scores:
            continue
        score = run.scores[name]
        error = "" if score.standard_error is None else f" ± {score.standard_error:.2g}"
        axes.plot(
            run.metrics["steps"][-1],
            score.mean_return,
            color=colour,
            marker="o",
            markersize=8,
            markerfacecolor=face,
            linestyle="none",
            clip_on=False,
            label=f"evaluated, {name}: {score.mean_return:.3g}{error}",
        )


def _draw_panel(axes: Any, panel: Panel, runs: Sequence[Curves]) -> None:
    present = [name for name in panel.metrics if any(name in run.metrics for run in runs)]
    for run, colour in zip(runs, _colours(runs), strict=True):
        for index, name in enumerate(present):
            if name not in run.metrics:
                continue
            # One run has a colour for each metric; several have a colour each, and a dash for each metric.
            line, dash = (COLOURS[index], "-") if len(runs) == 1 else (colour, LINE_STYLES[index])
            steps, values = finite_values(run.metrics, name)
            if not len(steps):
                continue
            label = panel.metrics[name] if run is runs[0] and len(present) > 1 else None
            axes.plot(steps, values, color=line, alpha=0.2, linewidth=0.8)
            axes.plot(
                steps, smooth(values), color=line, linestyle=dash, linewidth=1.5, label=label, **_dots(steps)
            )
    if panel.log and _spans_decades(runs, present):
        axes.set_yscale("log")
    _style(axes, panel.title, panel.unit, runs)
    if len(present) > 1:
        axes.legend(frameon=False, fontsize=8)


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbours, over a twentieth of all, fewer at both ends.

    >>> smooth(np.arange(5.0))
    array([0., 1., 2., 3., 4.])
    """
    index = np.arange(len(values))
    # As many on either side, so that a straight line stays one.
    reach = np.minimum(len(values) // 40, np.minimum(index, index[::-1]))
    # Each window by itself: differences of a running sum lose their digits after one large value.
    return np.array([values[i - r : i + r + 1].mean() for i, r in zip(index, reach, strict=True)])


def finite_values(metrics: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a metric is known, and its values, without records of few updates.

    The last record of a run, and of each session of a resumed one, is of what was left, often a single update, whose
    noise would look like a cliff.
    """
    steps, values = metrics["steps"], metrics.get(name, np.full_like(metrics["steps"], np.nan))
    known = np.isfinite(values)
    if len(steps) > 2:
        intervals = np.diff(steps, prepend=0)
        after = np.append(intervals[2:], np.inf)
        # Beside its neighbours, since the speed may change; the first record has none before it.
        known[1:] &= intervals[1:] >= 0.5 * np.minimum(intervals[:-1], after)
    return steps[known], values[known]


def _dots(steps: np.ndarray) -> dict[str, Any]:
    """Shows the points of a curve that has so few that there may be no line to see."""
    return {"marker": "o", "markersize": 4, "clip_on": False} if len(steps) < 5 else {}


def _spans_decades(runs: Sequence[Curves], names: Sequence[str]) -> bool:
    """Whether the values ask for a logarithmic axis: positive, and more than a factor of 10 apart."""
    values = np.concatenate([finite_values(run.metrics, name)[1] for run in runs for name in names])
    return values.size > 0 and values.min() > 0 and bool(values.max() > 10 * values.min())


def _colours(runs: Sequence[Curves]) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(runs))]


def _style(axes: Any, title: str, unit: str, runs: Sequence[Curves]) -> None:
    ticker = import_extra("matplotlib.ticker", "plotting")
    tidy(axes, title)
    axes.set_ylabel(unit, fontsize=9)
    axes.set_xlim(0, max(run.metrics["steps"][-1] for run in runs))
    words = ticker.FuncFormatter(lambda value, _: format_count(value))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=ROUND_STEPS))
    axes.xaxis.set_major_formatter(words)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=ROUND_STEPS))
        if max(map(abs, axes.get_ylim())) >= 1000:
            axes.yaxis.set_major_formatter(words)
    else:
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axes.yaxis.set_major_formatter(words)
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
