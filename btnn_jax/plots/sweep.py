"""The trials of a search, as one picture: the return by each searched value."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from btnn_jax.plots.style import COLOURS, make_figure, save, tidy
from btnn_jax.runs.folder import Folder, RunError, read_settings
from btnn_jax.runs.sweep import Trial, read_sweep

__all__ = ["draw_sweep", "plot_sweep"]

_COLUMNS = 3


def plot_sweep(folder: Folder, output: Folder | None = None) -> pathlib.Path:
    """Draws the return of every trial by each searched value, and the best so far by trial.

    Args:
      folder: the search's, see `btnn_jax.runs.sweep.sweep`.
      output: the picture's file; None for `sweep.png` in the folder.

    Raises:
      RunError: no trial has ended yet, or the picture cannot be written.
      ModuleNotFoundError: matplotlib is not installed.
    """
    settings, trials = read_settings(folder), read_sweep(folder)
    if not trials:
        raise RunError(f"{folder} holds no trial that has ended")
    log = {name for name, where in settings["sweep"].items() if isinstance(where, list) and where[2]}
    figure = draw_sweep(trials, log=log, title=f"{settings['environment']['name']}, {len(trials)} trials")
    return save(figure, pathlib.Path(folder) / "sweep.png" if output is None else output)


def draw_sweep(trials: Sequence[Trial], *, log: set[str] | None = None, title: str = "") -> Any:
    """The picture as a `matplotlib.figure.Figure`, without any of pyplot's state.

    Args:
      trials: at least one.
      log: fields with a logarithmic axis.
      title: of the picture.
    """
    names = list(trials[0].values)
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = make_figure((4.2 * columns, 3.4 * rows + 0.6), title)
    every = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, name in zip(every.ravel(), names, strict=False):
        _draw_values(axes, trials, name, log=name in (log or ()))
    for axes in every.ravel()[len(names) :]:
        axes.set_visible(False)
    for axes in every[:, 0]:
        axes.set_ylabel("mean return")
    every[0, 0].legend(frameon=False, fontsize=8, loc="best")
    return figure


def _draw_values(axes: Any, trials: Sequence[Trial], name: str, *, log: bool) -> None:
    values = [trial.values[name] for trial in trials]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numeric:
        places = np.array(values, float)
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")  # the usual one writes formulas
            axes.xaxis.set_minor_formatter("")
    else:
        labels = sorted({str(value) for value in values})
        places = np.array([labels.index(str(value)) for value in values], float)
        axes.set_xticks(range(len(labels)), labels)
        axes.margins(x=0.2)
    for pruned, marker, label in ((False, "o", "to the end"), (True, "x", "given up")):
        chosen = [
            i for i, trial in enumerate(trials) if trial.pruned == pruned and math.isfinite(trial.score)
        ]
        if not chosen:
            continue
        scores = np.array([trials[i].score for i in chosen])
        axes.scatter(
            places[chosen], scores, s=28, marker=marker, color=COLOURS[pruned], label=label, zorder=3
        )
        for i in chosen:  # the spread of the seeds
            axes.vlines(
                places[i], min(trials[i].scores), max(trials[i].scores), color=COLOURS[pruned], alpha=0.35
            )
    axes.set_xlabel(name)
    tidy(axes)
