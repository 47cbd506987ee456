"""Generated series have the moments and the factors that their formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax.data import generators
from btnn_jax.data.generators import (
    ornstein_uhlenbeck,
    random_walk,
    regime_switching,
    sine,
    sine_windows,
    to_bars,
)


def keys():
    return jax.random.split(jax.random.key(0), 2000)


def many(generate):
    return np.asarray(jax.jit(jax.vmap(generate))(keys()), np.float64)


def test_sine_has_its_period_amplitude_and_level():
    prices = np.asarray(sine(10 * 256))
    assert prices.dtype == np.float32
    np.testing.assert_allclose(prices[:256], 1.1 + 1e-3 * np.sin(2 * np.pi * np.arange(256) / 256), rtol=1e-6)
    np.testing.assert_array_equal(prices[:-256], prices[256:])
    np.testing.assert_allclose(sine(8, phase=np.pi / 2, amplitude=0.5, period=8.0)[0], 1.6, rtol=1e-6)


def test_a_long_sine_is_exact():
    tail = np.asarray(sine(1_000_000, period=100.0, amplitude=1.0, level=2.0))[-100:]
    np.testing.assert_allclose(tail, 2 + np.sin(2 * np.pi * np.arange(100) / 100), atol=1e-5)


def test_sine_noise():
    noise = many(lambda key: sine(64, noise=1e-2, key=key)) - np.asarray(sine(64), np.float64)
    np.testing.assert_allclose(noise.std(), 1e-2, rtol=0.02)
    np.testing.assert_allclose(noise.mean(), 0, atol=2e-4)


def test_random_walk_is_a_martingale_with_the_volatility_asked_for():
    walks = many(lambda key: random_walk(key, 101, volatility=0.05, start=5.0))
    assert (walks > 0).all()
    np.testing.assert_array_equal(walks[:, 0], 5)
    np.testing.assert_allclose(walks[:, -1].mean(), 5, rtol=4 * 0.5 / 2000**0.5)
    np.testing.assert_allclose(np.diff(np.log(walks)).std(), 0.05, rtol=0.01)
    drifting = many(lambda key: random_walk(key, 101, volatility=0.02, drift=0.01))
    np.testing.assert_allclose(drifting[:, -1].mean(), np.e, rtol=4 * 0.2 / 2000**0.5)


def test_ornstein_uhlenbeck_is_stationary_and_forgets_by_halves():
    x = np.log(many(lambda key: ornstein_uhlenbeck(key, 61, half_life=20.0, deviation=0.05, level=3.0)) / 3)
    np.testing.assert_allclose(x.std(0), 0.05, rtol=0.1)
    np.testing.assert_allclose(x.mean(0), 0, atol=5 * 0.05 / 2000**0.5)
    for steps, left in [(20, 0.5), (40, 0.25)]:
        np.testing.assert_allclose((x[:, 0] * x[:, steps]).mean() / 0.05**2, left, atol=0.1)


def test_regimes_have_their_own_volatility_and_persist():
    prices, regimes = jax.jit(
        jax.vmap(
            lambda key: regime_switching(
                key, 200, volatilities=(0.01, 0.03, 0.1), drifts=(0.0,) * 3, persistence=0.9
            )
        )
    )(keys())
    regimes, returns = np.asarray(regimes), np.diff(np.log(np.asarray(prices, np.float64)))
    assert regimes.shape == prices.shape
    for regime, volatility in enumerate((0.01, 0.03, 0.1)):
        np.testing.assert_allclose(returns[regimes[:, 1:] == regime].std(), volatility, rtol=0.02)
    np.testing.assert_allclose((regimes[:, 2:] == regimes[:, 1:-1]).mean(), 0.9, atol=0.005)
    np.testing.assert_allclose(np.bincount(regimes.ravel()) / regimes.size, 1 / 3, atol=0.02)


def test_bars_hold_their_path():
    path = random_walk(jax.random.key(1), 1 + 20 * 7)
    bars = np.asarray(to_bars(path, 7))
    path = np.asarray(path)
    assert bars.shape == (20, 4)
    for i, (first, high, low, close) in enumerate(bars):
        within = path[7 * i : 7 * i + 8]
        assert (first, high, low, close) == (within[0], within.max(), within.min(), within[-1])
    with pytest.raises(ValueError, match=r"\[1 \+ bars \* 7\]"):
        to_bars(jnp.ones(140), 7)
    with pytest.raises(ValueError, match=r"\[1 \+ bars \* 7\]"):
        to_bars(jnp.ones(1), 7)


def test_sine_windows_are_what_their_factors_say():
    windows, factors = sine_windows(jax.random.key(2), 500, 32)
    assert windows.shape == (500, 32, 1, 1)
    assert factors.shape == (500, len(generators.FACTORS))
    phase, period, level = np.asarray(factors, np.float64).T[..., None]
    expected = level + np.sin(2 * np.pi * np.arange(32)[None] / period + phase)
    np.testing.assert_allclose(windows[:, :, 0, 0], expected, atol=1e-5)
    for values, (low, high) in zip(factors.T, [(0, np.pi), (16, 32), (-1, 1)], strict=True):
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
    correlations = np.corrcoef(np.asarray(factors).T)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(correlations, 0, atol=0.15)
    noisy, same = sine_windows(jax.random.key(2), 500, 32, noise=0.1)
    np.testing.assert_array_equal(same, factors)
    np.testing.assert_allclose((noisy - windows).std(), 0.1, rtol=0.05)


@pytest.mark.parametrize(
    "generate",
    [
        lambda key: random_walk(key, 9),
        lambda key: ornstein_uhlenbeck(key, 9),
        lambda key: regime_switching(key, 9)[0],
        lambda key: sine(9, noise=0.01, key=key),
        lambda key: sine_windows(key, 3, 9)[0],
    ],
)
def test_one_key_one_series(generate):
    first, again, other = (np.asarray(generate(jax.random.key(seed))) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.8
    assert first.dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: sine(9, noise=0.1), "noise needs a key"),
        (lambda key: sine(9, period=0.0), "period > 0"),
        (lambda key: sine(9, amplitude=2.0), "level above the amplitude"),
        (lambda key: random_walk(key, 9, start=0.0), "start must be above 0, got 0.0"),
        (lambda key: ornstein_uhlenbeck(key, 9, half_life=0.0), "half_life must be above 0"),
        (lambda key: regime_switching(key, 9, drifts=(0.0,)), "1 drifts, 2 volatilities"),
        (lambda key: regime_switching(key, 9, persistence=1.5), "persistence=1.5"),
        (lambda key: sine_windows(key, 3, 9, periods=(0.0, 1.0)), "periods must be above 0"),
    ],
)
def test_what_makes_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))
