"""The picture of prices."""

import numpy as np
import pytest

from btnn_jax.data import Series
from btnn_jax.plots.prices import draw_prices, plot_prices

TIMES = np.datetime64("2024-01-01T00:00:00") + 3600 * np.arange(50)
CLOSES = 100 + np.sin(np.arange(50.0))


def bars(times=TIMES):
    values = np.stack([CLOSES, CLOSES + 1, CLOSES - 1, CLOSES, np.arange(50.0)], axis=1)
    return Series(("Open", "High", "Low", "Close", "Volume"), times, values)


def test_bars_are_drawn_with_their_range_and_volume(tmp_path):
    figure = draw_prices(bars(), title="prices")
    price, volume = figure.axes
    np.testing.assert_array_equal(price.lines[0].get_ydata(), CLOSES)
    assert volume.get_title(loc="left") == "Volume"
    assert [text.get_text() for text in price.get_legend().texts] == ["low to high", "close"]
    path = plot_prices(tmp_path / "prices.png", bars())
    assert path.read_bytes().startswith(b"\x89PNG")


def test_several_assets_are_relative_to_their_first_close():
    names = ("A Close", "B Close", "B Volume")
    series = Series(names, TIMES, np.stack([CLOSES, 5 * CLOSES, np.ones(50)], axis=1))
    (axes,) = draw_prices(series).axes
    assert [line.get_label() for line in axes.lines] == ["A", "B"]
    for line in axes.lines:
        np.testing.assert_allclose(line.get_ydata(), CLOSES / CLOSES[0])


def test_long_gaps_are_shaded():
    times = TIMES.copy()
    times[30:] += np.timedelta64(10, "D")
    axes = draw_prices(bars(times)).axes[0]
    (note,) = axes.texts
    assert note.get_text() == "1 long gap (shaded), up to 1 week 3 days"
    assert not draw_prices(bars()).axes[0].texts


def test_rows_without_times_are_counted():
    (axes,) = draw_prices(Series(("Close",), None, CLOSES[:, None])).axes
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), np.arange(50))
    assert axes.get_xlabel() == "row"


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        draw_prices(bars()[:1])
    with pytest.raises(ValueError, match=r"cannot write .*prices\.png"):
        plot_prices(tmp_path / "nowhere" / "prices.png", bars())
