"""Backtests: one pass over held-out time, beside strategies whose accounts are known."""

import contextlib
import dataclasses
import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import cli, envs
from btnn_jax.envs.trading import make_held_out
from btnn_jax.envs.trading.performance import Performance
from btnn_jax.runs import backtests as module
from btnn_jax.runs.agent import make_agent
from btnn_jax.runs.backtests import backtest_run
from btnn_jax.runs.checkpoint import Checkpoints
from btnn_jax.runs.folder import CHECKPOINTS, METRICS, RunError
from btnn_jax.runs.run import Run, create_run
from btnn_jax.training import backtest as pure
from btnn_jax.training.backtest import (
    make_strategy,
    measure,
    periods_per_year,
    trade,
    trade_draws,
    walk_forward,
    with_commission,
)
from btnn_jax.training.config import UnrealConfig

LEARNED = {
    "data": "random_walk", "data_params": {"length": 400, "seed": 3}, "part": "train", "window": 4,
    "episode_length": 32, "periods": (1, 4), "drawdown": 0.02,
}  # fmt: skip


performance_of = jax.jit(functools.partial(measure, periods_per_year=252.0))


def account_of(env, name):
    return jax.jit(make_strategy(env, name))(jax.random.key(0))


def test_the_held_out_part_is_traded_once_from_end_to_end():
    env = make_held_out(LEARNED)
    account = account_of(env, "buy and hold")
    assert np.asarray(account.bar).tolist() == list(range(env.starts[0], 400))
    assert account.where.all()  # a drawdown of 2 % ends an episode of training, and not this one
    assert (env.profit_unit, env.time_unit) == (0.02, 32)
    assert make_held_out({**LEARNED, "profit_target": 0.01}).profit_target == np.inf
    env = make_held_out({**LEARNED, "frame_skip": 7})
    assert env.length % 7
    account = account_of(env, "buy and hold")
    assert account.bar[-1] == 399
    assert account.where.all()


def assert_apart(before, after):
    """No bar of the one is seen in the other, nor in a feature of it."""
    first_seen = after.starts[0] - after.window + 1
    assert first_seen >= before.starts[1] + before.length + 1 + max(LEARNED["periods"])


def test_parts_of_the_time_share_no_bar_and_no_feature():
    learned = envs.make("trading", **LEARNED)
    validation, test = (make_held_out(LEARNED, part) for part in ("validation", "test"))
    assert_apart(learned, validation)
    assert_apart(validation, test)


def test_buying_and_holding_earns_what_the_price_does():
    env = with_commission(make_held_out(LEARNED), 0.0)
    account = account_of(env, "buy and hold")
    opens = np.asarray(env.bars[0, :, 0], np.float64)
    close = np.asarray(env.close[:, 0], np.float64)
    first, last = env.starts[0], env.starts[0] + env.length
    np.testing.assert_allclose(
        float(account.equity[-1]) / env.initial_cash - 1, close[last] / opens[first + 1] - 1, atol=1e-5
    )
    np.testing.assert_allclose(account.weight[0], 0)
    np.testing.assert_allclose(account.weight[1:, 0], 1, atol=0.05)
    np.testing.assert_allclose(account.traded, np.arange(env.length + 1) == 1, rtol=1e-6)


def test_buying_and_holding_is_one_purchase_whatever_the_actions_are():
    prices = np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.01, (200, 3)), axis=0))
    params = {"data": prices, "window": 4, "episode_length": 32, "periods": (1, 4)}
    orders, weights = (
        account_of(make_held_out({**params, **more}), "buy and hold") for more in ({}, {"weights": (-1, 0)})
    )
    for a, b in zip(orders, weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert np.ptp(np.asarray(weights.weight[1:]), axis=0).min() > 0.01  # prices move them, and no trade
    measured = performance_of(weights)
    assert (int(measured.num_trades), float(measured.hit_rate)) == (3, 0)  # none has been closed
    np.testing.assert_allclose(measured.turnover * len(weights.equity), 1, rtol=1e-5)
    np.testing.assert_allclose(measured.exposure, weights.weight.sum(axis=1).mean(), rtol=1e-4)


def test_every_asset_has_trades_of_its_own():
    """Long in what rises, short in what rises, long in what only costs: one of three trades pays."""
    up = 10 * 1.002 ** np.arange(150)
    prices = np.stack([up, up, np.full(150, 10.0)], axis=1)
    env = make_held_out(
        {"data": prices, "window": 4, "episode_length": 32, "periods": (1, 4), "commission": 1e-3}
    )
    orders = dict(zip(env.assets, jnp.array([[1, 3], [2, 3], [1, 3]]), strict=True))

    def act(key, inputs, step):
        return jax.tree.map(lambda order: order[jnp.int32(step >= 8)], orders), step + 1

    account = jax.jit(lambda key: trade(env, act, jnp.int32(0), key))(jax.random.key(0))
    measured = performance_of(account)
    assert int(measured.num_trades) == 3
    np.testing.assert_allclose(measured.hit_rate, 1 / 3, rtol=1e-6)
    profit = np.asarray(account.profit)
    np.testing.assert_allclose(profit.sum(axis=1)[1:], np.diff(account.equity), atol=2e-3)
    stake = 10_000 / 3
    rise = 1.002**8 - 1
    costs = 1e-3 * np.array([2 + rise, 2 + rise, 2])
    np.testing.assert_allclose(profit.sum(axis=0), stake * (np.array([rise, -rise, 0]) - costs), atol=0.02)


def test_a_short_is_sold_once_and_a_ruin_ends_it():
    prices = np.concatenate([10 * 0.995 ** np.arange(60), np.full(60, 25.0)])
    env = make_held_out({"data": prices, "window": 4, "episode_length": 32, "periods": (1, 4)}, "all")

    def short(key, inputs, carry):
        return jnp.int32(2), carry

    account = jax.jit(lambda key: trade(env, short, (), key))(jax.random.key(0))
    end = int(account.where.sum())
    assert 0 < end < len(account.equity)
    assert float(account.equity[end - 1]) <= 0
    np.testing.assert_array_equal(account.equity[end:], account.equity[end - 1])
    np.testing.assert_array_equal(account.weight[end - 1 :], 0)
    assert float(account.weight[1:end, 0].max()) >= -1  # it has shrunk with the price, and nothing was traded
    measured = performance_of(account)
    np.testing.assert_allclose(measured.turnover * end, 1, rtol=1e-6)
    assert (int(measured.num_trades), float(measured.hit_rate)) == (1, 0)
    assert 0 < float(measured.exposure) < 1
    assert all(np.isfinite(x) for x in measured)


def test_an_agent_is_told_of_its_last_step():
    env = make_held_out(LEARNED)

    def act(key, inputs, carry):
        told = (inputs.last_reward != 0) & (inputs.last_action == 1)
        return jnp.where(inputs.reset, 1, jnp.where(told, 3, 0)), carry

    account = jax.jit(lambda key: trade(env, act, (), key))(jax.random.key(0))
    np.testing.assert_array_equal(account.traded != 0, np.isin(np.arange(env.length + 1), (1, 2)))


def test_costs_are_swept_in_one_program():
    env = make_held_out(LEARNED)

    def end(commission):
        return make_strategy(with_commission(env, commission), "random")(jax.random.key(0)).equity[-1]

    ends = jax.jit(jax.vmap(end))(jnp.array([0.0, 1e-3, 1e-2]))
    assert ends[0] > ends[1] > ends[2]
    alone = jax.jit(make_strategy(make_held_out({**LEARNED, "commission": 1e-3}), "random"))(
        jax.random.key(0)
    )
    np.testing.assert_allclose(ends[1], alone.equity[-1], rtol=1e-6)


def test_folds_walk_forward_without_looking_back():
    first_bars, last_bars = set(), []
    for fractions in walk_forward(3):
        params = {**LEARNED, "fractions": fractions}
        before, after = envs.make("trading", **params), make_held_out(params, "validation")
        assert_apart(before, after)
        first_bars.add(before.starts[0])
        last_bars.append(after.starts[0] + after.length)
        assert not last_bars[:-1] or last_bars[-2] < after.starts[0]  # no bar is judged twice
    assert len(first_bars) == 1  # all that came before
    assert last_bars[-1] < 399  # something is left for a test
    with pytest.raises(ValueError, match="folds must be at least 1, got 0"):
        walk_forward(0)


def test_a_year_is_counted_by_the_clock():
    env = make_held_out(LEARNED)
    assert env.times is None
    assert periods_per_year(env) == 252
    hourly = np.datetime64("2020-01-01") + np.arange(400) * np.timedelta64(1, "h")
    timed = dataclasses.replace(env, times=hourly)
    assert periods_per_year(timed) == pytest.approx(24 * 365.2425, rel=1e-4)
    for one in (env, timed):
        longer = dataclasses.replace(one, frame_skip=4)
        assert periods_per_year(longer) == pytest.approx(periods_per_year(one) / 4)


CONFIG = UnrealConfig(
    algorithm="a2c", num_envs=2, rollout_length=4, total_steps=8, hidden=(4,), lstm=(4,), pc_weight=0,
    vr_weight=0, rp_weight=0, num_filters=(2,), noisy=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three seeds that has not learned anything; the first two agents are the same."""
    run = Run("trading", CONFIG, seed=5, env_params=LEARNED, seeds=3)
    folder = create_run(tmp_path_factory.mktemp("runs") / "run", run)
    state = jax.jit(make_agent(run).init)(5)
    params = jax.tree.map(lambda x: x[jnp.array([0, 0, 2])], state.params)
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(1, state.replace(params=params))
    (folder / METRICS).write_text('{"steps": 8, "seconds": 1.0, "entropy": 1.0}\n')
    return folder


@pytest.fixture(scope="module")
def evaluated(run):
    """The backtests that `evaluate` makes, what it prints, and how many accounts are traced for it."""
    made, traced = [], []
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(pure, "trade", lambda *args: traced.append(args) or trade(*args))
        patch.setattr(
            module, "backtest_run", lambda *args, **more: made.append(backtest_run(*args, **more)) or made[0]
        )
        words = ["--part", "validation", "--commission", "1e-4,0.01", "--seed", "3"]
        assert cli.main(["evaluate", str(run), *words]) == 0
    return made[0], out.getvalue(), len(traced)


def test_a_run_is_compared_with_simple_strategies(run, evaluated):
    cheap, _ = evaluated[0]
    assert cheap.seeds == (5, 6, 7)
    assert cheap.accounts["greedy"].equity.shape == (3, cheap.env.length + 1)
    assert cheap.env.starts == make_held_out(LEARNED, "validation").starts
    np.testing.assert_array_equal(*cheap.accounts["greedy"].equity[:2])
    rows = json.loads((run / "backtest.json").read_text())["costs"][0]["accounts"]
    assert list(rows) == ["greedy", "sampled", "buy and hold", "flat", "random"]
    assert rows["flat"]["total_return"] == [0.0]


def test_a_seed_is_judged_by_many_draws_of_its_actions(run, evaluated):
    cheap, _ = evaluated[0]
    draws = cheap.performance["sampled"].total_return
    assert draws.shape == (3, 32)
    assert all(len(set(row)) > 16 for row in draws)
    assert (draws[0] != draws[1]).any()  # of equal agents
    # The account that is kept is the one in the middle.
    kept = cheap.accounts["sampled"].equity[:, -1] / cheap.env.initial_cash - 1
    np.testing.assert_allclose(kept, np.sort(draws, axis=1)[:, 16], atol=1e-6)
    returns = draws.mean(axis=1)
    rows = json.loads((run / "backtest.json").read_text())["costs"][0]["accounts"]
    assert (rows["sampled"]["seeds"], rows["sampled"]["draws"]) == (3, 32)
    # One in 27 samples of three values is the lowest alone, which is more than is left outside of the interval.
    np.testing.assert_allclose(
        rows["sampled"]["total_return"], [returns.mean(), returns.min(), returns.max()], atol=1e-5
    )


def test_how_many_draws_are_traded_at_once_changes_nothing_but_memory():
    env = make_held_out(LEARNED)

    @functools.partial(jax.jit, static_argnames="at_once")
    def draws(key, at_once):
        keys = jax.random.split(key, (8, 2))
        return trade_draws(jax.vmap(make_strategy(env, "random")), keys, 252.0, at_once=at_once)

    few, all_at_once = (draws(jax.random.key(0), at_once) for at_once in (2, 32))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), few, all_at_once)
    assert few[1].total_return.shape == (2, 8)
    assert len(np.unique(few[1].total_return)) == 16
    long = dataclasses.replace(env, length=10**5)
    assert [module._draws_at_once(long, accounts) for accounts in (1, 10, 100, 10**6)] == [32, 4, 1, 1]


def measured(*returns, trades=3):
    """Performances `[S, D]` whose returns are these."""
    values = np.array(returns, np.float32)
    return Performance(*[values] * 6, np.full_like(values, trades), values)


def lines_of(seeds):
    """The table's lines of as many agents, whose every draw is the same."""
    simple = {"buy and hold": measured([0.2]), "flat": measured([0.0]), "random": measured([-0.3] * 4)}
    agents = {"greedy": measured(*[[0.25]] * seeds), "sampled": measured(*[[0.5, 0.25]] * seeds, trades=87)}
    backtest = module.Backtest(None, "", "test", tuple(range(seeds)), {}, agents | simple)
    return module.backtest_table(module.compare(backtest)).split("\n")


def test_the_table_says_what_its_intervals_are_of():
    title, greedy, over, sampled, over_too, hold, flat, random, draws, *caption = lines_of(seeds=3)
    assert over.startswith("  over 3 seeds ")
    assert over_too.startswith("  over 3 seeds ")
    assert draws.startswith("  over 4 draws ")
    assert "25.00..25.00" in over
    assert "37.50..37.50" in over_too
    assert [row.split()[:2] for row in (greedy, sampled)] == [["greedy", "25.00"], ["sampled", "37.50"]]
    assert {len(row) for row in (title, greedy, over, sampled, over_too, hold, flat, random, draws)} == {144}
    assert "its interval of 95 %, by bootstrap" in caption[0]
    assert caption[1].startswith("  over seeds:")
    assert "mean of 2 draws" in caption[1]
    assert caption[2].startswith("  over draws:")
    assert len(caption) == 3


def test_of_one_seed_the_interval_is_over_draws_and_nothing_else_has_one():
    _, greedy, _, over, hold, *_, caption, what = lines_of(seeds=1)
    assert (greedy.split()[0], hold.split()[:3]) == ("greedy", ["buy", "and", "hold"])
    assert over.startswith("  over 2 draws ")
    assert "25.00..50.00" in over
    assert caption.startswith("Below a mean")
    assert what.startswith("  over draws:")


def test_a_count_is_whole_unless_it_is_a_mean():
    _, greedy, sampled, over, hold, *_ = lines_of(seeds=1)
    assert [row.split()[-2] for row in (greedy, sampled, over, hold)] == ["3", "87.0", "87.0..87.0", "3"]


def test_all_commissions_are_traded_at_once_by_the_same_agents(run, evaluated):
    backtests, table, traced = evaluated
    # greedy, sampled and three strategies, for two commissions; and again the draw in the middle where there are many
    assert traced == 7
    for word in ("Sharpe", "buy and hold", "greedy", "random"):
        assert word in table
    stored = json.loads((run / "backtest.json").read_text())
    assert (stored["part"], stored["seeds"]) == ("validation", [5, 6, 7])
    for cost, backtest, commission in zip(stored["costs"], backtests, (1e-4, 0.01), strict=True):
        assert cost["commission"] == backtest.env.rules.commission == commission
        assert f"validation part, commission {commission:g}:" in table
        mean, *_ = cost["accounts"]["random"]["total_return"]
        np.testing.assert_allclose(mean, backtest.performance["random"].total_return.mean(), atol=1e-5)
    cheap, dear = (backtest.performance["random"].total_return for backtest in backtests)
    assert (cheap > dear).all()  # of each of the same random accounts


def test_the_command_line_draws_curves_where_it_is_told_to_and_trades(run, evaluated, capsys, monkeypatch):
    monkeypatch.setattr(module, "backtest_run", lambda folder, part: evaluated[0][:1])
    picture = run / "elsewhere.png"
    assert cli.main(["plot", str(run), "--output", str(picture)]) == 0
    assert capsys.readouterr().out.split() == [str(picture), str(run / "trades.png")]
    assert (run / "trades.png").read_bytes().startswith(b"\x89PNG")

    def refused(folder, part):
        raise RunError("it has seen all")

    monkeypatch.setattr(module, "backtest_run", refused)
    assert cli.main(["plot", str(run)]) == 0
    assert capsys.readouterr().out.split("\n")[1] == "no picture of its trades: it has seen all"


@pytest.mark.parametrize(("learned", "part"), [({}, "test"), ({"part": "all"}, "test"), (LEARNED, "all")])
def test_an_agent_is_not_judged_on_time_that_it_has_learned_on(tmp_path, learned, part):
    folder = create_run(tmp_path / "run", Run("trading", CONFIG, env_params=learned))
    with pytest.raises(RunError, match=f"has learned on part=.*: part={part} tests nothing"):
        backtest_run(folder, part=part)


def test_the_best_checkpoint_is_traded_where_asked(tmp_path):
    folder = create_run(tmp_path / "run", Run("trading", CONFIG, env_params=LEARNED))
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        for update, score in ((1, 2.0), (2, 1.0)):
            checkpoints.save(update, {"x": jnp.zeros(1)}, score=score)
    for best, number in ((True, 1), (False, 2)):
        with pytest.raises(RunError, match=rf"checkpoints/{number}, .* is not of this run"):
            backtest_run(folder, best=best)


def test_options_of_another_kind_of_run_are_refused(run, tmp_path, capsys):
    episodes = create_run(tmp_path / "run", Run("probe-choice", CONFIG))
    for folder, words, message in (
        (run, "--episodes 3 --part test --max-steps 5", "a trading run takes no --episodes, --max-steps"),
        (episodes, "--seed 1 --part test", "an agent's episodes takes no --part"),
        (episodes, "--commission 0", "an agent's episodes takes no --commission"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["evaluate", str(folder), *words.split()])
        assert message in capsys.readouterr().err
    with pytest.raises(RunError, match="is a run of probe-choice, not of trading"):
        backtest_run(episodes)
