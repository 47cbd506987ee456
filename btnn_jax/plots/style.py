"""The look of every picture, and how a picture is written."""

from __future__ import annotations

import pathlib
from typing import Any

from btnn_jax._errors import import_extra
from btnn_jax.runs.folder import Folder, RunError

__all__ = ["COLOURS", "ROUND_STEPS", "legend_label", "make_figure", "save", "tidy"]

COLOURS = ("#2a6fbb", "#d1495b", "#3f8f5f", "#b7791f", "#7b5ea7", "#4f5d75")
ROUND_STEPS = [1, 2, 2.5, 5, 10]
"""Multiples of powers of ten that ticks stand at."""


def make_figure(size: tuple[float, float], title: str = "", *, fontsize: float = 13) -> Any:
    """A `matplotlib.figure.Figure` of `size` inches, without any of pyplot's state.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    figure = import_extra("matplotlib.figure", "plotting").Figure(figsize=size, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=fontsize, fontweight="bold")
    return figure


def tidy(axes: Any, title: str = "") -> None:
    """Gives axes their title, a light grid and no frame at the top and the right."""
    if title:
        axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.tick_params(labelsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend_label(name: str) -> str:
    """A name as a legend shows it: matplotlib leaves out what starts with an underscore.

    >>> legend_label("_run"), legend_label("run")
    ('./_run', 'run')
    """
    return f"./{name}" if name.startswith("_") else name


def save(figure: Any, path: Folder) -> pathlib.Path:
    """Writes a figure, in the format that the suffix of `path` names.

    Raises:
      RunError: there is no such folder or format, or the disk does not take it.
    """
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)  # names of files and columns are no formulas, dollars or not
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot write {path}: {error}") from error
    return pathlib.Path(path)
