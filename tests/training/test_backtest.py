"""Backtests: one pass over held-out time, beside strategies whose accounts are known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from btnn_jax import cli, envs
from btnn_jax.envs.trading import make_held_out
from btnn_jax.policies import init_params, make_policy
from btnn_jax.training.backtest import (
    backtest_run,
    compare,
    make_backtest,
    make_strategy,
    measure,
    periods_per_year,
    trade,
    walk_forward,
    with_commission,
)
from btnn_jax.training.config import UnrealConfig
from btnn_jax.training.folder import RunError
from btnn_jax.training.progress import Silent
from btnn_jax.training.run import train

LEARNED = {
    "data": "random_walk", "data_params": {"length": 400, "seed": 3}, "part": "train", "window": 4, "episode": 32,
    "periods": (1, 4), "drawdown": 0.02,
}  # fmt: skip


def account_of(env, name):
    return jax.jit(make_strategy(env, name))(jax.random.key(0))


def test_the_held_out_part_is_traded_once_from_end_to_end():
    env, learned = make_held_out(LEARNED), envs.make("trading", **LEARNED)
    account = account_of(env, "buy and hold")
    learned_last = learned.starts[1] + learned.length
    assert np.asarray(account.bar).tolist() == list(range(env.starts[0], 400))
    assert env.starts[0] - env.window + 1 > learned_last + 4 - 1  # no bar and no feature is shared
    assert account.where.all()  # a drawdown of 2 % ends an episode of training, and not this one
    assert (env.profit_unit, env.time_unit) == (0.02, 32)


def test_buying_and_holding_earns_what_the_price_does():
    env = with_commission(make_held_out(LEARNED), 0.0)
    account = account_of(env, "buy and hold")
    opens = np.asarray(env.bars[:, 0, 0], np.float64)
    close = np.asarray(env.close[:, 0], np.float64)
    first, last = env.starts[0], env.starts[0] + env.length
    np.testing.assert_allclose(
        float(account.equity[-1]) / env.cash - 1, close[last] / opens[first + 1] - 1, atol=1e-5
    )
    np.testing.assert_allclose(account.weight[0], 0)
    np.testing.assert_allclose(account.weight[1:, 0], 1, atol=0.05)
    np.testing.assert_array_equal(account_of(env, "flat").equity, env.cash)


def test_weights_and_several_assets_have_strategies_too():
    prices = np.exp(np.cumsum(np.random.default_rng(0).normal(0, 0.01, (200, 3)), axis=0))
    params = {"data": prices, "window": 4, "episode": 32, "periods": (1, 4)}
    for more in ({}, {"weights": (-1, 0, 1)}):
        env = make_held_out({**params, **more})
        account = account_of(env, "buy and hold")
        np.testing.assert_allclose(account.weight[1:].sum(axis=1), 1, atol=0.05)
        measured = measure(account, 252.0)
        assert int(measured.num_trades) == 3
        np.testing.assert_allclose(measured.exposure, account.weight.sum(axis=1).mean(), rtol=1e-4)


def test_an_account_that_is_ruined_stands_still():
    prices = np.concatenate([np.full(60, 10.0), np.full(60, 25.0)])
    env = make_held_out({"data": prices, "window": 4, "episode": 32, "periods": (1, 4)}, "all")

    def short(key, inputs, carry):
        return jnp.int32(2), carry

    account = jax.jit(lambda key: trade(env, short, (), key))(jax.random.key(0))
    end = int(account.where.sum())
    assert 0 < end < len(account.equity)
    assert float(account.equity[end - 1]) <= 0
    np.testing.assert_array_equal(account.equity[end:], account.equity[end - 1])


def test_greedy_and_sampled_actions_of_a_policy():
    env = make_held_out(LEARNED)
    policy = make_policy(4, env.observation, hidden=(8,), lstm=(4,), num_filters=(2,), pixel_control=False)
    params = jax.jit(lambda key: init_params(policy, key, env.observation))(jax.random.key(0))
    greedy, sampled = (
        jax.jit(jax.vmap(make_backtest(env, policy, greedy=greedy), in_axes=(None, 0)))(
            params, jax.random.split(jax.random.key(1))
        )
        for greedy in (True, False)
    )
    np.testing.assert_array_equal(greedy.equity[0], greedy.equity[1])
    assert (sampled.equity[0] != sampled.equity[1]).any()


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
    learned, judged = [], []
    for fractions in walk_forward(3):
        params = {**LEARNED, "fractions": fractions}
        before = envs.make("trading", **params)
        learned.append((before.starts[0], before.starts[1] + before.length))
        after = make_held_out(params, "validation")
        judged.append((after.starts[0], after.starts[0] + after.length))
    assert len({first for first, _ in learned}) == 1  # all that came before
    for (_, end), (start, stop), (later, _) in zip(learned, judged, [*judged[1:], (400, 0)], strict=True):
        assert end < start < stop < later
    with pytest.raises(ValueError, match="folds must be at least 1, got 0"):
        walk_forward(0)


def test_a_year_is_counted_by_the_clock():
    env = make_held_out(LEARNED)
    assert env.times is None
    assert periods_per_year(env) == 252
    hourly = np.datetime64("2020-01-01") + np.arange(400) * np.timedelta64(1, "h")
    assert periods_per_year(dataclasses.replace(env, times=hourly)) == pytest.approx(24 * 365.2425, rel=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = UnrealConfig(
        algorithm="a2c", num_envs=2, rollout_length=4, total_steps=64, hidden=(4,), lstm=(), pc_weight=0,
        vr_weight=0, rp_weight=0, num_filters=(2,), noisy=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "run"
    train("trading", config, seeds=2, folder=folder, env_params=LEARNED, reporter=Silent())
    return folder


def test_a_run_is_compared_with_simple_strategies(run):
    backtest = backtest_run(run)
    assert backtest.seeds == (0, 1)
    assert backtest.greedy.equity.shape == (2, backtest.env.length + 1)
    rows = compare(backtest)
    assert list(rows) == ["greedy", "sampled", "buy and hold", "flat", "random"]
    mean, low, high = rows["sampled"]["total_return"]
    assert low <= mean <= high
    np.testing.assert_allclose(
        mean, np.mean(backtest.sampled.equity[:, -1] / backtest.env.cash - 1), atol=1e-5
    )
    assert rows["flat"]["total_return"] == [0.0]
    dear = backtest_run(run, commission=0.01)
    assert compare(dear)["random"]["total_return"][0] < rows["random"]["total_return"][0]


def test_the_command_line_evaluates_and_draws_a_trading_run(run, capsys):
    assert cli.main(["evaluate", str(run), "--part", "validation"]) == 0
    table = capsys.readouterr().out
    assert "validation part, commission 0.0001:" in table
    for word in ("Sharpe", "buy and hold", "greedy", "random"):
        assert word in table
    stored = json.loads((run / "backtest.json").read_text())
    assert (stored["part"], stored["seeds"]) == ("validation", [0, 1])
    assert cli.main(["plot", str(run)]) == 0
    assert (run / "trades.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_of_another_environment_is_refused(tmp_path):
    config = UnrealConfig(
        algorithm="a2c", num_envs=2, rollout_length=4, total_steps=8, hidden=(4,), lstm=(), pc_weight=0,
        vr_weight=0, rp_weight=0, noisy=False,
    )  # fmt: skip
    train("probe-choice", config, folder=tmp_path / "run", reporter=Silent())
    with pytest.raises(RunError, match="is a run of probe-choice, not of trading"):
        backtest_run(tmp_path / "run")
