"""Builds trading environments from what a person writes."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from btnn_jax._errors import check_known, short_repr
from btnn_jax.data.features import PERIODS, features
from btnn_jax.data.windows import split
from btnn_jax.envs.trading.account import BrokerRules
from btnn_jax.envs.trading.environment import TradingEnvironment
from btnn_jax.envs.trading.market import Data, Market, load_market

__all__ = ["PARTS", "REWARDS", "SAMPLINGS", "make_held_out", "make_trading"]

PARTS = ("train", "validation", "test")
SAMPLINGS = ("random", "sequential", "sliding")
REWARDS = ("log", "shaped")

_OPTIONAL = ("episode_length", "embargo", "unit_size", "profit_target")  # which may be None
_LARGEST = float(np.finfo(np.float32).max)


def make_trading(
    data: Data = "sine",
    *,
    data_params: Mapping[str, Any] | None = None,
    columns: str | Sequence[str] | None = None,
    part: str = "all",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    embargo: int | None = None,
    signal: str | np.ndarray = "features",
    periods: Sequence[int] = PERIODS,
    window: int = 32,
    episode_length: int | None = 256,
    sampling: str = "random",
    stride: int = 1,
    frame_skip: int = 1,
    weights: Sequence[float] | None = None,
    max_units: int = 1,
    unit_size: float | None = None,
    fraction: float = 1.0,
    leverage: float = 1.0,
    commission: float = 1e-4,
    spread: float = 0.0,
    slippage: float = 0.0,
    initial_cash: float = 10_000.0,
    drawdown: float = 0.1,
    profit_target: float | None = None,
    reward: str = "log",
    reward_scale: float = 1.0,
    discount: float = 0.99,
) -> TradingEnvironment:
    """Builds an environment that trades.

    Actions are hold, buy, sell and close (0 to 3), a dict of them by name for several assets: a buy adds one unit to
    the position, a sell takes one away, so that from long to short it takes two sells. With `weights`, an action is an
    index into them, and the position is sized anew at every step to that part of the equity.

    A unit is worth `fraction` of the equity at the fill that opens a position, so that the same settings suit prices of
    any height and rewards do not depend on the money. It stays the same amount of the asset until the position is
    closed, so that a close leaves nothing over. `unit_size` fixes the amount instead.

    Args:
        data: `"sine"`, `"random_walk"`, `"ornstein_uhlenbeck"` or `"regime_switching"` (of closes, a bar opens where
            the one before closed); a name of `btnn_jax.data.PACKAGED_SERIES`; a file or a data frame of pandas or
            polars that `btnn_jax.data.load_prices` reads, or several, one for each asset; a `Series`; or an array of
            closes `[N]` or `[N, A]` or of bars `[N, A, 4]`.
        data_params: parameters of a generator, such as `{"period": 64, "length": 4096, "seed": 0}`, or options of
            `btnn_jax.data.load_prices`, such as `{"day_first": True}`.
        columns: columns of a file or a series, each the closes of an asset, also as `"AAPL,MSFT"`; None for the bars of
            one asset where there are Open and Close, for Close where it is alone, or else for all but volumes.
        part: `"train"`, `"validation"` or `"test"`, which follow each other in time, or `"all"`. Windows of one part
            share no bar with those of another.
        fractions: shares of the time of the three parts.
        embargo: bars left out between two parts; None for as many as a feature looks back.
        signal: `"features"` of the closes (`btnn_jax.data.features`), the raw `"prices"`, or an array `[N, C]` whose
            row `t` is known when bar `t` has closed.
        periods: bars that the features look back.
        window: bars of the external stream.
        episode_length: bars of an episode; None for all of the part, which is then one.
        sampling: where episodes begin: `"random"`, anywhere; `"sequential"`, where the last one was to end; or
            `"sliding"`, `stride` bars after the last one; the latter two from a drawn start and round the part.
        stride: bars between the starts of sliding episodes.
        frame_skip: bars of a step: its orders are filled at the first, its reward is that of all of them.
        weights: target weights, 0 among them, such as `(-1, -0.5, 0, 0.5, 1)`; None for orders.
        max_units: the most units of one asset, long or short; orders beyond it are refused.
        unit_size: amount of the asset in one unit; None for `fraction`.
        fraction: share of the equity that one unit (or a weight of 1) is worth, divided by the number of assets.
        leverage: how many times the equity all positions together may be worth when an order is filled; one that
            needs more is refused as a whole. Where `leverage` is no more than `fraction`, an agent that is long is
            shut out of the last asset once the others have risen: more leverage gives it headroom.
        commission: fraction of the value traded, paid when a position is opened and when it is closed.
        spread: between bid and ask, as a fraction of the price; a trade pays half of it.
        slippage: largest, as a fraction of the price; each trade draws its own, uniform from 0.
        initial_cash: the initial equity.
        drawdown: fraction of the highest equity whose loss ends an episode; 1 for when all is lost.
        profit_target: profit that ends an episode, as a fraction of the initial equity; None for none.
        reward: `"log"`, the change of log equity (down to a millionth of it): their sum is the log of what the
            equity has grown by; or `"shaped"` as BTGym's: realised profit, costs taken off, with the unrealised one as
            the potential (Ng, Harada & Russell 1999), `realised + discount * unrealised' - unrealised`, as a fraction
            of the initial equity. Where an episode terminates, what is open counts as realised.
        reward_scale: a factor.
        discount: discount of the shaped reward's potential; use the agent's own.

    Raises:
        ValueError: a value makes no sense, the file cannot be read, or there are too few bars; the message is one line.
        ModuleNotFoundError: the package is missing that carries the series.

    >>> env = make_trading("sine", data_params={"period": 64}, window=16)
    >>> env.action_depths, env.observation["external"].shape, env.observation["internal"].shape
    (4, (16, 7), (5,))
    """
    for name, value, known in (
        ("part", part, ("all", *PARTS)),
        ("sampling", sampling, SAMPLINGS),
        ("reward", reward, REWARDS),
    ):
        check_known(name, [value], known)
    _check_whole(1, window=window, episode_length=episode_length, stride=stride)
    _check_whole(1, frame_skip=frame_skip, max_units=max_units)
    _check_whole(0, embargo=embargo)
    for period in periods:
        _check_whole(1, periods=period)
    _check_least(0, commission=commission, spread=spread, slippage=slippage, discount=discount)
    _check_above(0, initial_cash=initial_cash, leverage=leverage, fraction=fraction, unit_size=unit_size)
    _check_above(0, profit_target=profit_target, drawdown=drawdown, reward_scale=reward_scale)
    if max(drawdown, discount) > 1:
        raise ValueError(f"drawdown and discount must be at most 1, got {drawdown} and {discount}")
    if spread / 2 + slippage >= 1:
        raise ValueError(f"half the spread and slippage must stay below 1, got {spread / 2 + slippage}")
    if weights is not None:
        _check_weights(weights, unit_size, max_units)
    most = fraction * max_units * max(map(abs, weights or (1.0,)))
    if unit_size is None and most > leverage * (1 + 1e-6):
        raise ValueError(
            f"positions of {most:g} times the equity need a leverage of as much, got {leverage:g}: orders would be "
            "refused"
        )
    market = load_market(data, data_params or {}, columns)
    table = _signal(market, signal, periods)
    if embargo is None:
        embargo = max(periods) if isinstance(signal, str) and signal == "features" else 0
    rows = slice(0, len(market.close))
    if part != "all":
        if len(fractions) != len(PARTS):
            raise ValueError(f"fractions are of {', '.join(PARTS)}, got {tuple(fractions)}")
        try:
            rows = split(len(market.close), fractions, embargo=embargo)[PARTS.index(part)]
        except ValueError as error:
            raise ValueError(f"{market.source}: {error}") from None
    bars = rows.stop - rows.start
    length = bars - window if episode_length is None else episode_length
    if length < 1 or bars < window + length:
        raise ValueError(
            f"{market.source}: {bars} bars ({part}) are too few for a window of {window} and an episode of "
            f"{max(length, 1)}: at least {window + max(length, 1)} are needed"
        )
    first = rows.start + window - 1
    return TradingEnvironment(
        assets=market.assets,
        times=market.times,
        close=jnp.asarray(market.close, jnp.float32),
        bars=_bars(market, frame_skip),
        signal=jnp.asarray(table, jnp.float32),
        # As floats: JAX takes a Python int for one of 32 bits, which a fortune does not fit.
        rules=BrokerRules(
            float(commission),
            float(spread),
            float(slippage),
            float(leverage),
            None if unit_size is None else float(unit_size),
            float(fraction),
            weights is not None,
        ),
        weights=None if weights is None else tuple(map(float, weights)),
        max_units=max_units,
        initial_cash=float(initial_cash),
        window=window,
        length=length,
        starts=(first, rows.stop - 1 - length),
        stride={"random": 1, "sequential": length, "sliding": stride}[sampling],
        random=sampling == "random",
        frame_skip=frame_skip,
        drawdown=float(drawdown),
        profit_target=math.inf if profit_target is None else float(profit_target),
        profit_unit=float(drawdown),
        time_unit=length,
        reward=reward,
        reward_scale=float(reward_scale),
        discount=float(discount),
    )


def make_held_out(learned: Mapping[str, Any], part: str = "test") -> TradingEnvironment:
    """The environment that an agent is judged in: one episode over all of a part of the time, which nothing ends.

    Args:
        learned: the arguments of `make_trading` that the agent has learned with; it sees profits and times in the units
            of then.
        part: as of `make_trading`.

    Raises:
        ValueError: as `make_trading`.
    """
    before = make_trading(**learned)
    whole = make_trading(**{**learned, "part": part, "episode_length": None, "sampling": "sequential"})
    return dataclasses.replace(
        whole,
        drawdown=1.0,
        profit_target=math.inf,
        profit_unit=before.profit_unit,
        time_unit=before.time_unit,
    )


def _bars(market: Market, frame_skip: int) -> Array:
    """Opens and the distances between prices, taken in float64 so that they keep the digits float32 has for them."""
    before = np.concatenate([market.open[:1], market.close[:-1]])
    bars = np.stack([market.open, market.open - before, market.close - market.open])
    # A step that an episode's end cuts short reads past it.
    return jnp.asarray(np.pad(bars, ((0, 0), (0, frame_skip - 1), (0, 0)), mode="edge"), jnp.float32)


def _signal(market: Market, signal: str | np.ndarray, periods: Sequence[int]) -> np.ndarray:
    if isinstance(signal, str):
        check_known("signal", [signal], ("features", "prices"))
        return features(market.close, periods) if signal == "features" else market.lines
    table = np.asarray(signal)
    if table.ndim != 2 or len(table) != len(market.close) or not np.all(np.isfinite(table)):
        raise ValueError(
            f"signal must be [{len(market.close)}, C] of finite numbers, a row for each bar, got shape {table.shape}"
        )
    return table


def _check_weights(weights: Sequence[float], unit_size: float | None, max_units: int) -> None:
    if 0 not in weights or len(set(weights)) < 2 or not all(map(math.isfinite, weights)):
        raise ValueError(f"weights must be numbers, 0 and others, got {tuple(weights)}")
    if unit_size is not None or max_units != 1:
        raise ValueError(
            f"weights are parts of the equity: leave unit_size ({unit_size}) and max_units ({max_units}) out"
        )


def _check_whole(least: int, **arguments: Any) -> None:
    for name, value in arguments.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not (_is_left_out(name, value) or (whole and value >= least)):
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if value is not None and value >= 2**31:
            raise ValueError(f"{name} must be below {2**31}, got {value:.3g}")


def _check_least(least: float, **arguments: Any) -> None:
    for name, value in arguments.items():
        if not (_is_left_out(name, value) or (_is_number(value) and least <= value < math.inf)):
            raise ValueError(f"{name} must be at least {least}, got {value!r}")
    _check_size(**arguments)


def _check_above(least: float, **arguments: Any) -> None:
    for name, value in arguments.items():
        if not (_is_left_out(name, value) or (_is_number(value) and least < value < math.inf)):
            raise ValueError(f"{name} must be above {least}, got {value!r}")
    _check_size(**arguments)


def _check_size(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None and value > _LARGEST:
            raise ValueError(f"{name} must be below {_LARGEST:.2g}, got {short_repr(value, 20)}")


def _is_left_out(name: str, value: Any) -> bool:
    return value is None and name in _OPTIONAL


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
