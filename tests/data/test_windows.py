"""Time goes one way: splits, windows and features never see what comes later."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btnn_jax.data import fit_scale, log_returns, split, windows


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 2000),
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    embargo=st.integers(0, 60),
)
def test_parts_follow_each_other_with_the_embargo_between(length, weights, embargo):
    fractions = [weight / sum(weights) for weight in weights]
    usable = length - embargo * (len(weights) - 1)
    if usable * min(fractions) <= 1:  # a part may be rounded away
        return
    parts = split(length, fractions, embargo=embargo)
    assert parts[0].start == 0
    assert parts[-1].stop == length
    for before, after in itertools.pairwise(parts):
        assert after.start - before.stop == embargo
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs((part.stop - part.start) - fraction * usable) <= 1


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((10, (0.5, 0.4)), {}, "add up to 1"),
        ((10, (1.5, -0.5)), {}, "above 0"),
        ((10, ()), {}, "above 0"),
        ((10, (0.5, 0.5)), {"embargo": -1}, "embargo must be at least 0, got -1"),
        ((10, (0.5, 0.5)), {"embargo": 9}, "10 rows are too few"),
    ],
)
def test_splits_that_make_no_sense(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        split(*arguments, **options)


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 40), length=st.integers(1, 40), stride=st.integers(1, 9))
def test_windows_are_slices(rows, length, stride):
    values = np.arange(2 * rows).reshape(rows, 2)
    if rows < length:
        with pytest.raises(ValueError, match=f"{rows} rows are too few for a window of {length}"):
            windows(values, length, stride)
        return
    got = windows(values, length, stride)
    expected = [values[i : i + length] for i in range(0, rows - length + 1, stride)]
    np.testing.assert_array_equal(got, expected)
    assert np.shares_memory(got, values)


def test_windows_need_a_length_and_a_stride():
    with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
        windows(np.ones(3), 0)
    with pytest.raises(ValueError, match="at least 1, got 2 and 0"):
        windows(np.ones(3), 2, 0)


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(1, 39), seed=st.integers(0, 2**32 - 1))
def test_what_comes_later_changes_nothing_before(cut, seed):
    """Prices from row `cut` on are replaced: returns known before it, and the training part's scale, stay."""
    generator = np.random.default_rng(seed)
    prices = np.exp(generator.normal(size=(40, 2)))
    changed = prices.copy()
    changed[cut:] = np.exp(generator.normal(size=(40 - cut, 2)))
    returns, other = log_returns(prices), log_returns(changed)
    np.testing.assert_array_equal(returns[: cut - 1], other[: cut - 1])
    assert (returns[cut - 1] != other[cut - 1]).all()  # the first that knows row `cut`
    if cut > 2:
        train, known = returns[: cut - 1], other[: cut - 1]
        np.testing.assert_array_equal(fit_scale(train).apply(train), fit_scale(known).apply(known))


def test_log_returns_add_up():
    prices = np.exp(np.random.default_rng(0).normal(size=(50, 3)))
    np.testing.assert_allclose(prices[0] * np.exp(log_returns(prices).sum(0)), prices[-1])


def test_returns_of_bars_are_counted_from_the_close_before():
    bars = np.exp(np.random.default_rng(1).normal(size=(9, 4)))
    returns = log_returns(bars, bars[:, 3:])
    np.testing.assert_allclose(bars[:-1, 3:] * np.exp(returns), bars[1:])
    np.testing.assert_allclose(returns[:, 3], log_returns(bars)[:, 3])


def test_scale_of_columns_together_keeps_their_proportions():
    values = np.random.default_rng(0).normal(size=(1000, 3)) * [1.0, 2.0, 3.0]
    scale = fit_scale(values, together=True)
    np.testing.assert_allclose(np.square(scale.apply(values)).mean(), 1, rtol=1e-12)
    centred = values - values.mean(0)
    ratio = scale.apply(values) / centred
    np.testing.assert_allclose(ratio, ratio[0, 0])


def test_scale():
    values = np.random.default_rng(0).normal(3, 2, (20, 5, 2))
    scale = fit_scale(values)
    scaled = scale.apply(values)
    np.testing.assert_allclose(scaled.mean((0, 1)), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std((0, 1)), 1)
    np.testing.assert_allclose(scale.invert(scaled), values)
    np.testing.assert_array_equal(fit_scale(np.full((4, 1), 7.0)).apply(np.full((4, 1), 8.0)), 1.0)


def test_a_constant_has_a_deviation_of_one():
    assert fit_scale(np.full((1000, 2), 0.1)).deviation.tolist() == [1, 1]
    assert fit_scale(np.full((1000, 2), 0.1), together=True).deviation.tolist() == [1, 1]


@pytest.mark.parametrize("together", [False, True])
def test_a_million_rows_of_float32_keep_their_digits(together):
    values = np.tile(np.array([[0.1, 5000.0], [0.3, 5002.0]], np.float32), (2**19, 1))
    scale = fit_scale(values, together=together)
    np.testing.assert_allclose(scale.mean, [0.2, 5001.0], rtol=1e-6)
    right = [np.sqrt((0.1**2 + 1) / 2)] * 2 if together else [0.1, 1.0]
    np.testing.assert_allclose(scale.deviation, right, rtol=1e-5)
    assert scale.apply(values).dtype == np.float32
