"""`btnn-jax data`: how files of prices are understood."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from btnn_jax._errors import check_known
from btnn_jax.data.prices import OPTIONS, read_prices
from btnn_jax.data.report import describe

__all__ = ["show_prices"]


def show_prices(files: Sequence[str], options: Mapping[str, Any], picture: str | None = None) -> None:
    """Prints how files of prices are understood, and draws them where that is asked for.

    Args:
      files: one, or one for each asset.
      options: of `btnn_jax.data.load_prices`. Rows that repeat a time are counted unless `duplicates` is among them.
      picture: file to draw the prices into.

    Raises:
      ValueError: the prices cannot be read, or the picture cannot be written; the message is one line.
      OSError: a file cannot be read.
      ModuleNotFoundError: a package is missing; the message says which.
    """
    check_known("data option", options, OPTIONS)
    reading = read_prices(files[0] if len(files) == 1 else list(files), **{"duplicates": "first", **options})
    print(describe(reading))
    if picture is not None:
        from btnn_jax.plots.prices import plot_prices

        print(
            plot_prices(picture, reading.series, title=", ".join(pathlib.Path(file).name for file in files))
        )
