"""The same orders on the same bars: our equity is backtrader's at every bar."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import envs
from btnn_jax.data import load_installed

bt = pytest.importorskip("backtrader")
pytest.importorskip("gym_anytrading")

LENGTH = 100
SEQUENCES = 200
STAKES = 3


class Bars(bt.feed.DataBase):
    """Bars of an array `[T, 4]`, an hour each."""

    params = (("bars", None),)

    def start(self):
        super().start()
        self.row = 0

    def _load(self):
        if self.row == len(self.p.bars):
            return False
        lines = (self.lines.open, self.lines.high, self.lines.low, self.lines.close)
        for line, price in zip(lines, self.p.bars[self.row], strict=True):
            line[0] = price
        self.lines.datetime[0] = 730_000 + self.row / 24
        self.lines.volume[0] = self.lines.openinterest[0] = 0.0
        self.row += 1
        return True


class Orders(bt.Strategy):
    """Gives one order per bar, of at most `STAKES` stakes held either way, and notes the equity."""

    params = (("actions", None), ("stake", None))

    def __init__(self):
        self.equity = []
        self.held = []

    def next(self):
        self.equity.append(self.broker.getvalue())
        self.held.append(self.position.size)
        row = len(self.equity) - 1
        if row == len(self.p.actions):
            return
        stakes = round(self.position.size / self.p.stake)
        action = self.p.actions[row]
        if action == 1 and stakes < STAKES:
            self.buy(size=self.p.stake)
        elif action == 2 and stakes > -STAKES:
            self.sell(size=self.p.stake)
        elif action == 3 and stakes:
            self.close()


def backtrader(bars, actions, stake, commission, slippage, cash):
    """Equity and position after the close of each bar, float64 `[1 + actions]`."""
    cerebro = bt.Cerebro(stdstats=False)
    cerebro.adddata(Bars(bars=bars))
    cerebro.addstrategy(Orders, actions=list(actions), stake=stake)
    cerebro.broker.setcash(cash)
    cerebro.broker.setcommission(commission=commission)
    if slippage:
        cerebro.broker.set_slippage_perc(slippage, slip_open=True, slip_match=True, slip_out=True)
    (strategy,) = cerebro.run()
    return np.array(strategy.equity), np.array(strategy.held)


def ours(env, firsts, actions):
    """The same from ours, `[sequences, 1 + actions]`, all at once."""

    def one(state, action):
        state, _ = jax.vmap(env.move)(keys, state, action)
        return state, (state.equity, state.position[:, 0])

    keys = jax.random.split(jax.random.key(0), len(firsts))  # without slippage nothing is drawn

    @jax.jit
    def run(firsts, actions):
        states, _ = jax.vmap(env.start)(firsts)
        equity, position = jax.lax.scan(one, states, actions.T)[1]
        return (
            jnp.concatenate([states.equity[None], equity]).T,
            jnp.concatenate([states.position.T, position]).T,
        )

    return map(np.asarray, run(jnp.asarray(firsts, jnp.int32), jnp.asarray(actions, jnp.int32)))


@pytest.mark.parametrize(
    ("commission", "spread", "stake"),
    [(1e-4, 0.0, 2500), (1e-3, 4e-4, 2000)],
)
def test_equity_is_backtraders_at_every_bar(commission, spread, stake):
    series = load_installed("eurusd")
    cash = 10_000.0
    env = envs.make(
        "trading", data=series, window=1, episode_length=None, unit_size=stake, max_units=STAKES, leverage=100.0,
        commission=commission, spread=spread, initial_cash=cash, drawdown=1.0,
    )  # fmt: skip
    draw = np.random.default_rng(0)
    count = SEQUENCES // 2
    firsts = draw.integers(0, len(series) - LENGTH - 1, count)
    actions = draw.integers(0, 4, (count, LENGTH))
    equity, position = ours(env, firsts, actions)
    bars = series.select("open", "high", "low", "close").values
    worst = 0.0
    for i, first in enumerate(firsts):
        theirs, held = backtrader(
            bars[first : first + LENGTH + 1], actions[i], stake, commission, spread / 2, cash
        )
        np.testing.assert_array_equal(position[i], held)
        worst = max(worst, np.max(np.abs(equity[i] / theirs - 1)))
    assert worst <= 1e-7  # float32 itself has no more than 6e-8
    assert (position > 0).any()
    assert (position < 0).any()
    assert len(np.unique(position)) == 2 * STAKES + 1
