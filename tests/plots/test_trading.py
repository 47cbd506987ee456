"""The picture shows what was traded."""

import matplotlib.colors
import matplotlib.dates
import matplotlib.pyplot
import numpy as np
import pytest

from btnn_jax.envs import make
from btnn_jax.envs.trading.performance import Performance
from btnn_jax.plots import trading as trading_plots
from btnn_jax.plots.trading import AGENT, LONG, SHORT, draw_trades, plot_backtest, plot_trades
from btnn_jax.runs import backtests
from btnn_jax.runs.folder import RunError
from btnn_jax.training.backtest import Account

PRICE = np.array([100.0, 101.0, 103.0, 102.0, 104.0, 105.0, 103.0])
POSITION = np.array(
    [0.0, 0.5, 1.0, -1.0, 0.0, 0.0, 1.0]
)  # buys at row 0, turns at row 2, is out at row 3, buys at 5
EQUITY = np.array([50.0, 51.0, 52.0, 49.0, 49.0, 49.0, 60.0])
DAYS = np.datetime64("2024-02-27") + np.arange(7)
BASELINES = {"buy and hold": 2 * PRICE, "random": EQUITY[::-1], "flat": np.full(7, 5.0)}


def draw(**changed):
    given = {
        "time": np.arange(7),
        "price": PRICE,
        "position": POSITION,
        "equity": EQUITY,
        "baselines": BASELINES,
    }
    return draw_trades(**{**given, **changed})


def by_label(artists):
    return {artist.get_label(): artist for artist in artists}


def test_positions_are_shaded_from_the_row_before_and_marked_there():
    axes = draw().axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.stack([np.arange(7), PRICE], axis=1))
    drawn = by_label(axes.collections)

    def shaded(name):
        return [tuple(path.get_extents().intervalx) for path in drawn[name].get_paths()]

    assert shaded("long") == [(0, 2), (5, 6)]
    assert shaded("format_count") == [(2, 3)]
    marked = {name: drawn[name].get_offsets().tolist() for name in ("buys", "sells short", "goes flat")}
    assert marked == {"buys": [[0, 100], [5, 105]], "sells short": [[2, 103]], "goes flat": [[3, 102]]}
    for name, colour in (("long", LONG), ("buys", LONG), ("format_count", SHORT), ("sells short", SHORT)):
        assert matplotlib.colors.same_color(drawn[name].get_facecolor()[0][:3], colour)


def test_every_curve_is_its_gain_in_percent():
    axes = draw().axes[1]
    lines = by_label(axes.lines)
    expected = {
        "agent: +20.0 %": EQUITY / 50,
        "buy and hold: +3.0 %": PRICE / 100,
        "random: \N{MINUS SIGN}16.7 %": EQUITY[::-1] / 60,
        "flat": np.ones(7),
    }
    assert list(lines) == list(expected)
    for name, growth in expected.items():
        np.testing.assert_allclose(lines[name].get_ydata(), 100 * (growth - 1), atol=1e-9)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(expected)
    colours = [line.get_color() for line in axes.lines]
    assert colours[0] == AGENT
    assert len(set(colours)) == 4
    assert not set(colours[1:]) & {LONG, SHORT}


def test_the_drawdown_is_the_agents():
    axes = draw().axes[2]
    loss = -100 * (1 - 49 / 52)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0, 0, 0, loss, loss, loss, 0], rtol=1e-6)
    assert axes.get_title(loc="left") == "Drawdown (agent), at most 5.8 %"


def test_the_agent_has_one_name_everywhere():
    _, gains, drawdown = draw(name="sampled").axes
    assert gains.lines[0].get_label() == "sampled: +20.0 %"
    assert drawdown.get_title(loc="left") == "Drawdown (sampled), at most 5.8 %"


def test_time_is_one_axis_with_dates_that_can_be_read():
    figure = draw(time=DAYS)
    figure.canvas.draw()
    assert {axes.get_xlim() for axes in figure.axes} == {figure.axes[0].get_xlim()}
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), matplotlib.dates.date2num(DAYS))
    labels = [label.get_text() for label in figure.axes[2].get_xticklabels()]
    assert {"28 Feb", "Mar", "02 Mar"} <= set(labels)
    numbers = draw()
    assert numbers.axes[2].get_xlabel() == "step"


def test_nothing_hides_anything():
    figure = draw(time=DAYS)
    figure.canvas.draw()
    for axes in figure.axes[:2]:
        legend, plot = axes.get_legend().get_window_extent(), axes.get_window_extent()
        title = next(
            text for text in axes.get_children() if getattr(text, "get_text", str)() == axes.get_title("left")
        )
        assert legend.y0 > plot.y1 - 4  # of its padding
        assert title.get_window_extent().x1 < legend.x0 < legend.x1 < figure.bbox.x1
        assert legend.y1 < figure.bbox.y1


def test_of_many_trades_only_the_shading_is_left():
    rows = np.arange(400)
    figure = draw_trades(rows, 100.0 + rows, rows % 2, 10.0 + rows, {})
    names = list(by_label(figure.axes[0].collections))
    assert names == ["long", "format_count"]


def test_an_agent_that_never_trades_can_be_drawn():
    figure = draw(position=np.zeros(7), equity=np.full(7, 9.0), baselines={})
    assert figure.axes[2].get_title(loc="left").endswith("at most 0.0 %")
    figure.canvas.draw()


def test_writes_a_picture_and_leaves_pyplot_alone(tmp_path):
    path = plot_trades(
        tmp_path / "trades.png", time=DAYS, price=PRICE, position=POSITION, equity=EQUITY, title="Seven days"
    )
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert matplotlib.pyplot.imread(path).shape == (1350, 1950, 4)
    assert 20_000 < len(content) < 1_000_000
    assert matplotlib.pyplot.get_fignums() == []


def test_of_a_run_the_sampled_account_in_the_middle_is_drawn(tmp_path, monkeypatch):
    env = make("trading", data=np.stack([PRICE, 2 * PRICE], axis=1), window=1, episode_length=6, periods=(1,))

    def account(*ends):
        """Accounts that end at `ends`, and hold what says so in the second asset."""
        rows = np.ones((len(ends), 7), np.float32)
        equity = rows * np.linspace(50, ends, 7, dtype=np.float32).T
        weight = np.stack([0 * rows, equity / 100], axis=-1)
        return Account(np.arange(7) * np.ones_like(rows, int), equity, weight, rows, weight, rows > 0)

    accounts = {"greedy": account(10, 20, 30), "sampled": account(80, 60, 70), "random": account(45)}
    # The middle one in the mean of all draws, which need not be that of the accounts.
    returns = np.array([[0.1, 0.2], [0.3, 0.9], [0.4, 0.5]])
    made = backtests.Backtest(
        env, "two", "test", (3, 4, 5), {**accounts, "buy and hold": account(55), "flat": account(50)},
        {"sampled": Performance(*[returns] * 8)},
    )  # fmt: skip
    monkeypatch.setattr(backtests, "backtest_run", lambda folder, part: [made])
    drawn = {}
    monkeypatch.setattr(trading_plots, "plot_trades", lambda path, **given: drawn.update(given, path=path))
    plot_backtest(tmp_path)
    assert drawn["path"] == tmp_path / "trades.png"
    assert drawn["name"] == "sampled, one draw"
    title = "two, the mean of 2 assets: test part, seed 5, the middle of 32 draws of its actions"
    assert drawn["title"] == title
    np.testing.assert_array_equal(drawn["equity"], accounts["sampled"].equity[2])
    np.testing.assert_allclose(drawn["position"], drawn["equity"] / 100)
    np.testing.assert_allclose(drawn["price"], PRICE / 100, rtol=1e-6)
    ends = {name: curve[-1] for name, curve in drawn["baselines"].items()}
    assert ends == {"greedy": 30, "buy and hold": 55, "flat": 50, "random, one draw": 45}


@pytest.mark.parametrize(
    ("changed", "shapes"),
    [
        ({"price": PRICE[1:]}, r"'price': \(6,\)"),
        ({"position": POSITION[:, None]}, r"'position': \(7, 1\)"),
        ({"baselines": {"random": EQUITY[:3]}}, r"'random': \(3,\)"),
    ],
)
def test_shapes_must_be_one(changed, shapes):
    with pytest.raises(ValueError, match=rf"\[T >= 2\], got {{'time': \(7,\).*{shapes}"):
        draw(**changed)


def test_clear_errors(tmp_path):
    one = np.ones(1)
    with pytest.raises(ValueError, match=r"T >= 2"):
        draw_trades(one, one, one, one, {})
    for name in ("missing/trades.png", "trades.nonsense"):
        with pytest.raises(RunError, match="cannot write"):
            plot_trades(tmp_path / name, time=DAYS, price=PRICE, position=POSITION, equity=EQUITY)
