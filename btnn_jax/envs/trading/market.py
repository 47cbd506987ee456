"""Opens and closes of every traded asset, from a name, a file, a series, a data frame or an array."""

from __future__ import annotations

import inspect
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from btnn_jax._errors import check_known
from btnn_jax.data import PACKAGED_SERIES, Series, generators, load_installed, load_prices
from btnn_jax.data.frames import is_frame
from btnn_jax.data.prices import OPTIONS
from btnn_jax.data.series import asset_and_field, is_volume

__all__ = ["BAR", "Data", "Market", "load_market"]

Data = str | os.PathLike[str] | Series | np.ndarray | jax.Array | Sequence[Any] | Mapping[str, Any]

GENERATORS: dict[str, Callable[..., Any]] = {
    "sine": generators.sine,
    "random_walk": generators.random_walk,
    "ornstein_uhlenbeck": generators.ornstein_uhlenbeck,
    "regime_switching": generators.regime_switching,
}
"""Generated prices by name; their parameters, and `length` (4096) and `seed` (0), are `data_params`."""

BAR = ("open", "high", "low", "close")

_SUFFIXES = (".csv", ".gz", ".txt", ".tsv", ".parquet", ".pq")  # that say that a name is meant as a file's


class Market(NamedTuple):
    """Prices of `A` assets at `N` bars, float64."""

    assets: tuple[str, ...]
    times: np.ndarray | None  # datetime64 [N]
    open: np.ndarray  # [N, A]
    close: np.ndarray  # [N, A]
    lines: np.ndarray  # [N, A * L]: open, high, low and close of bars (L = 4), or closes alone (L = 1)
    source: str = "data"  # what messages call it


def load_market(data: Data, params: Mapping[str, Any], columns: str | Sequence[str] | None) -> Market:
    """Finds prices by name, reads them from a file, generates them or takes them as they are given.

    A series with columns Open and Close is one asset's bars, one with a Close alone its closes; of any other, each
    column but volumes is the closes of an asset. Where there are only closes, a bar opens where the one before it
    closed.

    Args:
        data: one of `GENERATORS` or `btnn_jax.data.PACKAGED_SERIES`; a file, a data frame of pandas or polars, or
            several of them, that `btnn_jax.data.load_prices` reads; a series; or an array of closes `[N]` or `[N, A]`
            or of bars `[N, A, 4]` of open, high, low and close.
        params: parameters of a generator, or options of `load_prices`.
        columns: columns of a file, a frame or a series, each the closes of an asset, also as one string with commas
            between; None for the columns described above.

    Raises:
        ValueError: there is no such data, the file cannot be read, or what there is are no prices.
        TypeError: the data are of no kind that has prices.
        ModuleNotFoundError: the package is missing that carries or reads the prices.
    """
    if isinstance(columns, str):
        columns = [name.strip() for name in columns.split(",")]
    if isinstance(data, str) and data in GENERATORS:
        if columns is not None:
            raise ValueError(f"{data} is generated and has no columns, got {tuple(columns)}")
        return _of_array(_generate(data, dict(params)))._replace(source=data)
    if isinstance(data, str) and data in PACKAGED_SERIES:
        _check_no_params(data, params)
        return _of_series(load_installed(data), columns, data)
    if _is_readable(data):
        return _read(data, params, columns)
    _check_no_params(data, params)
    if isinstance(data, Series):
        return _of_series(data, columns, "data")
    if columns is not None:
        raise ValueError(f"an array has no columns to choose, got {tuple(columns)}")
    try:
        prices = np.asarray(data, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"data must be prices: a name, a file, a series, a data frame or an array, got a {type(data).__name__}"
        ) from error
    return _of_array(prices)


def _check_no_params(data: Data, params: Mapping[str, Any]) -> None:
    if params:
        raise ValueError(
            f"only {', '.join(GENERATORS)} and files have data_params, got {dict(params)} for {_show(data)}"
        )


def _is_readable(data: Any) -> bool:
    """Whether `load_prices` reads it from columns."""
    if isinstance(data, list | tuple):
        return bool(data) and all(map(_is_readable, data))
    return isinstance(data, str | os.PathLike | Mapping) or is_frame(data)


def _read(data: Any, params: Mapping[str, Any], columns: Sequence[str] | None) -> Market:
    check_known("data_params", params, {*OPTIONS} - {"columns"})
    if isinstance(data, str | os.PathLike):
        path = pathlib.Path(data)
        if not os.path.isfile(path) and path.suffix.lower() not in _SUFFIXES and len(path.parts) == 1:
            check_known("data", [str(data)], (*GENERATORS, *PACKAGED_SERIES))
    source = data if isinstance(data, str | os.PathLike) else "data"
    try:
        series = load_prices(data, columns=columns, **params)
    except OSError as error:
        raise ValueError(f"cannot read {error.filename or source}: {error.strerror or error}") from error
    return _of_series(series, None if columns is None else series.names, str(source))


def _generate(name: str, params: dict[str, Any]) -> np.ndarray:
    generator = GENERATORS[name]
    check_known(
        f"data_params of {name}", params, {*inspect.signature(generator).parameters, "seed"} - {"key"}
    )
    key = jax.random.key(params.pop("seed", 0))
    prices = generator(**{"length": 4096, **params, "key": key})
    return np.asarray(prices[0] if isinstance(prices, tuple) else prices, np.float64)


def _of_series(series: Series, columns: Sequence[str] | None, source: str) -> Market:
    names = [name.casefold() for name in series.names]
    bar = [name for name in BAR if name in names]
    if series.lines is not None and len(series):
        source = f"{source} ({len(series)} rows to line {series.lines[-1]})"
    if columns is None and {"open", "close"} <= set(bar):
        lines = series.select(*bar).values
        opens, closes = (series.select(name).values for name in ("open", "close"))
        return _checked(Market(("price",), series.times, opens, closes, lines, source))
    if columns is None and not bar and (market := _of_assets(series, source)) is not None:
        return market
    if columns is None:
        columns = bar if bar == ["close"] else [name for name in series.names if not is_volume(name)]
        if bar not in ([], ["close"]) or not columns:
            raise ValueError(
                f"{source} has the columns {', '.join(series.names)}: expected Open and Close, Close alone or one for "
                "each asset; or choose columns"
            )
    series = series.select(*columns)
    return _of_array(series.values)._replace(assets=series.names, times=series.times, source=source)


def _of_assets(series: Series, source: str) -> Market | None:
    """The market of columns such as `MSFT Open`; None where they are named otherwise."""
    fields: dict[str, dict[str, str]] = {}
    for name in series.names:
        asset, field = asset_and_field(name)
        fields.setdefault(asset, {})[field.casefold()] = name
    if not all("close" in columns for columns in fields.values()):
        return None
    bar = [field for field in BAR if all(field in columns for columns in fields.values())]
    closes, opens = (
        series.select(*(columns[field] for columns in fields.values())).values
        for field in ("close", "open" if "open" in bar else "close")
    )
    if "open" not in bar:
        return _of_array(closes)._replace(assets=tuple(fields), times=series.times, source=source)
    lines = series.select(*(columns[field] for columns in fields.values() for field in bar)).values
    return _checked(Market(tuple(fields), series.times, opens, closes, lines, source))


def _of_array(prices: np.ndarray) -> Market:
    if prices.ndim == 1:
        prices = prices[:, None]
    if prices.ndim not in (2, 3) or not prices.size or (prices.ndim == 3 and prices.shape[2] != len(BAR)):
        raise ValueError(f"data must be closes [N] or [N, A] or bars [N, A, 4], got shape {prices.shape}")
    assets = tuple(f"asset_{i}" for i in range(prices.shape[1]))
    if prices.ndim == 3:
        lines = prices.reshape(len(prices), -1)
        return _checked(Market(assets, None, prices[..., 0], prices[..., 3], lines))
    opens = np.concatenate([prices[:1], prices[:-1]])
    return _checked(Market(assets, None, opens, prices, prices))


def _checked(market: Market) -> Market:
    wrong = market.lines[~(np.isfinite(market.lines) & (market.lines > 0))]
    if wrong.size:
        raise ValueError(f"prices must be finite and above 0, got {wrong[0]}")
    return market


def _show(data: Data) -> str:
    return repr(data) if isinstance(data, str) else f"a {type(data).__name__}"
