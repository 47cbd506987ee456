"""Features: equal to the plain definition, blind to what comes later, and at ease with prices that stand still."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btnn_jax.data import features, momentum, moving_average, volatility, z_score

FUNCTIONS = {
    "momentum": momentum,
    "moving_average": moving_average,
    "z_score": z_score,
    "volatility": volatility,
}


def walk(length=400, columns=2, seed=0):
    steps = 1e-3 * np.random.default_rng(seed).standard_normal((length, columns))
    return 1.1 * np.exp(np.cumsum(steps, axis=0))


def slowly(function, prices, t, period):
    """What a feature of row `t` is, of one column, written down as its definition says."""
    logs = np.log(prices[: t + 1])
    window = logs[-period:]
    returns = np.concatenate([[0.0], np.diff(logs)])[-period:]
    return {
        "momentum": logs[-1] - logs[max(t - period, 0)],
        "moving_average": np.mean(np.exp(window)),
        "z_score": (window[-1] - window.mean()) / window.std() if t else 0.0,
        "volatility": np.sqrt(np.mean(returns**2)),
    }[function]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("period", [2, 7, 100])
def test_definitions(name, period):
    prices = walk()
    ours = FUNCTIONS[name](prices, period)
    assert ours.shape == prices.shape
    for t in (0, 1, 5, 6, 7, 99, 100, 399):
        right = [slowly(name, column, t, period) for column in prices.T]
        np.testing.assert_allclose(ours[t], right, rtol=1e-7, atol=1e-10)


def test_the_table_is_column_by_column_and_without_units():
    prices = walk(columns=3)
    table = features(prices, (1, 4, 16))
    assert table.shape == (400, 3 * 5)
    assert table.dtype == np.float32
    for i, column in enumerate(prices.T):
        mine = column[:, None]
        noise = volatility(mine, 16)
        right = [momentum(mine, n)[1:] / noise[1:] / np.sqrt(n) for n in (1, 4, 16)]
        right += [z_score(mine, n)[1:] for n in (4, 16)]
        np.testing.assert_allclose(
            table[1:, 5 * i : 5 * i + 5], np.concatenate(right, axis=1), rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(features(100 * prices, (1, 4, 16)), table, rtol=1e-4, atol=1e-5)
    assert 0.3 < table[50:].std() < 3


@settings(max_examples=50, deadline=None)
@given(row=st.integers(1, 99), factor=st.floats(0.5, 2.0), seed=st.integers(0, 9))
def test_what_comes_later_changes_nothing_before(row, factor, seed):
    prices = walk(100, 1, seed)
    later = prices.copy()
    later[row:] *= factor
    np.testing.assert_array_equal(features(prices)[:row], features(later)[:row])
    for function in FUNCTIONS.values():
        np.testing.assert_array_equal(function(prices, 8)[:row], function(later, 8)[:row])


def test_a_price_that_stands_has_no_features():
    prices = np.concatenate([walk(200, 1), np.full((200, 1), 1.2345)])
    np.testing.assert_array_equal(features(np.full((50, 1), 7.7)), 0)
    np.testing.assert_array_equal(moving_average(np.full((50, 1), 7.7), 7), 7.7)
    np.testing.assert_allclose(features(prices, (1, 4, 16))[220:], 0, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: features(walk(), ()), r"at least 1 row, got \(\)"),
        (lambda: features(walk(), (4, 0)), r"at least 1 row, got \(4, 0\)"),
        (lambda: volatility(walk(), 0), "at least 1 row, got 0"),
        (lambda: z_score(walk(), 1), "at least 2 rows, got 1"),
        (lambda: momentum(np.ones(3), 1), r"\[T, columns\] with T >= 1, got shape \(3,\)"),
        (lambda: features(np.zeros((3, 1))), "above 0, got 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_jump_long_ago_costs_no_digits():
    prices = np.where(np.arange(3_000_000) % 2, 150.01, 150.0)[:, None]
    prices[0] = 1.0
    np.testing.assert_allclose(np.abs(z_score(prices, 4)[-1000:]), 1.0, rtol=1e-6)


def test_what_an_agent_sees_of_a_long_rise_stays_within_its_bound():
    steps = np.random.default_rng(0).normal(0, 1e-3, 300_000)
    prices = 5 * np.exp(np.cumsum(steps) - np.sum(steps) * np.linspace(0, 1, 300_000))
    prices = (prices * np.exp(np.log(60_000 / 5) * np.linspace(0, 1, 300_000)))[:, None]
    for period in (4, 16, 64):
        assert np.abs(z_score(prices, period)).max() <= np.sqrt(period - 1) * (1 + 1e-9)


def test_each_window_is_computed_by_itself():
    prices = np.exp(np.random.default_rng(1).normal(0, 0.1, (200, 2)))
    logs = np.log(prices)
    for t in (0, 1, 5, 63, 150):
        window = logs[max(0, t - 15) : t + 1]
        right = (window[-1] - window.mean(0)) / np.where(window.std(0) > 0, window.std(0), 1)
        np.testing.assert_allclose(z_score(prices, 16)[t], right, atol=1e-12)
        np.testing.assert_allclose(
            moving_average(prices, 16)[t], prices[max(0, t - 15) : t + 1].mean(0), rtol=1e-12
        )
