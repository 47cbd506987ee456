"""Each number against plain pandas, by hand, and by what must not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btnn_jax.envs.trading import performance
from btnn_jax.envs.trading.performance import bootstrap_interval, summary

YEAR = 252
T = 40
of_account = jax.jit(functools.partial(summary, periods_per_year=YEAR))


def draw(seed, lead=()):
    """An account `(equity, position, traded)`, each `[*lead, T]`, that opens, flips and closes trades."""
    random = np.random.default_rng(seed)
    equity = 100 * np.cumprod(1 + random.normal(0.001, 0.02, (*lead, T)), axis=-1)
    position = np.repeat(random.integers(-1, 2, (*lead, T // 2)), 2, axis=-1)
    traded = random.exponential(size=equity.shape)
    return tuple(x.astype(np.float32) for x in (equity, position, traded))


def reference(equity, position, traded):
    """The same numbers in float64, in loops where that is plainer."""
    equity, position = pd.Series(equity, dtype=float), pd.Series(position, dtype=float)
    returns = equity.pct_change().dropna()
    before = position.shift(fill_value=0)
    side, side_before = np.sign(position), np.sign(before)
    opens = [t for t in range(len(side)) if side[t] != 0 and side[t] != side_before[t]]
    marks = [equity[max(t - 1, 0)] for t in opens]
    ends = marks[1:] + ([equity.iloc[-1]] if opens and side.iloc[-1] == 0 else [])
    profits = [end - start for start, end in zip(marks, ends, strict=False)]
    return {
        "total_return": equity.iloc[-1] / equity[0] - 1,
        "sharpe_ratio": returns.mean() / returns.std() * np.sqrt(YEAR),
        "sortino_ratio": returns.mean() / np.sqrt((returns.clip(upper=0) ** 2).mean()) * np.sqrt(YEAR),
        "max_drawdown": (1 - equity / equity.cummax()).max(),
        "turnover": np.mean(traded, dtype=float),
        "exposure": position.abs().mean(),
        "num_trades": len(opens),
        "hit_rate": np.mean(np.array(profits) > 0) if profits else 0.0,
    }


def assert_same(one, other, rtol=1e-4, atol=1e-5):
    for name, a, b in zip(one._fields, one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


def test_agrees_with_pandas():
    account = draw(0, (30,))
    result = of_account(*account)
    for row in range(30):
        for name, expected in reference(*(x[row] for x in account)).items():
            actual = getattr(result, name)[row]
            np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=1e-5, err_msg=f"{name} of {row}")
    assert {x.dtype for x in result} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_an_account_by_hand():
    #                 flat   long    long   flip    short  flat   flat   long
    position = jnp.array([0.0, 1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 0.5])
    equity = jnp.array([100.0, 110.0, 105.0, 104.0, 106.0, 104.5, 104.5, 120.0])
    traded = jnp.array([0.0, 1.0, 0.0, 2.0, 0.0, 1.0, 0.0, 0.5])
    result = of_account(equity, position, traded)
    # Long from 100 to 105; short from 105 to 104.5, half a point of it for closing; the last one is still open.
    assert (result.num_trades, result.hit_rate) == (3, 0.5)
    np.testing.assert_allclose(result.total_return, 0.2, rtol=1e-6)
    np.testing.assert_allclose(result.max_drawdown, 6 / 110, rtol=1e-6)
    np.testing.assert_allclose(result.turnover, (1 + 2 + 1 + 0.5) / 8)
    np.testing.assert_allclose(result.exposure, 4.5 / 8)


def test_the_costs_of_closing_are_the_trades_own():
    """Up by one, then down by two in the step that goes flat."""
    position, equity = jnp.array([0, 1, 0, 0]), jnp.array([100.0, 101.0, 99.0, 99.0])
    assert performance.hit_rate(equity, position) == 0
    assert performance.hit_rate(equity.at[2:].set(100.5), position) == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3))
def test_the_size_of_the_account_changes_nothing(seed, scale):
    equity, *rest = draw(seed)
    assert_same(of_account(equity * np.float32(scale), *rest), of_account(equity, *rest), 2e-3, 1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_the_sides_mirror(seed):
    equity, position, traded = draw(seed)
    assert_same(of_account(equity, -position, traded), of_account(equity, position, traded), 0, 0)


@pytest.mark.parametrize("end", [1, 2, 25])
def test_what_comes_after_the_end_is_not_seen(end):
    account = draw(end, (9,))
    where = np.broadcast_to(np.arange(T) < end, (9, T))
    masked = of_account(*(np.where(where, x, np.nan) for x in account), where=jnp.asarray(where))
    assert_same(masked, of_account(*(x[:, :end] for x in account)))


def test_a_row_left_out_is_one_in_which_nothing_happens():
    account = jnp.array([[jnp.nan, 100, 7, 110, 99], [jnp.nan, 1, -1, 1, 0], [jnp.nan, 1, 2, 0, 1]])
    where = jnp.array([False, True, False, True, True])
    assert_same(of_account(*account, where=where), of_account(*account[:, where]))


def test_a_row_left_out_has_no_drawdown():
    lost = performance.drawdown(jnp.array([4.0, 3.0, 3.0]), where=jnp.array([True, True, False]))
    np.testing.assert_array_equal(lost, [0, 0.25, 0])


def test_a_trade_that_earns_nothing_is_not_won():
    assert performance.hit_rate(jnp.full(4, 100.0), jnp.array([0, 1, 1, 0])) == 0


def test_leading_axes_are_each_on_their_own():
    account = draw(1, (2, 3))
    whole = of_account(*account)
    assert {x.shape for x in whole} == {(2, 3)}
    assert_same(jax.tree.map(lambda x: x[1, 2], whole), of_account(*(x[1, 2] for x in account)))


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("equity", [1.0, 0.0])
def test_nothing_happens_and_nothing_is_not_a_number(length, equity):
    still, flat = jnp.full(length, equity), jnp.zeros(length)
    assert [float(x) for x in of_account(still, flat, flat)] == [0.0] * 8
    never = of_account(*[still * jnp.nan] * 3, where=jnp.zeros(length, bool))
    assert [float(x) for x in never] == [0.0] * 8


def test_a_steady_gain_has_no_risk_to_divide_by():
    equity = jnp.asarray(1e5 * 1.0000001 ** np.arange(T), jnp.float32)
    assert performance.sharpe_ratio(equity, YEAR) == 0
    assert performance.sortino_ratio(equity, YEAR) == 0
    assert performance.sortino_ratio(jnp.array([1.0, 1.1, 1.05]), YEAR) > 0


def test_ruin_ends_the_account():
    equity = jnp.array([1.0, 2.0, 0.0, 0.0, 5.0])
    returns = np.array([1.0, -1.0, 0.0, 0.0])
    np.testing.assert_allclose(performance.drawdown(equity[:4]), [0, 0, 1, 1])
    np.testing.assert_allclose(
        performance.sharpe_ratio(equity, 1), returns.mean() / returns.std(ddof=1), atol=1e-7
    )


def test_years_scale_with_the_root_of_time():
    equity, *_ = draw(3)
    for ratio in (performance.sharpe_ratio, performance.sortino_ratio):
        np.testing.assert_allclose(ratio(equity, 400), 20 * ratio(equity, jnp.float32(1)), rtol=1e-5)


def test_the_interval_is_that_of_the_normal_distribution_for_many_values():
    values = 3 + 2 * jax.random.normal(jax.random.key(0), (400, 2))
    result = jax.jit(bootstrap_interval)(jax.random.key(1), values)
    np.testing.assert_allclose(result.estimate, values.mean(0), rtol=1e-6)
    error = 1.96 * np.std(values, axis=0, ddof=1) / 20
    np.testing.assert_allclose(result.high - result.estimate, error, rtol=0.06)
    np.testing.assert_allclose(result.estimate - result.low, error, rtol=0.06)


def test_the_interval_moves_with_the_values_and_widens_with_the_level():
    values = jax.random.normal(jax.random.key(0), (7,))

    @functools.partial(jax.jit, static_argnames="level")
    def interval(values, level=0.95):
        return bootstrap_interval(jax.random.key(1), values, jnp.median, level=level, resamples=200)

    here, there = interval(values), interval(2 * values + 5)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(2 * a + 5, b, rtol=1e-5)
    wide = interval(values, level=0.99)
    assert wide.low < here.low < here.estimate < here.high < wide.high
    assert interval(values[:1]) == (values[0], values[0], values[0])


def test_clear_errors():
    with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(4,\)"):
        performance.hit_rate(jnp.ones(3), jnp.ones(4))
    with pytest.raises(ValueError, match=r"expected where bool \(3,\), got float32 \(3,\)"):
        performance.exposure(jnp.ones(3), where=jnp.ones(3))
    with pytest.raises(ValueError, match=r"T >= 1\], got \(2, 0\)"):
        performance.total_return(jnp.ones((2, 0)))
    with pytest.raises(ValueError, match=r"n >= 1, ...\], got \(0, 2\)"):
        bootstrap_interval(jax.random.key(0), jnp.ones((0, 2)))
    with pytest.raises(ValueError, match=r"level .* got 95"):
        bootstrap_interval(jax.random.key(0), jnp.ones(3), level=95)
    with pytest.raises(ValueError, match=r"resamples .* got 0"):
        bootstrap_interval(jax.random.key(0), jnp.ones(3), resamples=0)
